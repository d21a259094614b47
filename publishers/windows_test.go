package publishers

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
)

func TestWindows(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	windows := NewWindows(tb.js, tb.names)
	reset := time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond)
	app := []Window{{Endpoint: "POST /2/tweets", Kind: "app_24h", Limit: 100, Remaining: 3, Reset: reset, XReset: 9, Length: time.Hour}}
	acme := []Window{{Account: "acme", Endpoint: "POST /2/tweets", Kind: "15min", Limit: 10, Remaining: 2, Reset: reset, XReset: 7, Estimated: true}}
	told := make(chan []Window, 10)
	follow := func() {
		t.Helper()
		if err := windows.FollowApp(t.Context(), func(w []Window) { told <- w }); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, got, want []Window) {
		t.Helper()
		for i := range got {
			if age := time.Since(got[i].ToldAt); age < 0 || age > patience {
				t.Errorf("%s: told %s ago", what, age)
			}
			got[i].ToldAt = time.Time{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	get := func(account string) []Window {
		t.Helper()
		got, err := windows.Get(t.Context(), account)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	follow()
	if len(told) != 0 {
		t.Error("told where there are none")
	}
	want("windows of nobody", get("acme"), nil)
	for account, put := range map[string][]Window{"": app, "acme": acme} {
		if err := windows.Put(t.Context(), account, put); err != nil {
			t.Fatal(err)
		}
	}
	want("told of the app", <-told, app)
	want("windows of the app", get(""), app)
	want("windows of acme", get("acme"), acme)
	all, err := windows.All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want("all", all, append(app, acme...))
	follow()
	if len(told) != 1 {
		t.Error("not told before it returns")
	}

	// What is over is forgotten, an hour after its reset.
	stream, err := tb.js.Stream(t.Context(), "KV_"+tb.names.LimitsBucket())
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetLastMsgForSubject(t.Context(), "$KV."+tb.names.LimitsBucket()+".window.account.acme")
	if err != nil {
		t.Fatal(err)
	}
	ttl, err := time.ParseDuration(msg.Header.Get(jetstream.MsgTTLHeader))
	if err != nil || ttl < 2*time.Hour-time.Minute || ttl > 2*time.Hour {
		t.Errorf("it is kept for %s, %v", ttl, err)
	}
}

// TestForgedWindows: windows that no holder of the signing key has written are ignored.
func TestForgedWindows(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	windows, forged := NewWindows(tb.js, tb.names).Signed(testSigner), NewWindows(tb.js, tb.names)
	told := []Window{{Account: "acme", Endpoint: "POST /2/tweets", Kind: "15min", Limit: 100, Reset: time.Now().Add(time.Hour)}}
	for _, account := range []string{"acme", ""} {
		if err := forged.Put(t.Context(), account, told); err != nil {
			t.Fatal(err)
		}
		if got, err := windows.Get(t.Context(), account); err != nil || len(got) > 0 {
			t.Errorf("forged windows of %q: %+v, %v", account, got, err)
		}
		if err := windows.Put(t.Context(), account, told); err != nil {
			t.Fatal(err)
		}
		for who, reader := range map[string]*Windows{"a worker": windows, "a person": forged} {
			if got, err := reader.Get(t.Context(), account); err != nil || len(got) != 1 {
				t.Errorf("true windows of %q to %s: %+v, %v", account, who, got, err)
			}
		}
	}
}
