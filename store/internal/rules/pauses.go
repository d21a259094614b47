package rules

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// Block is the rule of [store.Lanes.BlockAccount]. It returns the pause that holds
// afterwards, and whether that is another one.
func (l LaneRow) Block(p store.Pause, now time.Time) (holds store.Pause, changed bool) {
	was, now := l.Pause, l.At(now)
	if p.Target == "" {
		if was.ByHand() || !was.Active(now) {
			return was, false
		}
		was.Reason.Until = now
		return was, true
	}
	shift := now.Sub(p.Since) // the caller's clock judges nothing
	p.Since = now
	if p.Probed() {
		p.NextProbeAt = p.NextProbeAt.Add(shift)
	}
	if !was.Active(now) && now.Sub(was.Reason.Until) > was.Wait {
		was = store.Pause{}
	}
	was.Worker, p.Worker = laneHolder, laneHolder
	holds, changed = p.Upon(was)
	holds.Worker = ""
	return holds, changed
}

// laneHolder is the worker of an account's pause: only the lane's holder asks X whether
// the pause is over.
const laneHolder = "lane"

// PauseChange is the change that an event must report if another pause, or none,
// replaces the lane's; the zero value is no change. A pause that ends by itself is not
// reported, and neither is one that continues for what X says.
func (l LaneRow) PauseChange(holds store.Pause, account string, now time.Time) store.PauseChange {
	was, at := l.Pause, l.At(now)
	t := store.PauseChange{Account: account, Reason: holds.Reason, At: at}
	switch before, after := was.Active(at), holds.Active(at); {
	case after && holds.ByHand():
		t.Event = jetpost.EventAccountPaused
	case after && was.Blocked(at) && was.Reason.Code == holds.Reason.Code:
		return store.PauseChange{}
	case after:
		t.Event = jetpost.EventAccountBlocked
	case before && was.ByHand():
		t.Event, t.Reason = jetpost.EventAccountResumed, jetpost.Reason{}
	case before:
		t.Event, t.Reason = jetpost.EventAccountUnblocked, jetpost.Reason{}
	default:
		return store.PauseChange{}
	}
	return t
}

// CauseOf reads and writes the part of a pause that comes from X: its code, and when X
// is asked again.
type CauseOf struct{ Pause *store.Pause }

// cause is its stored form.
type cause struct {
	Code        jetpost.Code  `json:"code"`
	NextProbeAt time.Time     `json:"next_probe_at,omitzero"`
	Wait        time.Duration `json:"wait_ns,omitempty"`
}

// String is the stored form, "" for a person's pause.
func (c CauseOf) String() string {
	p := c.Pause
	if p.Target == "" || p.ByHand() {
		return ""
	}
	text, _ := json.Marshal(cause{p.Reason.Code, p.NextProbeAt, p.Wait}) // which cannot fail
	return string(text)
}

// Scan implements sql.Scanner.
func (c CauseOf) Scan(value any) error {
	text, ok := value.(string)
	if !ok {
		return fmt.Errorf("the cause of a pause is stored as %T", value)
	}
	if text == "" {
		return nil
	}
	var x cause
	if err := json.Unmarshal([]byte(text), &x); err != nil {
		return fmt.Errorf("read cause of pause: %w", err)
	}
	c.Pause.Reason.Code, c.Pause.NextProbeAt, c.Pause.Wait = x.Code, x.NextProbeAt, x.Wait
	return nil
}
