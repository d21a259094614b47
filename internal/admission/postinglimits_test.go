package admission

import (
	"testing"
	"time"
)

func TestPostingLimitHolds(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	ago := func(minutes ...int) (times []time.Time) {
		for _, m := range minutes {
			times = append(times, now.Add(-time.Duration(m)*time.Minute))
		}
		return times
	}
	for _, test := range []struct {
		name          string
		postingLimits PostingLimits
		sent          []time.Time
		left          int
		want          time.Duration // from now
	}{
		{"both, the hour is longer", PostingLimits{PostsPerHour: 2, MinInterval: 10 * time.Minute}, ago(5, 20), 1, 40 * time.Minute},
		{"both, the interval is longer", PostingLimits{PostsPerHour: 2, MinInterval: time.Hour}, ago(5, 20), 1, 55 * time.Minute},
		{"nothing sent", PostingLimits{PostsPerHour: 1, MinInterval: time.Hour}, nil, 25, 0},
		{"older than an hour", PostingLimits{PostsPerHour: 2, MinInterval: time.Minute}, ago(60, 90), 2, 0},
		{"room for it", PostingLimits{PostsPerHour: 3}, ago(1), 2, 0},
		{"room for less", PostingLimits{PostsPerHour: 3}, ago(1), 3, 59 * time.Minute},
		{"room once the second is old", PostingLimits{PostsPerHour: 3}, ago(1, 2, 3), 2, 58 * time.Minute},
		{"more than an hour's, once all are old", PostingLimits{PostsPerHour: 3}, ago(1, 2, 3), 25, 59 * time.Minute},
		{"the interval has just passed", PostingLimits{MinInterval: time.Minute}, ago(1), 1, 0},
	} {
		until, detail := test.postingLimits.hold(test.sent, test.left, now)
		if wait := max(until.Sub(now), 0); wait != test.want || (wait > 0) != (detail != "") {
			t.Errorf("%s: waits %s, want %s: %s", test.name, wait, test.want, detail)
		}
	}
}
