package telemetry_test

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/internal/telemetry"
)

var update = flag.Bool("update", false, "rewrite the table of docs/METRICS.md")

const page = "../../docs/METRICS.md"

// The page lists what there is.
func TestMetricsPage(t *testing.T) {
	t.Parallel()
	const begin, end = "<!-- made by go test ./internal/telemetry -update -->\n", "<!-- end -->\n"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, found := strings.Cut(string(text), begin)
	_, tail, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s lacks %q or %q", page, begin, end)
	}
	want := head + begin + tables() + end + tail
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("%s is not what there is; rewrite it with -update\n(-want +got):\n%s", page, diff)
	}
}

// tables are the metrics of a worker, and those of the installation, by name.
func tables() string {
	specs := telemetry.NewMetrics(telemetry.Build{}).Specs
	slices.SortFunc(specs, func(a, b telemetry.Spec) int { return strings.Compare(a.Name, b.Name) })
	var out strings.Builder
	for _, of := range []string{"worker", "installation"} {
		fmt.Fprintf(&out, "\n| of the %s | type | labels | |\n|---|---|---|---|\n", of)
		for _, s := range specs {
			if s.Of == of {
				labels := ""
				if len(s.Labels) > 0 {
					labels = "`" + strings.Join(s.Labels, "`, `") + "`"
				}
				fmt.Fprintf(&out, "| `%s` | %s | %s | %s |\n", s.Name, s.Type, labels, s.Help)
			}
		}
	}
	return out.String() + "\n"
}

// Prometheus' conventions: counters end in _total, units are base units, and nothing that
// there may be any number of is a label.
func TestNamesKeepConventions(t *testing.T) {
	t.Parallel()
	labels := []string{"code", "commit", "disk", "end", "endpoint", "go_version", "outcome", "pool", "target", "state", "step", "version", "window"}
	for _, s := range telemetry.NewMetrics(telemetry.Build{}).Specs {
		if !strings.HasPrefix(s.Name, "jetpost_") || (s.Type == "counter") != strings.HasSuffix(s.Name, "_total") {
			t.Errorf("%s is no name of a %s", s.Name, s.Type)
		}
		for _, unit := range []string{"_ms", "_millis", "_minutes", "_kib", "_mib", "_duration_total"} {
			if strings.Contains(s.Name, unit) {
				t.Errorf("%s has no base unit", s.Name)
			}
		}
		if s.Type == "histogram" && !strings.HasSuffix(s.Name, "_seconds") {
			t.Errorf("histogram %s does not name its unit", s.Name)
		}
		for _, label := range s.Labels {
			if !slices.Contains(labels, label) {
				t.Errorf("%s has the label %s, which is not known to be bounded", s.Name, label)
			}
		}
	}
}

// Counters by code begin at 0, each with the codes that it can count, and no other.
func TestCountersBeginByCode(t *testing.T) {
	t.Parallel()
	rec := httptest.NewRecorder()
	telemetry.NewMetrics(telemetry.Build{}).Handler(func(context.Context) (telemetry.Standing, error) { return telemetry.Standing{}, nil }).
		ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, code := range jetpost.Codes() {
		kind := code.Kind()
		for counter, want := range map[string]bool{
			"jetpost_jobs_refused_total":  kind == jetpost.KindRefused,
			"jetpost_requests_held_total": kind == jetpost.KindHeld || kind == jetpost.KindHeldByX || kind == jetpost.KindHeldForPerson,
		} {
			if line := fmt.Sprintf("\n%s{code=%q} 0\n", counter, code); strings.Contains(rec.Body.String(), line) != want {
				t.Errorf("%s has %s: %t, want %t", counter, code, !want, want)
			}
		}
	}
}

// What nobody knows is not told, so that no alert is ended, or begun, by it.
func TestUnknownIsAbsent(t *testing.T) {
	t.Parallel()
	at := telemetry.Standing{Installation: telemetry.Installation{Facts: health.Facts{Now: time.Now()}}}
	ask := func(fault func(*health.Facts)) string {
		one := at
		fault(&one.Installation.Facts)
		rec := httptest.NewRecorder()
		telemetry.NewMetrics(telemetry.Build{}).Handler(func(context.Context) (telemetry.Standing, error) { return one, nil }).
			ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		return rec.Body.String()
	}
	const lane, job = "\njetpost_oldest_due_lane_age_seconds 0", "\njetpost_oldest_job_age_seconds 0"
	for name, test := range map[string]struct {
		fault     func(*health.Facts)
		lane, job bool
	}{
		"all answer":       {func(*health.Facts) {}, true, true},
		"database is away": {func(f *health.Facts) { f.Database = &health.Fault{} }, false, true},
		"NATS is away":     {func(f *health.Facts) { f.NATS = &health.Fault{} }, true, false},
	} {
		text := ask(test.fault)
		if strings.Contains(text, lane) != test.lane || strings.Contains(text, job) != test.job {
			t.Errorf("%s: the lane's age is told %t, the job's %t", name, strings.Contains(text, lane), strings.Contains(text, job))
		}
	}
}
