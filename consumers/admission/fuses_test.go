package admission

import (
	"testing"
	"time"
)

func TestFuseHolds(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	ago := func(minutes ...int) (times []time.Time) {
		for _, m := range minutes {
			times = append(times, now.Add(-time.Duration(m)*time.Minute))
		}
		return times
	}
	for _, test := range []struct {
		name  string
		fuses Fuses
		sent  []time.Time
		left  int
		want  time.Duration // from now
	}{
		{"both, the hour is longer", Fuses{PostsPerHour: 2, MinInterval: 10 * time.Minute}, ago(5, 20), 1, 40 * time.Minute},
		{"both, the interval is longer", Fuses{PostsPerHour: 2, MinInterval: time.Hour}, ago(5, 20), 1, 55 * time.Minute},
		{"nothing sent", Fuses{PostsPerHour: 1, MinInterval: time.Hour}, nil, 25, 0},
		{"older than an hour", Fuses{PostsPerHour: 2, MinInterval: time.Minute}, ago(60, 90), 2, 0},
		{"room for it", Fuses{PostsPerHour: 3}, ago(1), 2, 0},
		{"room for less", Fuses{PostsPerHour: 3}, ago(1), 3, 59 * time.Minute},
		{"room once the second is old", Fuses{PostsPerHour: 3}, ago(1, 2, 3), 2, 58 * time.Minute},
		{"more than an hour's, once all are old", Fuses{PostsPerHour: 3}, ago(1, 2, 3), 25, 59 * time.Minute},
		{"the interval has just passed", Fuses{MinInterval: time.Minute}, ago(1), 1, 0},
	} {
		until, detail := test.fuses.hold(test.sent, test.left, now)
		if wait := max(until.Sub(now), 0); wait != test.want || (wait > 0) != (detail != "") {
			t.Errorf("%s: waits %s, want %s: %s", test.name, wait, test.want, detail)
		}
	}
}
