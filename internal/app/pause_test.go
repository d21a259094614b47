package app

import (
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
)

// TestPauseWhileNATSIsAway: a pause and its end hold although NATS cannot be told, and
// whoever tells what was not told has the event.
func TestPauseWhileNATSIsAway(t *testing.T) {
	t.Parallel()
	cfg, conn := startInstance(t)
	open := func() *Control {
		t.Helper()
		control, err := cfg.OpenControl(t.Context(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(control.Close)
		return control
	}
	away, next := open(), open()
	_, err := next.Ledger.ImportAccount(t.Context(), store.Import{Name: "acme", XUserID: "1", Username: "acme", Pair: store.Pair{
		Access: secret.New("access"), Refresh: secret.New("refresh"), ExpiresAt: time.Now().Add(time.Hour),
	}, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	away.Conn.Close()
	check := func(what string, err error, typ jetpost.EventType) {
		t.Helper()
		if Hint(err) != "it is "+what+"; a worker tells it once NATS takes that" {
			t.Errorf("%s without NATS: error is %v", what, err)
		}
		if err := next.OutboxRelay.AnnouncePauseChanges(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		stream, err := conn.JS.Stream(t.Context(), conn.Names.EventsStream())
		if err != nil {
			t.Fatal(err)
		}
		msg, err := stream.GetLastMsgForSubject(t.Context(), conn.Names.EventSubject(typ, "acme", ""))
		if err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
		var e jetpost.Event
		if err := json.Unmarshal(msg.Data, &e); err != nil || e.Type != typ || e.Account.Account != "acme" || time.Since(e.Time) > time.Hour {
			t.Errorf("event is %s, %v", msg.Data, err)
		}
	}
	_, err = away.AccountPause(t.Context(), "acme", jetpost.PauseRequest{Reason: "holidays"})
	check("paused", err, jetpost.EventAccountPaused)
	_, err = away.AccountResume(t.Context(), "acme", jetpost.ResumeRequest{})
	check("resumed", err, jetpost.EventAccountResumed)
}
