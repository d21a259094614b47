package rules_test

import (
	"testing"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

func TestClaimByHandRemembersNothing(t *testing.T) {
	t.Parallel()
	byHand, head := claim, row(jetpost.StateQueued, "p")
	if remembersNothing(t, byHand, head); rules.CacheOf(byHand) != nil {
		t.Error("a claim that was built by hand has a cache")
	}
	cache := &rules.ClaimCache{}
	byDriver := claim
	byDriver.Memory = cache
	remembersNothing(t, byDriver, head)
	cache.Saw(laneRow, store.Snapshot{Generation: generation}, head, true)
	if snapshot, found := byDriver.Next(); !found || snapshot.Generation != generation {
		t.Errorf("next: got %+v, %t", snapshot, found)
	}
	if _, found := byDriver.Next(); found {
		t.Error("next: handed out twice")
	}
	_, rule, _ := cache.Head(head.ID)
	rule.Posts[0].State = jetpost.PostPosted // by a step that failed
	if known, r, found := cache.Head(head.ID); !found || r.Posts[0].State != jetpost.PostPending || known.Fence != fence {
		t.Errorf("head: got %+v, %+v, %t, want it as it was read", known, r, found)
	}
}

// remembersNothing also calls what a driver calls, for which a claim by hand has no place.
func remembersNothing(t *testing.T, claim store.Claim, head *rules.Row) {
	t.Helper()
	cache := rules.CacheOf(claim)
	cache.Saw(laneRow, store.Snapshot{}, nil, false)
	cache.Forget()
	if claim.Memory == nil {
		cache.Saw(laneRow, store.Snapshot{}, head, true)
		cache.Write(head)
		cache.SawToken(nil, store.SealedToken{})
		cache.Marked(store.Revision{Key: head.Key, Number: 1}, false)
		if claim.Told(store.Revision{Key: head.Key, Number: 1}) {
			t.Error("told: a mark waits for a step that nothing remembers")
		}
	}
	claim.Untold(head.Key)
	_, next := claim.Next()
	_, token := claim.Token()
	_, wrote := claim.Wrote(head.ID)
	_, _, known := cache.Head(head.ID)
	if next || token || wrote || known || cache.Mark().Number != 0 || len(claim.Moved()) > 0 {
		t.Errorf("got next %t, token %t, wrote %t, head %t, mark %v, want nothing", next, token, wrote, known, cache.Mark())
	}
}
