package rules_test

import (
	"testing"
	"testing/fstest"

	"github.com/jetpost/jetpost/store/internal/rules"
)

func TestOldestSchema(t *testing.T) {
	t.Parallel()
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	const survived, stops = "-- Older workers go on.\n-- +goose Up\n", "-- What it is.\n\n-- Older workers stop.\n-- +goose Up\n"
	for name, test := range map[string]struct {
		files  fstest.MapFS
		oldest int64
	}{
		"none":          {fstest.MapFS{}, 0},
		"survived":      {fstest.MapFS{"00001_a.sql": file(survived), "00002_b.sql": file(survived)}, 0},
		"one stops":     {fstest.MapFS{"00001_a.sql": file(stops), "00003_b.sql": file(stops), "00004_c.sql": file(survived)}, 3},
		"one is silent": {fstest.MapFS{"00001_a.sql": file(survived), "00002_b.sql": file("-- +goose Up\n")}, 2},
	} {
		if oldest, err := rules.OldestSchema(test.files); err != nil || oldest != test.oldest {
			t.Errorf("%s: %d, %v, want %d", name, oldest, err, test.oldest)
		}
	}
	if _, err := rules.OldestSchema(fstest.MapFS{"first.sql": file(survived)}); err == nil {
		t.Error("a migration without a number is no error")
	}
}
