package jetpost

import "time"

// The scopes of a pause: those of the whole app and, the last one, of one account.
const (
	TargetPublish = "publish" // no posts of any account
	TargetRefresh = "refresh" // no token exchanges
	TargetMedia   = "media"   // no media uploads
	TargetAccount = "account" // no posts of one account
)

// Pause keeps the whole app, or one account, from some calls to X: a stop for what X has
// said, or a person's pause. The zero value is none.
type Pause struct {
	// Target says whose calls it keeps back.
	Target string `json:"target"`
	// Reason is its cause, in X's words or a person's. Its Until is when the pause ends by
	// itself; zero where nobody knows that, or a person ends it.
	Reason Reason `json:"reason"`
	// Since is when it began.
	Since time.Time `json:"since"`
	// NextProbeAt is set where X alone knows the end: then one worker may call, and ends
	// the pause where X takes that; else it lasts twice as long.
	NextProbeAt time.Time `json:"next_probe_at,omitzero"`
	// Wait is how long it is until then: of one that is to be set the first wait, and of
	// one that stands the present one. MaxWait bounds what comes of doubling it.
	Wait    time.Duration `json:"wait_ns,omitempty"`
	MaxWait time.Duration `json:"-"`
	// Worker is who probes, until NextProbeAt; of one that is to be set, who has met it.
	Worker string `json:"worker,omitempty"`
	// Revision is that of its place in NATS, where it was read from there or stored there.
	Revision uint64 `json:"-"`
}

// AccountPause is one account's, for as long as a person wants it: until then or, where
// that is zero, until somebody resumes the account.
func AccountPause(since, until time.Time, words string) Pause {
	return Pause{Target: TargetAccount, Since: since, Reason: Reason{Code: CodeAccountPaused, Detail: words, Until: until}}
}

// BlockedPause is one account's for what X has said of it: until X, asked again after a
// wait that doubles with each such answer, takes its calls, or somebody resumes it. The
// zero wait asks nothing of X: what ends it is found elsewhere.
func BlockedPause(since time.Time, code Code, words string, wait, maxWait time.Duration) Pause {
	p := Pause{Target: TargetAccount, Since: since, Reason: Reason{Code: code, Detail: words}, Wait: wait, MaxWait: maxWait}
	if wait > 0 {
		p.NextProbeAt = since.Add(wait)
	}
	return p
}

// ByHand tells the pauses that a person wanted.
func (p Pause) ByHand() bool {
	return p.Reason.Code == CodePausedByHand || p.Reason.Code == CodeAccountPaused
}

// Active tells whether the pause holds at a time. One that ended by itself stays on
// record until the next one, or until somebody clears it away.
func (p Pause) Active(at time.Time) bool {
	return p.Target != "" && (p.Reason.Until.IsZero() || at.Before(p.Reason.Until))
}

// Blocked tells whether the pause holds at a time for what X has said.
func (p Pause) Blocked(at time.Time) bool { return !p.ByHand() && p.Active(at) }

// Probed tells that X is asked whether it is over.
func (p Pause) Probed() bool { return p.Wait > 0 || !p.NextProbeAt.IsZero() }

// Due tells that it is time to probe.
func (p Pause) Due(at time.Time) bool {
	return !p.NextProbeAt.IsZero() && !at.Before(p.NextProbeAt)
}

// NextAt is when something happens to it by itself: its end or its next probe. Zero is
// never.
func (p Pause) NextAt() time.Time {
	if p.Probed() {
		return p.NextProbeAt
	}
	return p.Reason.Until
}

// Upon is the pause that stands once p is set upon the one on record, and whether that is
// another one. The one that ends last stands, with the Since of the one that it prolongs;
// what a probe has brought lasts twice as long as before. A person's word counts more
// than what X may have said meanwhile, which X will say again.
func (p Pause) Upon(was Pause) (holds Pause, changed bool) {
	next, goesOn := p, was.Probed() && was.Reason.Code == p.Reason.Code
	probed := was.Probed() && was.Worker != "" && was.Worker == p.Worker
	if p.Probed() {
		switch {
		case goesOn && probed:
			next.Wait = 2 * was.Wait
		case goesOn && p.Since.Before(was.NextProbeAt):
			return was, false // others have met the same, and told of it first
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

// Outlasts tells whether p stands for longer than o. Nothing outlasts one that a person
// has to end.
func (p Pause) Outlasts(o Pause) bool {
	mine, other := p.NextAt(), o.NextAt()
	return !other.IsZero() && (mine.IsZero() || mine.After(other))
}
