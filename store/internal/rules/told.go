package rules

import (
	"cmp"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// Told completes the representation of the request and its posts that events carry. The
// list of posts is never nil, so that it is encoded as a list.
func (r *Row) Told() store.Record {
	st := &r.Status
	st.Account, st.ID, st.Pruned = r.Account, r.ID, r.Pruned
	st.CostEstimateUSD = float64(r.CostMicros) / store.MicrosPerDollar
	if len(st.Metadata) == 0 {
		st.Metadata = nil
	}
	st.Posts = make([]jetpost.PostStatus, 0, len(r.Posts))
	for _, p := range r.Posts {
		told := jetpost.PostStatus{Index: p.Index, State: p.State, PostID: p.PostID, DeletedAt: p.DeletedAt}
		if p.State == jetpost.PostPosted {
			told.URL = jetpost.PostURL(p.PostID)
		}
		st.Posts = append(st.Posts, told)
	}
	st.LateBySeconds = 0
	if !st.PublishAt.IsZero() {
		st.LateBySeconds = int64(max(0, st.AcceptedAt.Sub(st.PublishAt)) / time.Second)
	}
	st.Total = len(r.Posts)
	st.Posted = st.Total - r.left()
	st.Unpublish = nil
	if d := r.Deletion; d != nil {
		st.Unpublish = &jetpost.UnpublishStatus{AskedAt: d.AskedAt, DoneAt: d.DoneAt, Reason: knownEnd(d.Reason), NextTryAt: d.NextAt}
	}
	told := r.Record
	told.Status.Reason, told.Status.NextTryAt = r.shownReason()
	return told
}

// shownReason is the reason as events show it, and when a held request is tried again.
// The reason has an end only if the end of the wait is known.
func (r *Row) shownReason() (reason *jetpost.Reason, nextTryAt time.Time) {
	reason = r.Status.Reason
	if r.Status.State != jetpost.StateHeld || reason == nil {
		return reason, time.Time{}
	}
	next := cmp.Or(r.HoldUntil, reason.Until)
	if known := knownEnd(reason); known != reason {
		return known, next
	}
	if next.Equal(reason.Until) {
		next = time.Time{}
	}
	return reason, next
}

// knownEnd is the reason without the time of the next try, if that time is not the end
// of the wait.
func knownEnd(reason *jetpost.Reason) *jetpost.Reason {
	if reason == nil || !slices.Contains(triedAgain(), reason.Code) {
		return reason
	}
	without := *reason
	without.Until = time.Time{}
	return &without
}

// triedAgain are the codes of waits that end when a try succeeds, whenever that is.
func triedAgain() []jetpost.Code {
	return []jetpost.Code{
		jetpost.CodeXUnavailable, jetpost.CodeMediaUnavailable, jetpost.CodeMediaProcessing, jetpost.CodeTokenRefreshFailed,
		jetpost.CodeNeedsNewerWorker, jetpost.CodeReconciling, jetpost.CodeKeyUnavailable,
	}
}
