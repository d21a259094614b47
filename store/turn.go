package store

import (
	"time"

	"github.com/jetpost/jetpost"
)

// Turn is what is to be told of an account's pause: how it changed last. The account, the
// event and the time name it.
type Turn struct {
	Account string
	Event   jetpost.EventType
	// Reason is that of a pause that holds; zero of one that was ended.
	Reason jetpost.Reason
	At     time.Time
}

// Turn is what people are told where another pause, or none, takes the place of the
// line's; the zero value is nothing. One that ends by itself is not told of, nor one that
// goes on for what X says.
func (l Line) Turn(holds Pause, account string, now time.Time) Turn {
	was, at := l.Pause, l.At(now)
	t := Turn{Account: account, Reason: holds.Reason, At: at}
	switch before, after := was.Active(at), holds.Active(at); {
	case after && holds.ByHand():
		t.Event = jetpost.EventAccountPaused
	case after && was.Blocked(at) && was.Reason.Code == holds.Reason.Code:
		return Turn{}
	case after:
		t.Event = jetpost.EventAccountBlocked
	case before && was.ByHand():
		t.Event, t.Reason = jetpost.EventAccountResumed, jetpost.Reason{}
	case before:
		t.Event, t.Reason = jetpost.EventAccountUnblocked, jetpost.Reason{}
	default:
		return Turn{}
	}
	return t
}
