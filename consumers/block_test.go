package consumers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// told records the account events.
type told struct {
	silentDeadLetters
	events []string
}

func (r *told) Event(_ context.Context, _ string, e jetpost.Event) error {
	if e.Account != nil {
		text := string(e.Type)
		if e.Account.Reason != nil {
			text += " " + string(e.Account.Reason.Code)
		}
		r.events = append(r.events, text)
	}
	return nil
}

// blockable is an account with six due jobs, none of them sent to X.
func blockable(t *testing.T) (*doubtBundle, *told) {
	t.Helper()
	b, deadLetters := doubt(t), &told{}
	b.h.Announce.DeadLetters = deadLetters
	return b, deadLetters
}

// change sets the state and the scope of the account at X.
func (b *doubtBundle) change(t *testing.T, state, scope string) {
	t.Helper()
	change := xsim.AccountChange{State: &state}
	if scope != "" {
		change.Scope = &scope
	}
	_, err := b.x.ChangeAccount("acme", change)
	testkit.Must(t, err)
}

var six = []string{"j1", "j2", "j3", "j4", "j5", "j6"}

// wantQueue fails unless all six jobs are in that state for that reason.
func (b *doubtBundle) wantQueue(t *testing.T, state jetpost.State, code jetpost.Code, posted int) {
	t.Helper()
	for _, id := range six {
		b.want(t, store.Key{Account: "acme", ID: id}, state, code, posted)
	}
}

// TestBlockedAccount: a block of an account fails none of its jobs. Reads at growing
// intervals find out when it is over.
func TestBlockedAccount(t *testing.T) {
	t.Parallel()
	for state, code := range map[string]jetpost.Code{
		xsim.AccountSuspended: jetpost.CodeAccountSuspended, xsim.AccountLocked: jetpost.CodeAccountLocked,
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, deadLetters := blockable(t)
				b.change(t, state, "")
				for _, id := range six {
					b.publish(t, id, thread(id)...)
				}
				b.wantQueue(t, jetpost.StateHeld, code, 0)
				testkit.Equal(t, "posts tried", b.calls(xsim.EndpointCreatePost), 1)
				account, err := b.ledger.Account(t.Context(), "acme")
				testkit.Must(t, err)
				testkit.Equal(t, "the account's reason", account.Pause.Reason.Code, code)
				testkit.Equal(t, "it has X's words", account.Pause.Reason.Detail != "", true)

				for range 24 * 60 / 5 { // a day, with a run every five minutes
					sleep(5 * time.Minute)
					b.run(t, b.h, "acme")
					testkit.Must(t, b.h.Announce.AnnouncePauseChanges(t.Context(), "")) // as sweeps do
				}
				testkit.Equal(t, "posts tried in a day", b.calls(xsim.EndpointCreatePost), 1)
				testkit.Equal(t, "reads in a day", b.calls(xsim.EndpointMe), 5) // after 1, 2, 4, 8 and 8 hours
				b.wantQueue(t, jetpost.StateHeld, code, 0)

				b.change(t, "", "")
				sleep(8 * time.Hour)
				b.run(t, b.h, "acme")
				b.wantQueue(t, jetpost.StatePublished, "", 1)
				b.texts(t, "acme", six...)
				testkit.Equal(t, "events", fmt.Sprint(deadLetters.events), fmt.Sprintf("[account.blocked %s account.unblocked]", code))
			})
		})
	}
}

// TestBlockedAccountResumed: a person who resumes need not wait for the next probe. If the
// block comes back soon, it is probed as rarely as before.
func TestBlockedAccountResumed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := blockable(t)
		b.change(t, xsim.AccountSuspended, "")
		for _, id := range six {
			b.publish(t, id, thread(id)...)
		}
		b.change(t, "", "")
		b.run(t, b.h, "acme")
		b.wantQueue(t, jetpost.StateHeld, jetpost.CodeAccountSuspended, 0)
		was, err := b.ledger.ResumeAccount(t.Context(), "acme", time.Now())
		testkit.Must(t, err)
		testkit.Equal(t, "what was resumed", was.Reason.Code, jetpost.CodeAccountSuspended)
		b.run(t, b.h, "acme")
		b.texts(t, "acme", six...)
	})
}

// TestBlockedAccountCancelled: requests behind the one that met the block do not wait for
// it after it is cancelled.
func TestBlockedAccountCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := blockable(t)
		b.change(t, xsim.AccountSuspended, "")
		for _, id := range six {
			b.publish(t, id, thread(id)...)
		}
		_, err := b.ledger.Cancel(t.Context(), store.Key{Account: "acme", ID: six[0]}, time.Now())
		testkit.Must(t, err)
		b.run(t, b.h, "acme")
		b.change(t, "", "")
		sleep(time.Hour)
		b.run(t, b.h, "acme")
		b.texts(t, "acme", six[1:]...)
	})
}

// TestBlockedWhilePaused: a block leaves a person's pause in force.
func TestBlockedWhilePaused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := blockable(t)
		b.change(t, xsim.AccountSuspended, "")
		b.h.Ledger = &ledgerHook{Store: b.ledger, after: nth("begin", 1, func() error {
			return b.ledger.PauseAccount(t.Context(), "acme", jetpost.AccountPause(time.Now(), time.Time{}, "holidays"))
		})}
		b.publish(t, "j1", thread("j1")...)
		b.want(t, b.key, jetpost.StateHeld, jetpost.CodeAccountPaused, 0)
		account, err := b.ledger.Account(t.Context(), "acme")
		testkit.Must(t, err)
		testkit.Equal(t, "the pause", account.Pause.Reason.Detail, "holidays")
	})
}

// TestUnauthorizedAtEveryTry: if X refuses even renewed tokens, the account is blocked, and
// no request fails.
func TestUnauthorizedAtEveryTry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, deadLetters := blockable(t)
		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusUnauthorized, Endpoint: xsim.EndpointCreatePost, Times: 1000},
			xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusUnauthorized, Endpoint: xsim.EndpointMe, Times: 1})
		for _, id := range six {
			b.publish(t, id, thread(id)...)
		}
		for range 24 * 60 {
			sleep(time.Minute)
			b.run(t, b.h, "acme")
		}
		b.wantQueue(t, jetpost.StateHeld, jetpost.CodeAccountUnauthorized, 0)
		if n := b.calls(xsim.EndpointCreatePost); n > 30 {
			t.Errorf("X was asked %d times in a day", n)
		}
		testkit.Equal(t, "is told", slices.Contains(deadLetters.events, "account.blocked account_unauthorized"), true)
	})
}

// TestAppRefused: a refusal of the app pauses it with X's words, and fails no request.
func TestAppRefused(t *testing.T) {
	t.Parallel()
	for variant, code := range map[string]jetpost.Code{
		"app-read-only": jetpost.CodeAppReadOnly, "app-suspended": jetpost.CodeAppSuspended, "client-forbidden": jetpost.CodeClientForbidden,
	} {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, _ := blockable(t)
				b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Variant: variant, Endpoint: xsim.EndpointCreatePost, Times: 1})
				b.publish(t, "j1", thread("j1")...)
				b.want(t, b.key, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
				pause, paused := b.h.Gate.Paused(publishers.TargetPublish, time.Now())
				testkit.Equal(t, "paused", paused, true)
				testkit.Equal(t, "for", pause.Reason.Code, code)
				testkit.Equal(t, "probed", pause.Probed(), true)
				testkit.Equal(t, "it has X's words", pause.Reason.Detail != "", true)
				b.settle(t)
				b.texts(t, "acme", "j1")
			})
		})
	}
}

// refuses has X refuse the given number of posts with words that no rule knows.
func (b *doubtBundle) refuses(t *testing.T, words string, times int) {
	t.Helper()
	b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Body: fmt.Sprintf(`{"title":"Forbidden","status":403,"detail":%q,"type":"about:blank"}`, words), Endpoint: xsim.EndpointCreatePost, Times: times})
}

// TestUnruledRefusals: after three refusals in a row, with words that no rule knows, the
// rest of the queue waits for a person.
func TestUnruledRefusals(t *testing.T) {
	t.Parallel()
	const words = "Your mood does not allow for that today."
	synctest.Test(t, func(t *testing.T) {
		b, deadLetters := blockable(t)
		b.refuses(t, words, 1000)
		for _, id := range six {
			b.publish(t, id, thread(id)...)
		}
		for range 24 {
			sleep(time.Hour)
			b.run(t, b.h, "acme")
		}
		for i, id := range six {
			if key := (store.Key{Account: "acme", ID: id}); i < refusalsInARow {
				b.want(t, key, jetpost.StateFailed, jetpost.CodeRefusedByX, 0)
			} else {
				b.want(t, key, jetpost.StateHeld, jetpost.CodeAccountRefused, 0)
			}
		}
		testkit.Equal(t, "posts tried in a day", b.calls(xsim.EndpointCreatePost), refusalsInARow)
		testkit.Equal(t, "reads in a day", b.calls(xsim.EndpointMe), 0)
		account, err := b.ledger.Account(t.Context(), "acme")
		testkit.Must(t, err)
		testkit.Equal(t, "it has X's words", strings.Contains(account.Pause.Reason.Detail, words), true)
		testkit.Equal(t, "events", fmt.Sprint(deadLetters.events), "[account.blocked account_refused]")

		b.faults(t)
		_, err = b.ledger.ResumeAccount(t.Context(), "acme", time.Now())
		testkit.Must(t, err)
		b.run(t, b.h, "acme")
		b.texts(t, "acme", six[refusalsInARow:]...)
	})
}

// TestUnruledRefusalsApart: a post that X accepts in between resets the count, and refusals
// that a rule knows do not count.
func TestUnruledRefusalsApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := blockable(t)
		for i := range 3 {
			b.refuses(t, "Your mood does not allow for that.", 2)
			b.publish(t, fmt.Sprint("a", i), thread(fmt.Sprint("a", i))...)
			b.publish(t, fmt.Sprint("b", i), thread(fmt.Sprint("b", i))...)
			sleep(time.Second)
			b.publish(t, fmt.Sprint("c", i), thread(fmt.Sprint("c", i))...)
			sleep(time.Second)
		}
		b.texts(t, "acme", "c0", "c1", "c2")
		b.refuses(t, "You are not allowed to create a Tweet with duplicate content.", 4)
		for i := range 5 {
			b.publish(t, fmt.Sprint("d", i), thread(fmt.Sprint("d", i))...)
		}
		b.texts(t, "acme", "c0", "c1", "c2", "d4")
	})
}

// TestUnruledRefusalsOfTheApp: the same words to three accounts pause the app.
func TestUnruledRefusalsOfTheApp(t *testing.T) {
	t.Parallel()
	const words = "This app's mood does not allow for that today."
	synctest.Test(t, func(t *testing.T) {
		b, _ := blockable(t)
		b.refuses(t, words, 1000)
		accounts := []string{"acme", "bob", "cyd", "dan"}
		for i, account := range accounts {
			if account != "acme" {
				b.account(t, account, 0)
			}
			b.publishFor(t, account, "j", thread("text of "+account)...)
			if i < refusingAccounts {
				b.want(t, b.key, jetpost.StateFailed, jetpost.CodeRefusedByX, 0)
			} else {
				b.want(t, b.key, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
			}
			sleep(time.Minute)
		}
		pause, paused := b.h.Gate.Paused(publishers.TargetPublish, time.Now())
		testkit.Equal(t, "paused", paused, true)
		testkit.Equal(t, "for", pause.Reason.Code, jetpost.CodeAppRefused)
		testkit.Equal(t, "probed", pause.Probed(), true)
		testkit.Equal(t, "it has X's words", strings.Contains(pause.Reason.Detail, words), true)
	})
}

// TestScopeMissing: a request does not begin if a scope is missing for one of its posts.
// Connecting the account again is enough to go on.
func TestScopeMissing(t *testing.T) {
	t.Parallel()
	const read, write, all = "tweet.read users.read offline.access", "tweet.read tweet.write users.read offline.access", "tweet.read tweet.write users.read offline.access media.write"
	for name, test := range map[string]struct{ scope, missing string }{
		"nothing is written without tweet.write": {read, "tweet.write"},
		"no media without media.write":           {write, "media.write"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, deadLetters := blockable(t)
				connect := func(scope string) {
					grant, err := b.x.AddAccount(xsim.NewAccount{Handle: "acme", Scope: scope})
					testkit.Must(t, err)
					b.importGrant(t, grant, time.Now())
				}
				connect(test.scope)
				b.publish(t, "thread", jetpost.Post{Text: "one"}, jetpost.Post{Text: "two"}, jetpost.Post{Text: "three", Media: []jetpost.Media{{Data: testImage(t), Alt: "x"}}})
				r := b.want(t, b.key, jetpost.StateHeld, jetpost.CodeAccountScopeMissing, 0)
				testkit.Equal(t, "detail", r.Status.Reason.Detail, "the account was connected without "+test.missing)
				for endpoint := range b.x.Counts() {
					testkit.Equal(t, "calls to "+endpoint, b.calls(endpoint), 0)
				}
				sleep(time.Hour)
				b.publish(t, "next", thread("next")...)
				b.want(t, b.key, jetpost.StateHeld, jetpost.CodeAccountScopeMissing, 0)
				connect(all)
				b.run(t, b.h, "acme")
				b.published(t, "thread", 3)
				b.published(t, "next", 1)
				testkit.Equal(t, "events", fmt.Sprint(deadLetters.events), "[account.blocked account_scope_missing account.unblocked]")
			})
		})
	}
	t.Run("texts go on without media.write", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b, _ := blockable(t)
			grant, err := b.x.AddAccount(xsim.NewAccount{Handle: "acme", Scope: write})
			testkit.Must(t, err)
			b.importGrant(t, grant, time.Now())
			b.publish(t, "thread", thread("one", "two")...)
			b.published(t, "thread", 2)
		})
	})
}

// TestFreshParent: a reply to a recent post is sent again until X shows its parent, and
// fails if X never does.
func TestFreshParent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := blockable(t)
		lags := xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Variant: "parent-gone", Endpoint: xsim.EndpointCreatePost, Skip: 1, Times: 3}
		b.faults(t, lags)
		b.publish(t, "thread", thread("one", "two", "three")...)
		b.want(t, b.key, jetpost.StateHeld, jetpost.CodeXUnavailable, 1)
		_, waited := b.settle(t)
		b.published(t, "thread", 3)
		b.texts(t, "acme", "one", "two", "three")
		if waited > time.Minute {
			t.Errorf("it waited %s", waited)
		}

		lags.Times = 1000
		b.faults(t, lags)
		b.publish(t, "gone", thread("four", "five")...)
		r, waited := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StateFailed)
		testkit.Equal(t, "posted", r.Status.Posted, 1)
		if waited < replicaLag-replicaWait || waited > replicaLag+time.Minute {
			t.Errorf("it failed after %s", waited)
		}

		b.h.Timing.Minute = time.Second // the lag belongs to X, as that of its timelines does
		b.faults(t, lags)
		b.publish(t, "gone-faster", thread("six", "seven")...)
		r, waited = b.settle(t)
		testkit.Equal(t, "posted", r.Status.Posted, 1)
		if waited < (replicaLag-replicaWait)/60 || waited > replicaLag/60+2*time.Second {
			t.Errorf("where a minute of X is a second, it failed after %s", waited)
		}
	})
}

// TestFreshParentElsewhere: the same holds for a reply to a post of another request.
func TestFreshParentElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := blockable(t)
		b.publish(t, "first", thread("one")...)
		reply := jetpost.Post{Text: "two", InReplyToPostID: b.record(t, b.key).Posts[0].PostID}
		lags := xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Variant: "parent-gone", Endpoint: xsim.EndpointCreatePost, Times: 3}
		b.faults(t, lags)
		b.publish(t, "reply", reply)
		b.want(t, b.key, jetpost.StateHeld, jetpost.CodeXUnavailable, 0)
		b.settle(t)
		b.published(t, "reply", 1)
		b.texts(t, "acme", "one", "two")

		lags.Times = 1000
		b.faults(t, lags)
		reply.Text = "three"
		b.publish(t, "late", reply)
		r, waited := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StateFailed)
		if waited > replicaLag+time.Minute {
			t.Errorf("it failed after %s", waited)
		}

		lags.Times = 1
		b.faults(t, lags)
		b.publish(t, "foreign", jetpost.Post{Text: "four", InReplyToPostID: "1234567890123456789"})
		b.want(t, b.key, jetpost.StateFailed, jetpost.CodeRefusedByX, 0)
	})
}

// TestMadeAt: the time is in the id.
func TestMadeAt(t *testing.T) {
	t.Parallel()
	testkit.Equal(t, "a post of 2022", madeAt("1600000000000000000").UTC().Format(time.DateTime), "2022-12-06 05:31:41")
	testkit.Equal(t, "no id", madeAt("x").IsZero(), true)
}

// TestSmallImagesFirst: an image that X does not accept ends a thread before its first
// post.
func TestSmallImagesFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := blockable(t)
		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusBadRequest, Endpoint: string(xapi.EndpointUploadMedia), Times: 1})
		b.publish(t, "thread", jetpost.Post{Text: "one"}, jetpost.Post{Text: "two", Media: []jetpost.Media{{Data: testImage(t)}}})
		b.want(t, b.key, jetpost.StateFailed, jetpost.CodeRefusedByX, 0)
		testkit.Equal(t, "posts", b.calls(xsim.EndpointCreatePost), 0)
	})
}

// TestCutOffImages: a truncated image is found before anything is sent. An image with data
// behind its end is complete.
func TestCutOffImages(t *testing.T) {
	t.Parallel()
	var plain bytes.Buffer
	testkit.Must(t, jpeg.Encode(&plain, image.NewGray(image.Rect(0, 0, 64, 64)), nil))
	preview := append([]byte("\xff\xd8\xff\xe1\x00\x08ab\xff\xd9cd"), plain.Bytes()[2:]...)
	webp := append([]byte("RIFF\x14\x00\x00\x00WEBPVP8L"), make([]byte, 12)...)
	for mime, whole := range map[string][]byte{
		"image/png": testImage(t), "image/jpeg": plain.Bytes(), "image/jpeg; preview": preview, "image/webp": webp,
	} {
		mime, _, _ = strings.Cut(mime, ";")
		testkit.Equal(t, "whole "+mime, cutOff(mime, whole), false)
		testkit.Equal(t, "with more "+mime, cutOff(mime, append(slices.Clone(whole), "more"...)), false)
		for _, n := range []int{len(whole) - 1, len(whole) - 2, len(whole) / 2, 20} {
			testkit.Equal(t, fmt.Sprintf("%s cut at %d", mime, n), cutOff(mime, whole[:n]), true)
		}
	}
	_, err := (&mediaSource{}).spool(bytes.NewReader(plain.Bytes()[:plain.Len()-2]), 0)
	var fault *mediaError
	testkit.Equal(t, "is refused", errors.As(err, &fault) && fault.code == jetpost.CodeMediaInvalid, true)
}

// accountEvents returns the events of the account acme, each once, in the order in which
// they first came, and the number of messages.
func (b *testBundle) accountEvents(t *testing.T) (events []string, messages int) {
	t.Helper()
	seen := map[string]string{}
	for at := uint64(1); ; at++ {
		s, err := b.js.Stream(t.Context(), b.names.EventsStream())
		testkit.Must(t, err)
		msg, err := s.GetMsg(t.Context(), at, jetstream.WithGetMsgSubject("jetpost.event.account.*.acme"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return events, messages
		}
		testkit.Must(t, err)
		var e jetpost.Event
		testkit.Must(t, json.Unmarshal(msg.Data, &e))
		text := string(e.Type)
		if e.Account.Reason != nil {
			text += " " + string(e.Account.Reason.Code)
		}
		if was, again := seen[e.EventID]; !again {
			events, seen[e.EventID] = append(events, text), string(msg.Data)
		} else {
			testkit.Equal(t, "an event that is told again", string(msg.Data), was)
		}
		at = msg.Sequence
		messages++
	}
}

// wantTold sweeps, and fails unless these are then the account's events. Further sweeps
// publish nothing.
func (b *testBundle) wantTold(t *testing.T, want ...string) {
	t.Helper()
	s := b.sweeper("next")
	testkit.Must(t, s.Sweep(t.Context()))
	events, once := b.accountEvents(t)
	testkit.Equal(t, "events", fmt.Sprint(events), fmt.Sprint(want))
	testkit.Must(t, s.Sweep(t.Context()))
	_, then := b.accountEvents(t)
	testkit.Equal(t, "messages after one more sweep", then, once)
}

// TestBlockedIsToldAtLast: the event of a block is published even if the worker dies at any
// point after the commit, or NATS does not answer then.
func TestBlockedIsToldAtLast(t *testing.T) {
	t.Parallel()
	const (
		upToBlock = "claim, token, begin, POST /2/tweets, block"
		toBeTold  = ", pause changes, jetpost.event.account.blocked, pause change told"
		told      = "account.blocked account_suspended"
	)
	first, last := len(strings.Split(upToBlock, ", ")), len(strings.Split(upToBlock+toBeTold, ", "))
	run := gapRun{
		posts: thread("one"), once: true, steps: upToBlock + toBeTold,
		work: func(b *testBundle, m *mortal) func(context.Context) error {
			return func(ctx context.Context) error { return b.mortalLane(m).Handle(ctx, b.wake("acme")) }
		},
		upset: func(t *testing.T, b *testBundle) {
			t.Helper()
			(&doubtBundle{testBundle: b}).change(t, xsim.AccountSuspended, "")
		},
	}
	for name, open := range gapDatabases() {
		for at := first; at <= last; at++ {
			g := gap{at: at}
			t.Run(name+"/dies in "+g.in(run.taken()), func(t *testing.T) {
				t.Parallel()
				b := run.begin(t, open)
				testkit.Equal(t, "steps", fmt.Sprint(run.victim(t, b, g)), fmt.Sprint(run.taken()[:at]))
				b.wantTold(t, told)
			})
		}
		t.Run(name+"/NATS is away", func(t *testing.T) {
			t.Parallel()
			b := run.begin(t, open)
			h := b.lane()
			h.Announce.DeadLetters = b.deadLettersAway(t)
			b.run(t, h, "acme")
			b.wantTold(t, told)
		})
	}
}

// deadLettersAway cannot reach NATS.
func (b *testBundle) deadLettersAway(t *testing.T) *publishers.DeadLetters {
	t.Helper()
	nc, js := natstest.Connect(t, b.server)
	nc.Close()
	return publishers.NewDeadLetters(js, b.names)
}

// TestPauseChangesAreToldAtLast: changes of an account's pause that were not published at
// once are published later. Of several changes, only the last is.
func TestPauseChangesAreToldAtLast(t *testing.T) {
	t.Parallel()
	for name, open := range gapDatabases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupOn(t, open)
			b.account(t, "acme", 0)
			pause := func() {
				t.Helper()
				testkit.Must(t, b.ledger.PauseAccount(t.Context(), "acme", jetpost.AccountPause(time.Now(), time.Time{}, "holidays")))
			}
			resume := func() {
				t.Helper()
				_, err := b.ledger.ResumeAccount(t.Context(), "acme", time.Now())
				testkit.Must(t, err)
			}
			block := func() {
				t.Helper()
				lane, claimed, err := b.ledger.ClaimLane(t.Context(), "acme", "worker", time.Minute, time.Now())
				testkit.Must(t, err)
				testkit.Equal(t, "claimed", claimed, true)
				_, err = b.ledger.BlockAccount(t.Context(), lane, jetpost.BlockedPause(time.Now(), jetpost.CodeAccountLocked, "X's words", time.Hour, time.Hour), time.Now())
				testkit.Must(t, err)
			}
			var want []string
			next := func(event string) {
				t.Helper()
				want = append(want, event)
				b.wantTold(t, want...)
			}
			pause()
			next("account.paused account_paused")
			resume()
			next("account.resumed")
			resume() // there is no pause
			b.wantTold(t, want...)
			block()
			next("account.blocked account_locked")
			resume()
			next("account.unblocked")
			pause()
			resume()
			next("account.resumed")
		})
	}
}
