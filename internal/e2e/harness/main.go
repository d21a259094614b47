package harness

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"

	"github.com/jetpost/jetpost/internal/cli"
)

const (
	// command is the name under which a process is jetpost.
	command = "jetpost"
	// NATSServerCommand is the name under which a process is a NATS server: with a
	// directory and a port, or with a configuration.
	NATSServerCommand = "e2e-nats-server"
)

// Main runs a program that starts processes, and returns its exit code. They are the
// program itself, under names of their own: of jetpost, of a NATS server and of what else
// is named. A main function calls it first.
func Main(run func() int, others map[string]func()) int {
	programs := map[string]func() int{
		command:           func() int { return cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr) },
		NATSServerCommand: func() int { natsServer(); return 0 },
	}
	for name, other := range others {
		programs[name] = func() int { other(); return 0 }
	}
	if program := programs[filepath.Base(os.Args[0])]; program != nil {
		return program()
	}
	dir, err := os.MkdirTemp("", "jetpost-programs-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }() // nobody is left to tell
		err = copySelf(dir, maps.Keys(programs))
	}
	if err == nil {
		err = os.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "make the programs to start: %v\n", err)
		return 1
	}
	return run()
}

// copySelf makes a copy of the program for each name. A symbolic link would not do: a
// process asks the system for its own program, to start it once more.
func copySelf(dir string, names iter.Seq[string]) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for name := range names {
		to := filepath.Join(dir, name)
		if os.Link(self, to) == nil {
			continue
		}
		if err := copyProgram(self, to); err != nil {
			return err
		}
	}
	return nil
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()                                     // it was only read
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755) //nolint:gosec // a program
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
