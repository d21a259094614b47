package consumers

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi"
)

// TestClocks: a worker whose clock differs by more than two seconds from one that it has to
// agree with takes no lane, and says so, until the clocks agree again. An answer that takes
// long proves less, and a missing answer proves nothing.
func TestClocks(t *testing.T) {
	t.Parallel()
	ahead := func(by, takes time.Duration) func(context.Context) (time.Time, error) {
		return func(context.Context) (time.Time, error) {
			at := time.Now().Add(by)
			sleep(takes)
			return at, nil
		}
	}
	silent := func(context.Context) (time.Time, error) { return time.Time{}, errAway }
	x := func(least, most time.Duration) func(time.Time) (xapi.ClockReading, bool) {
		return func(time.Time) (xapi.ClockReading, bool) { return xapi.ClockReading{Least: least, Most: most}, true }
	}
	right := ahead(0, 0)
	tests := []struct {
		name           string
		database, nats func(context.Context) (time.Time, error)
		x              func(time.Time) (xapi.ClockReading, bool)
		of             string // who has the wrong clock; "" for none
	}{
		{"all agree", right, right, x(-3*time.Second, 0), ""},
		{"database ahead", ahead(3*time.Second, 0), right, nil, "the database"},
		{"database behind", ahead(-3*time.Second, 0), right, nil, "the database"},
		{"database a little ahead", ahead(1900*time.Millisecond, 0), right, nil, ""},
		{"database slow", ahead(-3*time.Second, 2*time.Second), right, nil, "the database"},
		{"database slow, and ahead by less than that", ahead(-1900*time.Millisecond, 2*time.Second), right, nil, ""},
		{"database silent", silent, right, nil, ""},
		{"NATS behind", right, ahead(-time.Minute, 0), nil, "NATS"},
		{"NATS silent", right, silent, nil, ""},
		{"X ahead", right, right, x(-6*time.Second, -3*time.Second), "X"},
		{"X behind", right, right, x(3*time.Second, 6*time.Second), "X"},
		{"X perhaps behind", right, right, x(-time.Second, 4*time.Second), ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := offline(t)
				c := &clocks{Database: test.database, NATS: test.nats, X: test.x, Health: &health{}, Log: b.log}
				c.Compare(t.Context())
				of := ""
				if skew := new(SkewError); errors.As(c.Err(), &skew) {
					of = skew.Of
				}
				testkit.Equal(t, "whose", of, test.of)
				testkit.Equal(t, "ready", c.Health.Err() == nil, test.of == "")
				h := b.lane(func(h *publishHandler) { h.Clocks = c })
				err := h.Handle(t.Context(), delivery{Subject: "publish.wake.nobody"})
				testkit.Equal(t, "takes lanes", err == nil, test.of == "")
				c.Database, c.NATS, c.X = right, right, nil
				c.Compare(t.Context())
				testkit.Must(t, c.Err())
				testkit.Must(t, c.Health.Err())
			})
		})
	}
}
