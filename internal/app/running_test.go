package app_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// An account that was disconnected stays so, although the simulated X forgets
// everything with its process.
func TestUpKeepsDisconnected(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func(seed uint64) (*app.Instance, *app.Control) {
		h, err := app.Up(t.Context(), app.InstanceConfig{
			Data: dir, NATSListen: "127.0.0.1:0", SimListen: "127.0.0.1:0", NoWorker: true,
			Sim: &xsim.Server{Seed: seed}, SimAccounts: []string{"alice", "bob"},
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		control, err := h.Config.OpenControl(t.Context(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return h, control
	}
	first, control := open(1)
	if _, err := control.AccountDisconnect(t.Context(), "alice", jetpost.AccountDisconnect{}); err != nil {
		t.Fatal(err)
	}
	control.Close()
	first.Close()
	second, control := open(2)
	defer second.Close()
	defer control.Close()
	for name, want := range map[string]bool{"alice": true, "bob": false} {
		if account, err := control.Ledger.Account(t.Context(), name); err != nil || account.Disconnected() != want {
			t.Errorf("%s is disconnected: %t, %v", name, account.Disconnected(), err)
		}
	}
}

// What runs is told from what has died by more than a file that is there, and
// of two that run none is taken unless one's NATS is named.
func TestRunning(t *testing.T) {
	t.Parallel()
	oneDir, otherDir := t.TempDir(), t.TempDir()
	open := func(dir string, cfg app.InstanceConfig) *app.Instance {
		cfg.Data, cfg.NATSListen, cfg.SimListen, cfg.NoWorker = dir, "127.0.0.1:0", "127.0.0.1:0", true
		h, err := app.Up(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		return h
	}
	one := open(oneDir, app.InstanceConfig{Config: app.Config{Rules: consumers.Rules{Enterprise: true}}})
	other := open(otherDir, app.InstanceConfig{Sim: &xsim.Server{}, SimAccounts: []string{"alice"}})
	dirs := []string{filepath.Join(t.TempDir(), "empty"), oneDir, otherDir}

	for name, test := range map[string]struct {
		nats string
		want *app.Instance // nil for none
	}{
		"a stranger's NATS": {"nats://127.0.0.1:1", nil},
		"one's NATS":        {one.Config.NATS.URL, one},
		"the other's NATS":  {other.Config.NATS.URL, other},
	} {
		cfg, running, err := app.Config{NATS: app.NATSConfig{URL: test.nats}, X: app.XConfig{URL: "http://elsewhere"}}.Running(dirs...)
		if err != nil || running != (test.want != nil) {
			t.Errorf("%s: running = %t, %v", name, running, err)
		}
		if test.want != nil && (cfg.NATS.URL != test.want.Config.NATS.URL || cfg.X.URL != test.want.Config.X.URL ||
			cfg.NATS.Password != test.want.Config.NATS.Password || cfg.Keys != test.want.Config.Keys ||
			cfg.Rules.Enterprise != test.want.Config.Rules.Enterprise) {
			t.Errorf("%s: the configuration is not that of what runs", name)
		}
	}

	several := new(app.SeveralError)
	if _, running, err := (app.Config{}).Running(dirs...); running || !errors.As(err, &several) ||
		!slices.Equal(several.Dirs, dirs[1:]) || several.Names[0] != "jetpost up on "+oneDir+", with X" || several.Names[1] != "jetpost up on "+otherDir+", with a simulated X" {
		t.Errorf("of two: running = %t, %v", running, err)
	}
	if cfg, running, err := (app.Config{}).Running(oneDir); !running || err != nil || cfg.Installation() != "jetpost up on "+oneDir+", with X" {
		t.Errorf("of one that is named: running = %t, %s, %v", running, cfg.Installation(), err)
	}

	// A copy of the file that nobody holds is what a killed process leaves.
	died := t.TempDir()
	text, err := os.ReadFile(filepath.Join(oneDir, "connection.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(died, "connection.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, running, err := (app.Config{}).Running(died); running || !errors.As(err, new(*app.DiedError)) {
		t.Errorf("of a killed one: running = %t, %v", running, err)
	}
	if _, running, err := (app.Config{}).Running(died, otherDir); !running || err != nil {
		t.Errorf("of one beside a killed one: running = %t, %v", running, err)
	}
}
