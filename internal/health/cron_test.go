package health_test

import (
	"testing"
	"time"

	"github.com/jetpost/jetpost/internal/health"
)

func TestNextRound(t *testing.T) {
	t.Parallel()
	after := time.Date(2026, 11, 29, 0, 30, 15, 500, time.UTC) // a Sunday
	for _, test := range []struct{ cron, zone, want string }{
		{"0 0 */6 * * *", "", "2026-11-29T06:00:00Z"},
		{"* * * * * *", "", "2026-11-29T00:30:16Z"},
		{"0 0 0 29 2 *", "", "2028-02-29T00:00:00Z"},
		{"15,20/20 30 0-3 * * *", "", "2026-11-29T00:30:20Z"},
		{"0 0 12 ? * Mon-Fri", "", "2026-11-30T12:00:00Z"},
		{"0 0 12 1 * wed", "", "2026-12-01T12:00:00Z"},
		{"0 0 0 1 jan *", "", "2027-01-01T00:00:00Z"},
		{"0 0 6 * * *", "America/New_York", "2026-11-29T11:00:00Z"},
		{"0 15 * * * *", "Asia/Kolkata", "2026-11-29T00:45:00Z"},
		{"@every 90s", "", "2026-11-29T00:31:45.0000005Z"},
		{"@hourly", "", "2026-11-29T01:00:00Z"},
		{"0 0 0 30 2 *", "", ""},
		{"0 0 * * *", "", ""},
		{"60 0 * * * *", "", ""},
		{"0 5-1 * * * *", "", ""},
		{"0 0 * * * *", "Mars/Olympus", ""},
	} {
		next, ok := health.NextRound(test.cron, test.zone, after)
		got := ""
		if ok {
			got = next.UTC().Format(time.RFC3339Nano)
		}
		if got != test.want {
			t.Errorf("%s in %q: next is %q, want %q", test.cron, test.zone, got, test.want)
		}
	}
}
