// Package app puts the parts together: what the command line, the end-to-end
// tests and the benchmarks start. It knows every package and holds no rule of
// its own about tokens, posts or limits.
//
// It never reads the environment and never ends the process: that is for cmd.
package app
