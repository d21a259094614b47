package web_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/sha256"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/web"
)

// TestVendored: what others wrote is here as they released it, with its licence.
func TestVendored(t *testing.T) {
	t.Parallel()
	const dir = "assets/vendor"
	sums, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	testkit.Must(t, err)
	known := []string{"SHA256SUMS"}
	for line := range strings.Lines(string(sums)) {
		want, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		body, err := os.ReadFile(filepath.Join(dir, name))
		testkit.Must(t, err)
		if sum := sha256.Sum256(body); !ok || hex.EncodeToString(sum[:]) != want {
			t.Errorf("%s has the checksum %x, want %s", name, sum, want)
		}
		known = append(known, name)
	}
	testkit.Must(t, fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !slices.Contains(known, path) {
			t.Errorf("%s has no checksum", path)
		}
		return err
	}))
	for _, name := range []string{"htmx.min.js", "htmx.LICENSE", "sse.min.js", "sse.LICENSE"} {
		if !slices.Contains(known, name) {
			t.Errorf("%s is missing", name)
		}
	}
}

// events reads a stream until the test ends: each block of lines is a message.
func (b *dashboardBundle) events(query, lastID string) (next func() string) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	b.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+"/live"+query, nil)
	testkit.Must(b.T, err)
	if lastID != "" {
		r.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultClient.Do(r)
	testkit.Must(b.T, err)
	b.Cleanup(func() { _ = resp.Body.Close() })
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || kind != "text/event-stream" {
		b.Fatalf("status %d, %s", resp.StatusCode, kind)
	}
	lines := bufio.NewScanner(resp.Body)
	return func() string {
		var message []string
		for lines.Scan() {
			if lines.Text() != "" {
				message = append(message, lines.Text())
				continue
			}
			if text := strings.Join(message, " "); text != ":" {
				return text
			}
			message = nil
		}
		b.Fatalf("the stream has ended: %v", lines.Err())
		return ""
	}
}

// until reads messages up to one with those words, and returns its id, or that of one before.
func until(t *testing.T, next func() string, words string) (id string) {
	t.Helper()
	for {
		text := next()
		if rest, ok := strings.CutPrefix(text, "id: "); ok {
			id, _, _ = strings.Cut(rest, " ")
		}
		if strings.Contains(text, words) {
			return id
		}
	}
}

// TestLive: a page hears of changes, and one that comes back of those that it has missed.
func TestLive(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, nil)
	b.serve()
	for _, id := range []string{"one", "two", "three"} {
		b.scheduled("acme", id, "text of "+id)
	}
	cancel := func(id string) {
		t.Helper()
		_, err := b.client.RequestCancel(t.Context(), "acme", jetpost.RequestCancel{ID: id})
		testkit.Must(t, err)
	}
	// Who does not say what the page knows is told to load it.
	first := b.events("", "")
	until(t, first, "event: live")
	until(t, first, "event: changed")
	_, address, ok := strings.Cut(b.want(http.StatusOK, "", http.MethodGet, "/requests/acme/two", nil), `sse-connect="/ops/live`)
	query, _, _ := strings.Cut(strings.ReplaceAll(address, "&amp;", "&"), `"`)
	if !ok || !strings.Contains(query, "after=") || !strings.Contains(query, "id=two") {
		t.Fatalf("the page's stream is %q", query)
	}
	two := b.events(query, "")
	until(t, two, "event: live") // and no change, or the next would not be of its own
	cancel("one")
	known := until(t, first, "event: changed")
	cancel("two")
	until(t, two, "event: changed")
	until(t, first, "event: changed")
	// Who comes back is told at once of what was missed, and not of what was not.
	back := b.events("", known)
	until(t, back, "event: live")
	latest := until(t, back, "event: changed")
	same := b.events("", latest)
	until(t, same, "event: live")
	cancel("three")
	if id := until(t, same, "event: changed"); id == latest || id == "" {
		t.Errorf("the change has the place %q, as the one before", id)
	}
}

// TestLiveOff: without changes pages are whole, and no stream is there.
func TestLiveOff(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, func(cfg *web.DashboardConfig) { cfg.Changes = nil })
	b.serve()
	if page := b.want(http.StatusOK, "Needs a person", http.MethodGet, "/", nil); strings.Contains(page, "sse-connect") {
		t.Error("the page follows changes that nobody tells")
	}
	b.want(http.StatusNotFound, "Nothing is at this address", http.MethodGet, "/live", nil)
}

// TestDashboardBulk: many requests are cancelled or replayed once their table was shown.
func TestDashboardBulk(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, nil)
	b.serve()
	b.scheduled("acme", "one", "text")
	b.scheduled("acme", "two", "text")
	b.scheduled("beta", "other", "text")
	list := b.want(http.StatusOK, "Cancel all of these", http.MethodGet, "/requests?state=scheduled&account=acme", nil)
	if !strings.Contains(list, `href="/ops/cancel?account=acme&amp;state=scheduled"`) {
		t.Errorf("the list does not lead to the table\n%s", list)
	}
	table := b.want(http.StatusOK, "Cancel 2 requests?", http.MethodGet, "/cancel?account=acme&state=scheduled", nil)
	if is := b.status("acme", "one"); is.Revision != 1 {
		t.Errorf("the table has changed the request: %s", is.State)
	}
	b.scheduled("acme", "since", "text")
	form := b.form(table, "/cancel")
	b.want(http.StatusOK, "Cancelled: 2", http.MethodPost, "/cancel", form)
	b.want(http.StatusOK, "Cancelled: 2", http.MethodPost, "/cancel", form) // a repeat does nothing
	for id, want := range map[string]jetpost.State{"one": jetpost.StateCancelled, "two": jetpost.StateCancelled, "since": jetpost.StateScheduled} {
		if is := b.status("acme", id); is.State != want {
			t.Errorf("%s is %s, want %s", id, is.State, want)
		}
	}
	if is := b.status("beta", "other"); is.State != jetpost.StateScheduled {
		t.Errorf("the request of another account is %s", is.State)
	}
	b.want(http.StatusBadRequest, "which requests were shown", http.MethodPost, "/cancel", url.Values{"operation_id": {client.NewOperationID()}})
	b.want(http.StatusBadRequest, "none of an unfinished request", http.MethodGet, "/cancel?state=failed", nil)
	b.want(http.StatusOK, "There is nothing to send again.", http.MethodGet, "/replay", nil)
}

// TestDashboardDeadLetters: what was refused stands by its reason, with the first and the
// last, and is replayed from there.
func TestDashboardDeadLetters(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, nil)
	b.serve()
	for n := range 3 {
		refusal := jetpost.Refusal{Account: "acme", ID: fmt.Sprint("r", n), Code: jetpost.CodeAccountUnknown, Sequence: uint64(n + 1), Stored: time.Now().Add(-time.Duration(n) * 5 * time.Hour)}
		testkit.Must(t, b.ledger.Refuse(t.Context(), refusal, nil))
	}
	page := b.want(http.StatusOK, "3 refused", http.MethodGet, "/dead-letters", nil)
	for _, part := range []string{"no account of that name is connected", "10 h ago", "just now", `href="/ops/replay?code=account_unknown"`} {
		if !strings.Contains(page, part) {
			t.Errorf("the page has no %q\n%s", part, page)
		}
	}
	b.want(http.StatusOK, "because no account of that name is connected", http.MethodGet, "/dead-letters?kind=refused&code=account_unknown", nil)
	b.want(http.StatusBadRequest, "no such reason", http.MethodGet, "/dead-letters?code=%3Cb%3E", nil)
}

// TestDashboardOfApp: the app is paused and resumed with a reason, and what waits is told.
func TestDashboardOfApp(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, nil)
	b.serve()
	b.scheduled("acme", "one", "text")
	pause := b.form(b.want(http.StatusOK, "Pause all accounts", http.MethodGet, "/limits", nil), "/app/pause")
	pause.Set("reason", "audit")
	b.want(http.StatusSeeOther, "/ops/limits?done=app-pause", http.MethodPost, "/app/pause", pause)
	page := b.want(http.StatusOK, "audit", http.MethodGet, "/limits?done=app-pause", nil)
	b.want(http.StatusSeeOther, "done=app-resume", http.MethodPost, "/app/resume", b.form(page, "/app/resume"))
	b.want(http.StatusOK, "Posting goes on.", http.MethodGet, "/limits?done=app-resume", nil)
	b.want(http.StatusNotFound, "", http.MethodPost, "/app/explode", url.Values{"operation_id": {"op"}})

	b.want(http.StatusOK, "The last of 6 posts goes out", http.MethodGet, "/limits?add_account=acme&add=5", nil)
	b.want(http.StatusOK, "Write a number of posts", http.MethodGet, "/limits?add_account=acme&add=many", nil)
	b.want(http.StatusOK, "account nobody: not found", http.MethodGet, "/limits?add_account=nobody&add=5", nil)
	b.want(http.StatusOK, "None has given a heartbeat", http.MethodGet, "/workers", nil)
}

// TestDashboardOverview: a new installation is led to its first post; later the overview has
// what waits and what went out.
func TestDashboardOverview(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, nil)
	b.serve()
	page := b.want(http.StatusOK, "From nothing to the first post", http.MethodGet, "/", nil)
	for _, part := range []string{`<svg class="chart" viewBox="0 0 240 60" role="img"`, "no posts", "nothing waits", "$0.00 today"} {
		if !strings.Contains(page, part) {
			t.Errorf("the overview has no %q\n%s", part, page)
		}
	}
	b.scheduled("acme", "one", "text")
	page = b.mount(nil).want(http.StatusOK, "What waits", http.MethodGet, "/", nil)
	for part, want := range map[string]bool{"From nothing": false, "<dt>due within 24 h</dt><dd>": true} {
		if strings.Contains(page, part) != want {
			t.Errorf("the overview has %q: %t\n%s", part, !want, page)
		}
	}
}
