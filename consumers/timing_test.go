package consumers

import (
	"fmt"
	"testing"
	"time"

	"github.com/jetpost/jetpost/internal/testkit"
)

// TestTimingOrder: whatever the lease, the latest answer to the latest byte comes before
// another worker may take over, and a lane at work extends its lease long before that.
func TestTimingOrder(t *testing.T) {
	t.Parallel()
	for _, lease := range []time.Duration{0, time.Nanosecond, MinLease, 3 * time.Second, DefaultLease, time.Hour} {
		t.Run(fmt.Sprint(lease), func(t *testing.T) {
			t.Parallel()
			timing := timing{Lease: lease}
			if timing.lease() < MinLease || timing.sweepEvery() <= 0 {
				t.Errorf("lease is %v, a sweep every %v", timing.lease(), timing.sweepEvery())
			}
			steps := []time.Duration{0, timing.sendWithin(), timing.sendWithin() + timing.CallTimeout(), timing.lease()}
			if timing.clockMargin() <= 0 || timing.clockMargin() >= timing.strangerMargin() {
				t.Errorf("a post may seem older than its intent by %v, one that keeps a doubt alive by %v", timing.clockMargin(), timing.strangerMargin())
			}
			for i := range steps[1:] {
				if steps[i] >= steps[i+1] {
					t.Errorf("margins are %v, want each after the one before", steps)
				}
			}
			if 3*timing.extendEvery() >= timing.lease() {
				t.Errorf("the lease of %v is prolonged every %v: two losses in a row end it", timing.lease(), timing.extendEvery())
			}
		})
	}
	testkit.Equal(t, "default", timing{}.lease(), DefaultLease)
}

// TestTimingOfX: a shorter lease does not change the lag of X's timelines or the accuracy
// of its clock. Only a simulated X is faster.
func TestTimingOfX(t *testing.T) {
	t.Parallel()
	sent := time.Now()
	for _, lease := range []time.Duration{MinLease, 6 * time.Second, DefaultLease} {
		timing := timing{Lease: lease}
		testkit.Equal(t, "first check", timing.checkFrom(sent).Sub(timing.answeredBy(sent)), time.Minute)
		testkit.Equal(t, "second check", timing.confirmAfter(false), 10*time.Minute)
		testkit.Equal(t, "second check beside a later post", timing.confirmAfter(true), 30*time.Second)
		testkit.Equal(t, "clock margin", timing.clockMargin(), 5*time.Second)
		testkit.Equal(t, "margin of strangers", timing.strangerMargin(), time.Minute)
		testkit.Equal(t, "repeats", timing.repeatsFor(), 30*time.Minute)
		testkit.Equal(t, "third check", timing.checkAgain(3), time.Minute)
		testkit.Equal(t, "age of a token", tokenTiming{Lease: lease}.coolDown(), 15*time.Minute)
		timing.Minute = time.Second
		testkit.Equal(t, "second check at a simulated X", timing.confirmAfter(false), 10*time.Second)
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	testkit.Equal(t, "before any failure", backoff(-1), backoffs[0])
	for n := range 100 {
		if backoff(n+1) < backoff(n) {
			t.Errorf("after %d failures %v, after %d %v", n, backoff(n), n+1, backoff(n+1))
		}
	}
	testkit.Equal(t, "in the end", backoff(100), backoffs[len(backoffs)-1])
	for range 100 {
		if d := jitter(time.Minute); d < time.Minute || d > 90*time.Second {
			t.Fatalf("a minute became %v", d)
		}
	}
}
