// Package cli is the command line of jetpost: flags, environment, output and exit codes.
//
// This package alone reads the environment. It never ends the process: the exit code is
// its caller's to use. Each command has a file; what runs is put together in internal/app.
package cli
