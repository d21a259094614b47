package store

import (
	"time"

	"github.com/jetpost/jetpost"
)

// PauseChange is the latest change of an account's pause, which an event must report.
// Account, event and time identify it.
type PauseChange struct {
	Account string
	Event   jetpost.EventType
	// Reason is that of a pause that holds; zero if the pause was ended.
	Reason jetpost.Reason
	At     time.Time
}

// PauseChange is the change that an event must report if another pause, or none,
// replaces the lane's; the zero value is no change. A pause that ends by itself is not
// reported, and neither is one that continues for what X says.
func (l LaneRow) PauseChange(holds Pause, account string, now time.Time) PauseChange {
	was, at := l.Pause, l.At(now)
	t := PauseChange{Account: account, Reason: holds.Reason, At: at}
	switch before, after := was.Active(at), holds.Active(at); {
	case after && holds.ByHand():
		t.Event = jetpost.EventAccountPaused
	case after && was.Blocked(at) && was.Reason.Code == holds.Reason.Code:
		return PauseChange{}
	case after:
		t.Event = jetpost.EventAccountBlocked
	case before && was.ByHand():
		t.Event, t.Reason = jetpost.EventAccountResumed, jetpost.Reason{}
	case before:
		t.Event, t.Reason = jetpost.EventAccountUnblocked, jetpost.Reason{}
	default:
		return PauseChange{}
	}
	return t
}
