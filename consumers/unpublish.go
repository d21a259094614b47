package consumers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// unpublishRetry is the wait before a deletion is tried again if its hold has no end because
// a person has to act. No wake-up follows on every such act.
const unpublishRetry = 15 * time.Minute

// unpublish takes one step of the account's earliest deletion. A step may be repeated after a
// worker has died.
func (r *laneRun) unpublish(ctx context.Context, generation int64) error {
	r.hear(true)
	var found bool
	rec, err := persist(ctx, r, "read deletions", func() (rec store.Record, err error) {
		rec, found, err = r.h.Ledger.Unpublishing(ctx, r.lane)
		return rec, err
	})
	if err != nil || !found {
		return err
	}
	rec.Holds = rec.Deletion.Holds // the holds of the request itself are over
	a := r.deletion(ctx, &rec)
	if errors.Is(a.err, store.ErrFenced) {
		return a.err
	}
	out, err := r.outcome(ctx, generation, a)
	if err != nil || out.State == "" {
		return err
	}
	if out.CheckAt.IsZero() && out.Reason.Until.IsZero() {
		out.CheckAt = out.Now.Add(unpublishRetry)
	}
	_, err = persist(ctx, r, "hold deletion", func() (struct{}, error) {
		return struct{}{}, r.h.Ledger.HoldUnpublish(ctx, r.lane, rec.ID, out)
	})
	if err != nil && !errors.Is(err, store.ErrNotRunnable) {
		return err
	}
	if err == nil {
		r.h.Observe.post(&rec, out)
	}
	outcomeLog(r.log.With("request", rec.ID), out).Info("unpublish.waits", "given_up", out.State != jetpost.StateHeld)
	r.h.Announce.try(ctx, rec.Key)
	return nil
}

// deletion is one step: first a post in doubt is reconciled, and then the last live post is
// deleted.
func (r *laneRun) deletion(ctx context.Context, rec *store.Record) attempt {
	if r.lane.LostClaims >= poisonClaims {
		r.lane.LostClaims = 0
		return r.settled(failWith(jetpost.CodePoison, fmt.Sprintf("%d workers in a row died on it", poisonClaims)))
	}
	request, err := jetpost.Decode(rec.Account, rec.Body)
	if err != nil && len(rec.Body) > 0 { // one that was rebuilt after a restore has none
		return r.settled(failWith(jetpost.CodeInvalidRequest, err.Error()))
	}
	_, _, doubt := resume(rec)
	if doubt >= 0 && time.Now().Before(r.checkFrom(rec.Posts[doubt])) {
		return r.doubtful(rec, doubt, "the worker that sent it was lost")
	}
	if err := r.lift(ctx, rec, request); err != nil {
		return r.left(rec, err)
	}
	if r.pause.Blocked(time.Now()) { // a pause set by a person does not hold deletions
		return r.left(rec, &admission.WaitError{Reason: r.pause.Reason, CheckAt: r.pause.NextAt()})
	}
	token, err := r.token(ctx)
	if err != nil {
		return r.left(rec, err)
	}
	if scope := missingScope(token.Scope, nil); scope != "" {
		return r.settled(blockAccount(needsScope, "the account was connected without "+scope))
	}
	client := r.h.Client(rec.Account, token.Access.Reveal())
	if doubt >= 0 {
		return r.renewing(ctx, rec, token, r.reconcile(ctx, client, rec, doubt, request.Posts[doubt]))
	}
	return r.renewing(ctx, rec, token, r.deleteLast(ctx, client, rec))
}

// deleteLast deletes the last post that is live.
func (r *laneRun) deleteLast(ctx context.Context, client *xapi.Client, rec *store.Record) attempt {
	i := len(rec.Posts) - 1
	for i >= 0 && (rec.Posts[i].State != jetpost.PostPosted || !rec.Posts[i].DeletedAt.IsZero()) {
		i--
	}
	if i < 0 {
		return r.settled(goOn())
	}
	postID := rec.Posts[i].PostID
	_, err := admission.Call(ctx, r.pass, admission.Calls{Endpoint: xapi.EndpointDeletePost, N: 1}, func() (struct{}, error) {
		return struct{}{}, client.DeletePost(ctx, postID)
	})
	if err != nil && !gone(err) {
		return r.left(rec, fmt.Errorf("delete post %d of %d: %w", i+1, len(rec.Posts), err))
	}
	_, err = persist(ctx, r, "deleted", func() (struct{}, error) {
		return struct{}{}, r.h.Ledger.PostDeleted(ctx, r.lane, rec.ID, i, time.Now())
	})
	if err == nil {
		r.h.Observe.tell(PostSettled, PostDeletion, 0)
		r.log.Info("post.deleted", "request", rec.ID, "post", i, "post_id", postID, "of", len(rec.Posts))
		r.h.Announce.try(ctx, rec.Key)
	}
	return attempt{decision: goOn(), post: -1, err: err}
}

// gone reports whether X says in words that the post does not exist. A 404 without words is a
// fault of X's routing.
func gone(err error) bool {
	var refused *xapi.RefusedError
	return errors.As(err, &refused) && refused.Kind == xapi.RefusedNotFound
}
