// Package app puts the parts together for the command line, the end-to-end
// tests and the benchmarks. It uses every package and has no rules of
// its own about tokens, posts or limits.
//
// It never reads the environment and never ends the process; cmd does.
package app
