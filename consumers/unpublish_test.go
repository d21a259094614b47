package consumers

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// unpublish requests the deletion of a request's posts, and runs the lane once.
func (b *doubtBundle) unpublish(t *testing.T, id string) store.Record {
	t.Helper()
	b.key = store.Key{Account: "acme", ID: id}
	_, err := b.ledger.Unpublish(t.Context(), b.key, time.Now())
	testkit.Must(t, err)
	b.run(t, b.h, "acme")
	return b.record(t, b.key)
}

// unpublished lets time pass until the deletion is done, or has failed.
func (b *doubtBundle) unpublished(t *testing.T) store.Record {
	t.Helper()
	for began := time.Now(); time.Since(began) < 12*time.Hour; sleep(time.Second) { // an endless loop ends
		r := b.record(t, b.key)
		if r.Deletion.NextAt.IsZero() {
			return r
		}
		sleep(time.Until(r.Deletion.NextAt))
		b.run(t, b.h, "acme")
	}
	t.Fatalf("it is not done: %+v", b.record(t, b.key).Status.Unpublish)
	return store.Record{}
}

// deletedInOrder returns the ids of the posts that X was asked to delete.
func (b *doubtBundle) deletedInOrder() (ids []string) {
	for _, call := range b.x.Calls() {
		if call.Endpoint == xsim.EndpointDeletePost {
			ids = append(ids, call.Path[strings.LastIndexByte(call.Path, '/')+1:])
		}
	}
	return ids
}

func postIDs(r store.Record) (ids []string) {
	for _, p := range r.Posts {
		ids = append(ids, p.PostID)
	}
	return ids
}

// TestUnpublish: a thread is deleted from its end, keeps its state, and is never sent
// again.
func TestUnpublish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.publish(t, "other", thread("other")...)
		b.publish(t, "thread", thread("one", "two", "three")...)
		r := b.unpublish(t, "thread")
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		testkit.Equal(t, "event", r.Event, jetpost.EventRequestUnpublished)
		testkit.Equal(t, "done", r.Status.Unpublish.DoneAt.IsZero(), false)
		for _, p := range r.Status.Posts {
			testkit.Equal(t, "deleted", p.DeletedAt.IsZero(), false)
		}
		b.texts(t, "acme", "other")
		want := postIDs(r)
		slices.Reverse(want)
		testkit.Equal(t, "last post first", strings.Join(b.deletedInOrder(), " "), strings.Join(want, " "))
		result, err := b.ledger.Replay(t.Context(), b.key, time.Now())
		testkit.Must(t, err)
		testkit.Equal(t, "replay", result.Unpublished && !result.Queued, true)
		b.run(t, b.h, "acme")
		b.texts(t, "acme", "other")
	})
}

// TestUnpublishDoubt: a post in doubt is reconciled first, with either result, and requests
// behind it do not wait for that.
func TestUnpublishDoubt(t *testing.T) {
	t.Parallel()
	for name, made := range map[string]bool{"it is live": true, "it is not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t)
				b.publish(t, "control", thread("control")...)
				b.faults(t, lost(2, made))
				b.publish(t, "thread", thread("one", "two", "three")...)
				b.want(t, b.key, jetpost.StateHeld, jetpost.CodeReconciling, 1)
				r := b.unpublish(t, "thread")
				testkit.Equal(t, "reason", r.Status.Unpublish.Reason.Code, jetpost.CodeReconciling)
				testkit.Equal(t, "nothing is deleted before that is known", len(b.deletedInOrder()), 0)
				b.publish(t, "behind", thread("behind")...)
				b.want(t, b.key, jetpost.StatePublished, "", 1)

				b.key.ID = "thread"
				r = b.unpublished(t)
				testkit.Equal(t, "state", r.Status.State, jetpost.StateCancelled)
				testkit.Equal(t, "event", r.Event, jetpost.EventRequestUnpublished)
				testkit.Equal(t, "done", r.Status.Unpublish.DoneAt.IsZero(), false)
				state := map[bool]jetpost.PostState{true: jetpost.PostPosted, false: jetpost.PostPending}[made]
				testkit.Equal(t, "post in doubt", r.Posts[1].State, state)
				b.texts(t, "acme", "control", "behind")
			})
		})
	}
}

// TestUnpublishUnknownDoubt: if X does not show what became of a post, a person decides,
// and the deletion goes on.
func TestUnpublishUnknownDoubt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.publish(t, "control", thread("control")...)
		b.faults(t, lost(1, false))
		b.publish(t, "one", thread("one")...)
		b.faults(t)
		b.deleteByHand(t, b.record(t, store.Key{Account: "acme", ID: "control"}).Posts[0].PostID) // the anchor post
		b.unpublish(t, "one")
		r := b.unpublished(t)
		testkit.Equal(t, "reason", r.Status.Unpublish.Reason.Code, jetpost.CodeOutcomeUnknown)
		testkit.Equal(t, "done", r.Status.Unpublish.DoneAt.IsZero(), true)
		state, err := b.ledger.Resolve(t.Context(), b.key, "", time.Now())
		testkit.Must(t, err)
		testkit.Equal(t, "state", state, jetpost.StateCancelled)
		testkit.Equal(t, "done", b.record(t, b.key).Status.Unpublish.DoneAt.IsZero(), false)
		b.texts(t, "acme")
	})
}

// TestUnpublishLostAnswer: a deletion is repeated if X's answer was lost, whether it took
// effect or not.
func TestUnpublishLostAnswer(t *testing.T) {
	t.Parallel()
	for name, made := range map[string]bool{"it took effect": true, "it did not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t)
				b.publish(t, "thread", thread("one", "two")...)
				b.faults(t, xsim.Fault{Kind: xsim.FaultCut, After: made, Endpoint: xsim.EndpointDeletePost, Times: 1})
				r := b.unpublish(t, "thread")
				testkit.Equal(t, "reason", r.Status.Unpublish.Reason.Code, jetpost.CodeXUnavailable)
				r = b.unpublished(t)
				testkit.Equal(t, "done", r.Status.Unpublish.DoneAt.IsZero(), false)
				b.texts(t, "acme")
				ids := postIDs(r)
				testkit.Equal(t, "calls", strings.Join(b.deletedInOrder(), " "), strings.Join([]string{ids[1], ids[1], ids[0]}, " "))
			})
		})
	}
}

// TestUnpublishWaits: a deletion that waits for X's window does not hold posts.
func TestUnpublishWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.publish(t, "thread", thread("one", "two", "three")...)
		testkit.Must(t, b.x.SetLimits([]xsim.Limit{{Endpoint: xsim.EndpointDeletePost, Scope: xsim.ScopeUser, Max: 2, WindowMS: 900_000}}))
		r := b.unpublish(t, "thread")
		testkit.Equal(t, "reason", r.Status.Unpublish.Reason.Code, jetpost.CodeRateLimited)
		b.texts(t, "acme", "one")
		b.publish(t, "behind", thread("behind")...)
		b.want(t, b.key, jetpost.StatePublished, "", 1)
		b.texts(t, "acme", "one", "behind")
		b.key.ID = "thread"
		r = b.unpublished(t)
		testkit.Equal(t, "done", r.Status.Unpublish.DoneAt.IsZero(), false)
		b.texts(t, "acme", "behind")
		testkit.Equal(t, "calls", b.calls(xsim.EndpointDeletePost), 3)
	})
}

// TestUnpublishWhilePaused: a person's pause holds only posts. A block of the account also
// holds deletions, which probe when it is over.
func TestUnpublishWhilePaused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.publish(t, "one", thread("one")...)
		b.publish(t, "two", thread("two")...)
		testkit.Must(t, b.ledger.PauseAccount(t.Context(), "acme", jetpost.AccountPause(time.Now(), time.Time{}, "something is wrong")))
		b.publish(t, "held", thread("held")...)
		b.unpublish(t, "one")
		b.texts(t, "acme", "two")
		b.want(t, store.Key{Account: "acme", ID: "held"}, jetpost.StateHeld, jetpost.CodeAccountPaused, 0)
		_, err := b.ledger.ResumeAccount(t.Context(), "acme", time.Now())
		testkit.Must(t, err)
		b.run(t, b.h, "acme")

		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Variant: "suspended", Times: 3})
		r := b.unpublish(t, "two")
		testkit.Equal(t, "reason", r.Status.Unpublish.Reason.Code, jetpost.CodeAccountSuspended)
		r = b.unpublished(t)
		testkit.Equal(t, "done", r.Status.Unpublish.DoneAt.IsZero(), false)
		b.texts(t, "acme", "held")
		account, err := b.ledger.Account(t.Context(), "acme")
		testkit.Must(t, err)
		testkit.Equal(t, "blocked", account.Pause.Blocked(time.Now()), false)
	})
}

// TestUnpublishGivenUp: a deletion that X refuses for good fails, blames neither the
// account nor the app, and is tried again when it is requested again.
func TestUnpublishGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.publish(t, "one", thread("one")...)
		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Endpoint: xsim.EndpointDeletePost, Detail: "You are not permitted to delete that."})
		for range refusalsInARow + 1 {
			r := b.unpublish(t, "one")
			testkit.Equal(t, "reason", r.Status.Unpublish.Reason.Code, jetpost.CodeRefusedByX)
			testkit.Equal(t, "X's words", strings.Contains(r.Status.Unpublish.Reason.Detail, "not permitted to delete that"), true)
			testkit.Equal(t, "it goes on", r.Status.Unpublish.NextTryAt.IsZero(), true)
		}
		testkit.Equal(t, "calls", b.calls(xsim.EndpointDeletePost), refusalsInARow+1)
		b.publish(t, "behind", thread("behind")...)
		b.want(t, b.key, jetpost.StatePublished, "", 1)
		b.faults(t)
		r := b.unpublish(t, "one")
		testkit.Equal(t, "done", r.Status.Unpublish.DoneAt.IsZero(), false)
		b.texts(t, "acme", "behind")
	})
}

// TestUnpublishedIsNoAnchor: X need not show a post that jetpost deleted, and a doubt about
// another post is settled all the same. If the post was deleted by hand, it is not: see
// TestReconcileDeletedParent.
func TestUnpublishedIsNoAnchor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.publish(t, "control", thread("control")...)
		sleep(time.Minute)
		b.publish(t, "latest", thread("latest")...)
		b.unpublish(t, "latest")
		b.faults(t, lost(1, false))
		b.publish(t, "next", thread("next")...)
		r, _ := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		b.texts(t, "acme", "control", "next")
	})
}

// TestReplyToUnpublished: X refuses a reply to a deleted post. The reply does not wait for
// it, although the post is recent.
func TestReplyToUnpublished(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.publish(t, "one", thread("one")...)
		reply := jetpost.Post{Text: "reply", InReplyToPostID: b.record(t, b.key).Posts[0].PostID}
		b.unpublish(t, "one")
		b.publish(t, "reply", reply)
		b.want(t, b.key, jetpost.StateFailed, jetpost.CodeRefusedByX, 0)
	})
}

// TestUnpublishPoison: after some workers have died on a deletion, it fails, and the queue
// goes on.
func TestUnpublishPoison(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.publish(t, "one", thread("one")...)
		b.publish(t, "two", thread("two")...)
		b.key.ID = "one"
		_, err := b.ledger.Unpublish(t.Context(), b.key, time.Now())
		testkit.Must(t, err)
		for range poisonClaims {
			_, claimed, err := b.ledger.ClaimLane(t.Context(), "acme", "dies", time.Second, time.Now())
			testkit.Must(t, err)
			testkit.Equal(t, "claimed", claimed, true)
			sleep(2 * time.Second)
		}
		b.publish(t, "behind", thread("behind")...)
		b.want(t, b.key, jetpost.StatePublished, "", 1)
		b.key.ID = "one"
		testkit.Equal(t, "reason", b.record(t, b.key).Status.Unpublish.Reason.Code, jetpost.CodePoison)
		r := b.unpublish(t, "one")
		testkit.Equal(t, "done", r.Status.Unpublish.DoneAt.IsZero(), false)
		b.texts(t, "acme", "two", "behind")
	})
}

// deletingAnswers are the cases of the table of deletions.
func deletingAnswers(now time.Time) map[string]http.HandlerFunc {
	const deleted = `{"data":{"deleted":true}}`
	cases := commonAnswers(now)
	maps.Copy(cases, map[string]http.HandlerFunc{
		"deleted":             says(200, deleted),
		"deleted-before":      says(200, `{"data":{"deleted":false}}`),
		"deleted-with-errors": says(200, strings.TrimSuffix(deleted, "}")+`,"errors":[{"title":"Field Hydration Failure","detail":"A field is missing."}]}`),
		"no-word":             says(200, `{"data":{}}`),
		"errors-only":         says(200, `{"errors":[{"title":"Internal","detail":"Something is broken."}]}`),
		"empty":               says(200, ""),
		"garbage":             says(200, deleted[:15]),
		"html":                says(200, page, "Content-Type", "text/html"),
		"no-content":          says(204, ""),
		"cut-body":            cuts(200, deleted),
		"not-yours":           forbidden("You are not authorized to delete this post."),
	})
	return cases
}

// TestDeletingAnswers runs every row of the table of deletions.
func TestDeletingAnswers(t *testing.T) {
	t.Parallel()
	b := offline(t)
	runRows(t, "Deleting", deletingAnswers(time.Now()), func(t *testing.T, row errorRow) {
		t.Helper()
		s := newScene(t, b, row, xapi.EndpointDeletePost)
		s.answer = deletingAnswers(time.Now())[row["case"]]
		s.connect(t)
		s.run(t, s.lane, s.key.Account)
		s.want(t, s.key, jetpost.StatePublished, "", 1)
		_, err := s.ledger.Unpublish(t.Context(), s.key, time.Now())
		testkit.Must(t, err)
		s.deletes(t)
	})
}

// deletes runs the lane, and compares the result of the deletion with the row.
func (s *postScene) deletes(t *testing.T) {
	t.Helper()
	heard := s.tries(t)
	asked := time.Now()
	s.run(t, s.lane, s.key.Account)
	testkit.Equal(t, "calls", s.heard.Load(), heard)
	testkit.Equal(t, "calls to elsewhere", s.strayed.Load(), 0)
	r := s.record(t, s.key)
	testkit.Equal(t, "deleted", !r.Posts[0].DeletedAt.IsZero(), s.row["verdict"] == "deleted")
	o := outcome{verdict: "held", until: r.Deletion.NextAt}
	switch reason := r.Deletion.Reason; {
	case reason == nil:
		o.verdict = "deleted"
	case reason.Code == jetpost.CodeAppPaused && s.stops.Pause.Target == string(admission.TargetPublish):
		o = outcome{"pause", string(s.stops.Pause.Reason.Code), s.stops.Pause.NextAt()}
	case blocks(reason.Code):
		o.verdict, o.code = "blocked", string(reason.Code)
	case r.Deletion.NextAt.IsZero():
		o.verdict, o.code = "given up", string(reason.Code)
	default:
		o.code = string(reason.Code)
	}
	testkit.Equal(t, "verdict", o.verdict, s.row["verdict"])
	testkit.Equal(t, "code", o.code, s.row["code"])
	testkit.Equal(t, "until", untilWhat(o.until, asked, r.Deletion.Holds), s.row["until"])
	if r.Deletion.Reason != nil {
		s.wantWords(t, r.Deletion.Reason)
	}
}
