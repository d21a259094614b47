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
	// MaxSkew is how far this machine's clock may be from those of the database, NATS and
	// X. It is less than half of clockMargin, the 5 s by which a post on X may seem older
	// than its intent, whose time is the database's.
	MaxSkew = 2 * time.Second
	// clockEvery is how often the clocks are compared: often enough to find a wrong clock
	// before the first timeline check for a post in doubt.
	clockEvery = 10 * time.Second
	// clockWithin bounds one request for the time.
	clockWithin = 3 * time.Second
)

// SkewError reports that this machine's clock does not agree with another clock.
type SkewError struct {
	Of string        // who has the other clock
	By time.Duration // by how much this machine's clock is ahead, at least; negative if it is behind
}

func (e *SkewError) Error() string {
	return fmt.Sprintf("this machine's clock differs by %s from that of %s", e.By.Round(time.Millisecond), e.Of)
}

// Hint says what the operator has to do.
func (*SkewError) Hint() string { return "set both clocks, for instance with NTP" }

// clocks compares this machine's clock with those of the database, NATS and X. A worker
// whose clock is wrong takes no lanes, because it could wrongly take a request for late, a
// post for absent or a window for used up.
type clocks struct {
	// Database and NATS read their clocks. NATS may be nil.
	Database, NATS func(context.Context) (time.Time, error)
	// X returns the reading of X's clock from its latest answers.
	X      func(now time.Time) (xapi.ClockReading, bool)
	Health *health
	Log    *slog.Logger

	mu  sync.Mutex
	err error
	// ahead is by how much this machine's clock is ahead of the database's.
	ahead time.Duration
}

// Here converts a time of the database's clock to this machine's clock.
func (c *clocks) Here(there time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return there.Add(c.ahead)
}

// Err returns why no lane may be taken, or nil. A nil clocks finds nothing wrong.
func (c *clocks) Err() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Run compares the clocks until the context ends.
func (c *clocks) Run(ctx context.Context) {
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

// Compare compares the clocks once. It ignores a clock that does not answer.
func (c *clocks) Compare(ctx context.Context) {
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

// skewOf returns by how much this machine's clock is at least ahead of another one, or
// negative if it is behind, and an error if that is too much. The time that the answer took
// is not counted as skew.
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
		return nil, nil // a dependency that does not answer is reported elsewhere
	}
	least, most := before.Sub(there), after.Sub(there)
	return new(max(least, min(most, 0))), beyond(of, least, most)
}

// beyond returns an error if the clock is certainly too far ahead or behind.
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
