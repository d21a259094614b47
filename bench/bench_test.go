package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMain lets the test binary be a peer's worker, as the program itself is.
func TestMain(m *testing.M) {
	if peer := os.Getenv(childVariable); peer != "" {
		if err := runPeer(peer); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// One of each experiment, at the smallest size: every side works, posts each post
// once and, where it promises so, in order, and the page has them all.
func TestEveryExperiment(t *testing.T) { //nolint:paralleltest // what is counted is counted by the server
	b := newTestBench(t)
	if err := b.all(t.Context(), tiny(), regexp.MustCompile("")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	b.report.machine(t.Context(), b, options{})
	if err := b.report.write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "BENCHMARKS.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, want := range []string{"floor", "River", "Asynq", "DBOS", "jetpost up, SQLite", "publish_at", "Tokens refreshed", "A ledger that has grown", "An idle process"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not mention %q", want)
		}
	}
	for _, bad := range []string{"POSTED TWICE", "OUT OF ORDER", "cut after", "NaN", "Inf"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page says %q:\n%s", bad, page)
		}
	}
	for _, p := range b.report.plots {
		if _, err := os.Stat(filepath.Join(dir, plotDir, p.file)); err != nil {
			t.Error(err)
		}
	}
}

func newTestBench(t *testing.T) *bench {
	t.Helper()
	b, err := newBench(t.Context(), os.Stderr, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	})
	return b
}
