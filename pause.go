package jetpost

import "time"

// The targets of a pause: the first three concern the whole app, the last one an
// account.
const (
	TargetPublish = "publish" // no posts of any account
	TargetRefresh = "refresh" // no token exchanges
	TargetMedia   = "media"   // no media uploads
	TargetAccount = "account" // no posts of one account
)

// Pause keeps the whole app, or one account, from some calls to X, because of something
// that X has said or because a person wants that. The zero value is no pause.
type Pause struct {
	// Target says which calls it holds back.
	Target string `json:"target"`
	// Reason is its cause, in X's words or a person's. Reason.Until is when the pause
	// ends by itself; zero if that is unknown, or if a person ends it.
	Reason Reason `json:"reason"`
	// Since is when it began.
	Since time.Time `json:"since"`
	// NextProbeAt is set if only X knows the end. One worker may call X then. The pause
	// ends if X takes the call; otherwise it lasts twice as long.
	NextProbeAt time.Time `json:"next_probe_at,omitzero"`
	// Wait is the time until the probe: the first wait of a pause that is to be set,
	// the present one of a pause that holds. MaxWait bounds the doubled wait.
	Wait    time.Duration `json:"wait_ns,omitempty"`
	MaxWait time.Duration `json:"-"`
	// Worker is the worker that probes, until NextProbeAt. In a pause that is to be set
	// it is the worker that met the cause.
	Worker string `json:"worker,omitempty"`
	// Revision is that of its entry in NATS, if it was read from there or stored there.
	Revision uint64 `json:"-"`
}

// AccountPause is a person's pause of one account: until that time or, if until is
// zero, until somebody resumes the account.
func AccountPause(since, until time.Time, words string) Pause {
	return Pause{Target: TargetAccount, Since: since, Reason: Reason{Code: CodeAccountPaused, Detail: words, Until: until}}
}

// BlockedPause is a pause of one account for what X has said of it. It holds until X
// takes the account's calls again or somebody resumes the account. X is asked after a
// wait that doubles with each such answer. With a zero wait X is not asked: the end is
// found elsewhere.
func BlockedPause(since time.Time, code Code, words string, wait, maxWait time.Duration) Pause {
	p := Pause{Target: TargetAccount, Since: since, Reason: Reason{Code: code, Detail: words}, Wait: wait, MaxWait: maxWait}
	if wait > 0 {
		p.NextProbeAt = since.Add(wait)
	}
	return p
}

// ByHand reports whether a person has set the pause.
func (p Pause) ByHand() bool {
	return p.Reason.Code == CodePausedByHand || p.Reason.Code == CodeAccountPaused
}

// Active reports whether the pause holds at a time. A pause that ended by itself stays
// on record until the next one, or until somebody clears it.
func (p Pause) Active(at time.Time) bool {
	return p.Target != "" && (p.Reason.Until.IsZero() || at.Before(p.Reason.Until))
}

// Blocked reports whether the pause holds at a time for what X has said.
func (p Pause) Blocked(at time.Time) bool { return !p.ByHand() && p.Active(at) }

// Probed reports whether X is asked if the cause is over.
func (p Pause) Probed() bool { return p.Wait > 0 || !p.NextProbeAt.IsZero() }

// Due reports whether it is time to probe.
func (p Pause) Due(at time.Time) bool {
	return !p.NextProbeAt.IsZero() && !at.Before(p.NextProbeAt)
}

// NextAt is when the pause changes by itself: its end or its next probe. Zero is never.
func (p Pause) NextAt() time.Time {
	if p.Probed() {
		return p.NextProbeAt
	}
	return p.Reason.Until
}

// Upon returns the pause that holds after p is set while was is on record, and whether
// that is another one. The one that ends last wins. It keeps the Since of the pause
// that it prolongs, and a pause that a probe brought lasts twice as long as before. A
// person's pause wins over what X may have said meanwhile: X will say that again.
func (p Pause) Upon(was Pause) (holds Pause, changed bool) {
	next, goesOn := p, was.Probed() && was.Reason.Code == p.Reason.Code
	probed := was.Probed() && was.Worker != "" && was.Worker == p.Worker
	if p.Probed() {
		switch {
		case goesOn && probed:
			next.Wait = 2 * was.Wait
		case goesOn && p.Since.Before(was.NextProbeAt):
			return was, false // other workers have met the same and reported it first
		}
		next.Wait = min(next.Wait, max(p.MaxWait, p.Wait))
		next.NextProbeAt = p.Since.Add(next.Wait).UTC().Truncate(time.Millisecond)
	}
	next.Worker = ""
	there := was.Active(p.Since)
	switch {
	case !there, probed:
	case p.ByHand() && (was.Probed() || was.ByHand()):
	case was.ByHand(), !next.Outlasts(was):
		return was, false
	}
	if there {
		next.Since = was.Since
	}
	return next, true
}

// Outlasts reports whether p holds for longer than o. Nothing outlasts a pause that a
// person has to end.
func (p Pause) Outlasts(o Pause) bool {
	mine, other := p.NextAt(), o.NextAt()
	return !other.IsZero() && (mine.IsZero() || mine.After(other))
}
