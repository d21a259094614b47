package consumers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// customersWord stands in everything that the customer who leaves has written.
const customersWord = "words-of-a-customer-who-leaves"

func (b *testBundle) eraser(t *testing.T, ledger store.Store) *Eraser {
	t.Helper()
	e, err := NewEraser(t.Context(), EraserConfig{
		Ledger: ledger, JetStream: b.js, Names: b.names, Outbox: b.relay(), X: b.refresher().X.(*xapi.OAuth), Worker: "eraser", Log: b.log,
	})
	testkit.Must(t, err)
	return e
}

// leave has an account with a request in every state, with media, events, a dead letter, a
// refusal and a job that no worker has taken; and another account beside it.
func (b *testBundle) leave(t *testing.T) {
	t.Helper()
	b.account(t, "leaver", 0)
	b.account(t, "acme", 0)
	b.put(t, "own.png", "shared.png", "queued.png", "others.png")
	posts := func(object string) []jetpost.Post {
		return []jetpost.Post{{Text: customersWord + " " + object, Media: []jetpost.Media{{Object: object}}}}
	}
	later := time.Now().Add(time.Hour)
	b.accept(t, jetpost.Request{Account: "leaver", ID: "live", Posts: posts("own.png"), Metadata: map[string]string{"note": customersWord}})
	b.run(t, b.lane(), "leaver")
	b.want(t, store.Key{Account: "leaver", ID: "live"}, jetpost.StatePublished, "", 1)
	b.accept(t, jetpost.Request{Account: "leaver", ID: "late", ExpiresAt: time.Now().Add(time.Minute), Posts: posts("shared.png")})
	_, err := b.ledger.ExpireLate(t.Context(), "leaver", later, 10, time.Now())
	testkit.Must(t, err)
	testkit.Must(t, b.relay().Announce(t.Context(), store.Key{Account: "leaver", ID: "late"}))
	b.accept(t, jetpost.Request{Account: "leaver", ID: "waits", PublishAt: later, Posts: posts("own.png")})
	b.accept(t, jetpost.Request{Account: "acme", ID: "stays", PublishAt: later, Posts: []jetpost.Post{{Text: "stays", Media: []jetpost.Media{{Object: "shared.png"}, {Object: "others.png"}}}}})
	refused, err := json.Marshal(map[string]any{"posts": posts("own.png"), "id": "refused", "no-field": 1})
	testkit.Must(t, err)
	take(t, b.intake(), b.job("leaver", refused))
	_, err = b.pub.Publish(t.Context(), jetpost.Request{Account: "leaver", ID: "queued", Posts: posts("queued.png")})
	testkit.Must(t, err)
	testkit.Must(t, b.wakeups.Wake(t.Context(), "leaver"))
}

// begin does what the operation's first transaction does.
func (b *testBundle) beginErase(t *testing.T) store.Erasing {
	t.Helper()
	begun, err := b.ledger.BeginErase(t.Context(), "leaver", time.Now().UTC())
	testkit.Must(t, err)
	_, err = b.ledger.Disconnect(t.Context(), "leaver", time.Now())
	testkit.Must(t, err)
	testkit.Must(t, b.ledger.PauseAccount(t.Context(), "leaver", jetpost.AccountPause(time.Now(), time.Time{}, "erased")))
	return begun
}

// left finds a text in the files of NATS.
func (b *testBundle) left(t *testing.T, text string) (files []string) {
	t.Helper()
	root := b.server.StoreDir()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.Contains(path, "KV_") { // windows, which end by themselves
			return nil //nolint:nilerr // it is gone
		}
		content, err := os.ReadFile(path)
		if err == nil && bytes.Contains(content, []byte(text)) {
			files = append(files, strings.TrimPrefix(path, root))
		}
		return nil
	})
	testkit.Must(t, err)
	return files
}

// erased fails if anything of the account is left, but that its ids post nothing.
func (b *testBundle) erased(t *testing.T) {
	t.Helper()
	_, err := b.ledger.Account(t.Context(), "leaver")
	testkit.Equal(t, "the account is gone", errors.Is(err, store.ErrNotFound), true)
	for _, text := range []string{customersWord, ".leaver"} { // the latter in subjects
		if files := b.left(t, text); len(files) > 0 {
			t.Errorf("%q is in %v", text, files)
		}
	}
	testkit.Equal(t, "objects", fmt.Sprint(b.objects(t)), fmt.Sprint([]string{"others.png", "shared.png"}))
	b.want(t, store.Key{Account: "acme", ID: "stays"}, jetpost.StateScheduled, "", 0)
	testkit.Equal(t, "events of others", b.lastEvent(t, store.Key{Account: "acme", ID: "stays"}).Type, jetpost.EventRequestScheduled)
	testkit.Equal(t, "posts at X stay", len(b.x.Posts("leaver")), 1)
	if token, _ := b.x.CurrentToken("leaver"); !token.Revoked {
		t.Error("X still takes its tokens")
	}
}

// TestErase: nothing of an account is left in the ledger, in NATS' files and in the media
// store, X takes its tokens no more, and others keep theirs.
func TestErase(t *testing.T) {
	t.Parallel()
	for name, open := range gapDatabases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupOn(t, open)
			b.leave(t)
			for _, text := range []string{customersWord, ".leaver"} {
				testkit.Equal(t, text+" is there before", len(b.left(t, text)) > 0, true)
			}
			begun := b.beginErase(t)
			testkit.Equal(t, "begun", fmt.Sprint(begun.Requests, begun.Live), "3 1")
			e := b.eraser(t, b.ledger)
			testkit.Must(t, e.Erase(t.Context(), begun))
			b.erased(t)

			// What another worker was about to tell is removed, too, a minute later.
			testkit.Must(t, b.deadLetters.Event(t.Context(), b.names.EventSubject(jetpost.EventRequestCancelled, "leaver", "waits"), jetpost.Event{EventID: customersWord}))
			testkit.Must(t, e.Resume(t.Context(), begun.AskedAt.Add(-time.Second)))
			testkit.Equal(t, "too early", len(b.left(t, customersWord)) > 0, true)
			testkit.Must(t, e.Resume(t.Context(), time.Now()))
			b.erased(t)
			all, err := b.ledger.Erasing(t.Context())
			testkit.Must(t, err)
			testkit.Equal(t, "to be erased", len(all), 0)

			// Who comes back begins anew, and an old id posts nothing.
			b.account(t, "leaver", 0)
			testkit.Must(t, e.Erase(t.Context(), begun))
			_, err = b.ledger.Account(t.Context(), "leaver")
			testkit.Must(t, err)
			again := b.accept(t, jetpost.Request{Account: "leaver", ID: "waits", Posts: thread("again")})
			testkit.Equal(t, "an old id", b.record(t, again).Pruned, true)
			b.run(t, b.lane(), "leaver")
			testkit.Equal(t, "posts", len(b.x.Posts("leaver")), 1)
		})
	}
}

// diesLedger fails as that of a worker which is killed at a step of an erasing, before or
// after its commit. Each step has one worker that dies there.
type diesLedger struct {
	store.Store
	late bool // the step takes effect before the worker dies
	dead bool
	died map[string]bool // the steps at which a worker has died
}

var errDied = errors.New("killed")

func (l *diesLedger) step(name string, do func() error) error {
	if l.dead {
		return errDied
	}
	if l.dead = !l.died[name]; !l.dead {
		return do()
	}
	l.died[name] = true
	if l.late {
		return errors.Join(do(), errDied)
	}
	return errDied
}

func (l *diesLedger) Cancel(ctx context.Context, key store.Key, now time.Time) (state jetpost.State, err error) {
	err = l.step("cancel", func() error { state, err = l.Store.Cancel(ctx, key, now); return err })
	return state, err
}

func (l *diesLedger) ClaimLane(ctx context.Context, account, worker string, _ time.Duration, now time.Time) (lane store.Claim, ok bool, err error) {
	err = l.step("claim", func() error {
		lane, ok, err = l.Store.ClaimLane(ctx, account, worker, time.Millisecond, now) // which is over when the next one comes
		return err
	})
	return lane, ok, err
}

func (l *diesLedger) ExtendLane(context.Context, store.Claim, time.Duration, time.Time) error {
	return nil
}

func (l *diesLedger) ForgetPair(ctx context.Context, token store.Token) error {
	return l.step("forget pair", func() error { return l.Store.ForgetPair(ctx, token) })
}

func (l *diesLedger) EraseRequests(ctx context.Context, lane store.Claim, ids []string, now time.Time) error {
	return l.step("requests", func() error { return l.Store.EraseRequests(ctx, lane, ids, now) })
}

func (l *diesLedger) EraseAccount(ctx context.Context, lane store.Claim, now time.Time) (done bool, err error) {
	err = l.step("account", func() error { done, err = l.Store.EraseAccount(ctx, lane, now); return err })
	return done, err
}

func (l *diesLedger) EraseRest(ctx context.Context, account string) error {
	return l.step("rest", func() error { return l.Store.EraseRest(ctx, account) })
}

func (l *diesLedger) EndErase(ctx context.Context, account string) error {
	return l.step("end", func() error { return l.Store.EndErase(ctx, account) })
}

// TestWorkerDiesInErase: whatever a worker has done of an erasing when it dies, another one
// does the rest.
func TestWorkerDiesInErase(t *testing.T) {
	t.Parallel()
	for name, open := range gapDatabases() {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/late=%t", name, late), func(t *testing.T) {
				t.Parallel()
				b := setupOn(t, open)
				b.leave(t)
				b.beginErase(t)
				died := map[string]bool{}
				for dead := true; dead; {
					ledger := &diesLedger{Store: b.ledger, late: late, died: died}
					_ = b.eraser(t, ledger).Resume(t.Context(), time.Now()) // the next one finds what is left
					dead = ledger.dead
				}
				testkit.Equal(t, "workers that died", len(died), 7)
				b.erased(t)
				all, err := b.ledger.Erasing(t.Context())
				testkit.Must(t, err)
				testkit.Equal(t, "to be erased", len(all), 0)
			})
		}
	}
}

// TestEraseWaitsForTheLane: a worker that is at a post of the account ends it first, and
// what it tells of it is not lost.
func TestEraseWaitsForTheLane(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.leave(t)
	lane, ok, err := b.ledger.ClaimLane(t.Context(), "leaver", "worker", time.Minute, time.Now())
	testkit.Must(t, err)
	testkit.Equal(t, "claimed", ok, true)
	begun := b.beginErase(t)
	waiting := &claimsLedger{Store: b.ledger, failed: make(chan struct{}, 100)}
	done := make(chan error, 1)
	go func() { done <- b.eraser(t, waiting).Erase(t.Context(), begun) }()
	<-waiting.failed
	_, err = b.ledger.Request(t.Context(), store.Key{Account: "leaver", ID: "live"})
	testkit.Must(t, err)
	snapshot, err := b.ledger.Snapshot(t.Context(), lane, time.Now())
	testkit.Must(t, err)
	released, err := b.ledger.ReleaseLane(t.Context(), lane, snapshot.Generation, time.Time{}, time.Now())
	testkit.Must(t, err)
	testkit.Equal(t, "released", released, true)
	testkit.Must(t, <-done)
	b.erased(t)
}

// claimsLedger tells of claims that failed.
type claimsLedger struct {
	store.Store
	failed chan struct{}
}

func (l *claimsLedger) ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (store.Claim, bool, error) {
	claim, ok, err := l.Store.ClaimLane(ctx, account, worker, lease, now)
	if err == nil && !ok {
		l.failed <- struct{}{}
	}
	return claim, ok, err
}
