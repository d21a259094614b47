package app

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
)

// TestProgramOfAnotherModule: a program with nothing of this module but the contract and
// the client publishes, watches, cancels, replays and pauses, as a user that may do just
// that on one account.
func TestProgramOfAnotherModule(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	testkit.Must(t, err)
	copyFile := func(from, to string, change func(string) string) {
		t.Helper()
		text, err := os.ReadFile(from)
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(filepath.Join(dir, to), []byte(change(string(text))), 0o600))
	}
	same := func(text string) string { return text }
	copyFile("testdata/program/main.go", "main.go", same)
	copyFile(filepath.Join(root, "go.sum"), "go.sum", same)
	copyFile(filepath.Join(root, "go.mod"), "go.mod", func(text string) string {
		version := regexp.MustCompile(`(?m)^go .*$`).FindString(text)
		return fmt.Sprintf("module example.com/program\n\n%s\n\nrequire github.com/jetpost/jetpost v0.0.0\n\nreplace github.com/jetpost/jetpost => %s\n", version, root)
	})
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off", "GOPROXY=off", "GOFLAGS=-mod=mod")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run("go", "build", "-o", "program", ".")
	for _, dep := range strings.Fields(run("go", "list", "-deps", ".")) {
		inside, is := strings.CutPrefix(dep, "github.com/jetpost/jetpost")
		if is && inside != "" && inside != "/client" {
			t.Errorf("the program depends on %s", dep)
		}
	}
	s := serve(t, Walls{Customers: []string{"acme"}, Allow: []jetpost.Operation{
		jetpost.OpRequestPublish, jetpost.OpRequestCancel, jetpost.OpRequestReplay, jetpost.OpAccountPause, jetpost.OpAccountResume,
	}}, "acme", "other")
	s.work()
	got := run("./program", s.server.ClientURL(), "acme", testPassword)
	want := `published: published 1
event: request.scheduled
event: request.cancelled
replay: nothing is cancelled
paused: lunch
resumed: lunch
disconnect: unavailable
another account: unavailable
`
	if got != want {
		t.Errorf("the program tells\n%s\nwant\n%s", got, want)
	}
}
