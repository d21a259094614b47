package main

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// TestMain lets the test binary be a peer's worker, as the program itself is, and
// takes down what the tests shared.
func TestMain(m *testing.M) {
	if peer := os.Getenv(childVariable); peer != "" {
		if err := runPeer(context.Background(), peer); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if b, err := shared(); err == nil && b.close() != nil {
		code = 1
	}
	os.Exit(code)
}

// shared builds what is measured once, for all tests.
var shared = sync.OnceValues(func() (*bench, error) { return newBench(context.Background(), os.Stderr, "") })

// fork is the shared bench with an X of the test's own. Counts are of all that
// runs: a test that reads them runs alone.
func fork(t *testing.T) *bench {
	t.Helper()
	all, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	b := *all
	b.report = report{}
	if b.x, err = startX(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.x.server.Close(); err != nil {
			t.Error(err)
		}
	})
	return &b
}

// One of each experiment, at the smallest size: every side works, posts each post
// once and, where it promises so, in order, and the page has what was measured.
func TestEveryExperiment(t *testing.T) {
	t.Parallel()
	wants := map[string][]string{
		"singles":     {"floor", "River", "Asynq", "DBOS", "jetpost", "jetpost up, SQLite"},
		"latency":     {"floor", "River", "Asynq", "DBOS", "jetpost", "jetpost up, SQLite"},
		"thousand":    {"of 8 accounts"},
		"one-account": {"of one account"},
		"threads":     {"threads of 5"},
		"slow-x":      {"at most 200 posts/s"},
		"workers":     {"More workers"},
		"publish-at":  {"publish_at", "| jetpost | 5 |"},
		"refresh":     {"Tokens refreshed"},
		"media":       {"against its limit"},
		"growth":      {"| jetpost | 200 |"},
		"footprint":   {"An idle process"},
	}
	for name, want := range wants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := fork(t)
			if err := b.all(t.Context(), tiny(), regexp.MustCompile("^"+name+"$")); err != nil {
				t.Fatal(err)
			}
			wantPage(t, b, want)
		})
	}
}

// wantPage checks what a run writes.
func wantPage(t *testing.T, b *bench, want []string) {
	t.Helper()
	dir := t.TempDir()
	b.report.machine(t.Context(), b, options{})
	if err := b.report.write(io.Discard, dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "BENCHMARKS.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, part := range want {
		if !strings.Contains(page, part) {
			t.Errorf("the page does not mention %q:\n%s", part, page)
		}
	}
	for _, bad := range []string{"POSTED TWICE", "OUT OF ORDER", "cut after", "NaN", "Inf", "unknown"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page says %q:\n%s", bad, page)
		}
	}
	for _, p := range b.report.plots {
		svg, err := os.ReadFile(filepath.Join(dir, plotDir, p.file))
		if err != nil {
			t.Error(err)
		} else if err := xml.Unmarshal(svg, new(struct{})); err != nil {
			t.Errorf("%s is no XML: %v", p.file, err)
		}
	}
}
