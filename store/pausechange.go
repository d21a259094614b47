package store

import (
	"time"

	"github.com/jetpost/jetpost"
)

// PauseChange is what is to be told of an account's pause: how it changed last. The account, the
// event and the time name it.
type PauseChange struct {
	Account string
	Event   jetpost.EventType
	// Reason is that of a pause that holds; zero of one that was ended.
	Reason jetpost.Reason
	At     time.Time
}

// PauseChange is what people are told where another pause, or none, takes the place of the
// line's; the zero value is nothing. One that ends by itself is not told of, nor one that
// goes on for what X says.
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
