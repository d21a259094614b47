package consumers

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jetpost/jetpost/xapi"
)

const (
	// MaxSkew is how far this machine's clock may be from the database's, NATS's and
	// X's: less than half of the 5 s that a post on X may seem older than its intent,
	// which the database's clock tells.
	MaxSkew = 2 * time.Second
	// clockEvery is how often the clocks are compared: a clock that is set wrong has
	// no time to do harm before the first look for a post in doubt.
	clockEvery = 10 * time.Second
	// clockWithin bounds one question for the time.
	clockWithin = 3 * time.Second
)

// SkewError says that this machine's clock does not agree with another one.
type SkewError struct {
	Of string        // whose clock the other one is
	By time.Duration // by how much this machine's is ahead, at least
}

func (e *SkewError) Error() string {
	return fmt.Sprintf("this machine's clock is %s off that of %s", e.By.Round(time.Millisecond), e.Of)
}

// Hint tells the operator what to do.
func (*SkewError) Hint() string { return "set both clocks, for instance with NTP" }

// Clocks compares this machine's clock with those that it has to agree with, all the
// time. A worker whose clock is off takes no lanes: what it would call late, absent
// or used up may not be.
type Clocks struct {
	// Database and NATS read their clocks. NATS may be nil.
	Database, NATS func(context.Context) (time.Time, error)
	// X is what X's answers tell.
	X      func(now time.Time) (xapi.ClockReading, bool)
	Health *Health
	Log    *slog.Logger

	mu  sync.Mutex
	err error
	// ahead is by how much this machine's clock is ahead of the database's.
	ahead time.Duration
}

// Here tells when it is that time of the database's clock by this machine's.
func (c *Clocks) Here(there time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return there.Add(c.ahead)
}

// Err is why no lane may be taken, or nil. A nil Clocks finds nothing wrong.
func (c *Clocks) Err() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Run compares the clocks until the context ends.
func (c *Clocks) Run(ctx context.Context) {
	every := time.NewTicker(clockEvery)
	defer every.Stop()
	for {
		c.Compare(ctx)
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// Compare compares the clocks once. One that does not answer says nothing.
func (c *Clocks) Compare(ctx context.Context) {
	ahead, err := skewOf(ctx, "the database", c.Database)
	if err == nil {
		_, err = skewOf(ctx, "NATS", c.NATS)
	}
	if now := time.Now(); err == nil && c.X != nil {
		if x, known := c.X(now); known {
			err = beyond("X", x.Least, x.Most)
		}
	}
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	before := c.err
	if c.err = err; ahead != nil {
		c.ahead = *ahead
	}
	c.mu.Unlock()
	c.Health.Set("clock", err)
	switch {
	case err != nil && before == nil:
		c.Log.Error("clock.wrong", "error", err)
	case err == nil && before != nil:
		c.Log.Info("clock.right")
	}
}

// skewOf compares with a clock that tells the time: by how much this machine's is ahead
// at least, or behind as a negative one, and whether that is too far. What the answer took
// proves nothing.
func skewOf(ctx context.Context, of string, ask func(context.Context) (time.Time, error)) (ahead *time.Duration, err error) {
	if ask == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, clockWithin)
	defer cancel()
	before := time.Now().Round(0) // by the wall clock alone
	there, err := ask(ctx)
	after := time.Now().Round(0)
	if err != nil {
		return nil, nil // which others find out, and say
	}
	least, most := before.Sub(there), after.Sub(there)
	return new(max(least, min(most, 0))), beyond(of, least, most)
}

// beyond tells whether the clock is too far ahead for certain, or behind.
func beyond(of string, least, most time.Duration) error {
	switch {
	case least > MaxSkew:
		return &SkewError{Of: of, By: least}
	case most < -MaxSkew:
		return &SkewError{Of: of, By: most}
	default:
		return nil
	}
}
