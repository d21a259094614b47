package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// scraped are the metrics of a worker, by name.
type scraped map[string]*dto.MetricFamily

// scrape asks a worker as Prometheus does.
func scrape(t *testing.T, address string) scraped {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	testkit.Must(t, err)
	response, err := http.DefaultClient.Do(request)
	testkit.Must(t, err)
	body, err := io.ReadAll(response.Body)
	testkit.Must(t, err)
	testkit.Must(t, response.Body.Close())
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		t.Fatalf("scrape: %v\n%s", err, body)
	}
	return families
}

// value adds up the samples of a metric that have the labels, given as name=value; of a
// histogram it counts.
func (s scraped) value(name string, labels ...string) (sum float64) {
	for _, m := range s[name].GetMetric() {
		has := func(want string) bool {
			return slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName()+"="+l.GetValue() == want })
		}
		if slices.ContainsFunc(labels, func(want string) bool { return !has(want) }) {
			continue
		}
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return sum
}

// happened counts what events tell, by type and code. The same event may come twice.
func (s *site) happened() map[string]int {
	s.T.Helper()
	stream, err := s.Conn.JS.Stream(s.T.Context(), s.Conn.Names.EventsStream())
	testkit.Must(s.T, err)
	info, err := stream.Info(s.T.Context())
	testkit.Must(s.T, err)
	counts, known := map[string]int{}, map[string]bool{}
	for sequence := info.State.FirstSeq; sequence <= info.State.LastSeq; sequence++ {
		msg, err := stream.GetMsg(s.T.Context(), sequence)
		testkit.Must(s.T, err)
		var event jetpost.Event
		testkit.Must(s.T, json.Unmarshal(msg.Data, &event))
		key := string(event.Type)
		switch {
		case known[event.EventID]:
			continue
		case event.Refusal != nil:
			key += " " + string(event.Refusal.Code)
		case event.Request != nil && event.Request.Reason != nil:
			key += " " + string(event.Request.Reason.Code)
		}
		known[event.EventID] = true
		counts[key]++
	}
	return counts
}

// What a worker counts is what X's call log, the ledger and the events have; and what it
// serves is what docs/METRICS.md lists.
func TestMetricsCount(t *testing.T) {
	t.Parallel()
	accounts := []string{"alice", "bob", "carol"}
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: 4 * time.Second, Minute: 50 * time.Millisecond, Accounts: accounts, RefreshCron: never})
	jobs := harness.MakeJobs(12, accounts, func(i int) int { return 1 + i%3 })
	testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{
		{Kind: xsim.FaultCut, After: true, Endpoint: xsim.EndpointCreatePost, Text: jobs[2].Text(0), Times: 1},
		{Kind: xsim.FaultCut, Endpoint: xsim.EndpointCreatePost, Text: jobs[4].Text(1), Times: 1},
		{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Variant: "duplicate", Endpoint: xsim.EndpointCreatePost, Text: jobs[5].Text(0)},
	}))
	address := testkit.ClosedAddress(t)
	w := s.Worker("worker", "--health-listen", address)
	if code, _, stderr := s.Run("pause", "bob"); code != exitOK {
		t.Fatalf("pause: %s", stderr)
	}
	s.Publish(jobs)
	for _, message := range []struct{ account, body string }{
		{"alice", `{"id":"broken","posts":[]}`},
		{"nobody", `{"id":"lost","posts":[{"text":"whose?"}]}`},
		{"alice", `{"id":"job-0","posts":[{"text":"another body"}]}`},
		{"alice", string(jobs[0].Body(t))},
	} {
		_, err := s.Conn.JS.Publish(t.Context(), "publish.request."+message.account, []byte(message.body))
		testkit.Must(t, err)
	}
	testkit.Eventually(t, "a hold of bob", func() bool { return scrape(t, address).value("jetpost_requests_held_total", "code=account_paused") > 0 })
	if code, _, stderr := s.Run("resume", "bob"); code != exitOK {
		t.Fatalf("resume: %s", stderr)
	}
	s.force("carol")
	testkit.Eventually(t, "the end of everything", func() bool {
		counts := s.Counts()
		return counts[jetpost.StatePublished] == len(jobs)-1 && counts[jetpost.StateFailed] == 1 && len(s.Sim.Exchanges("carol")) == 1 &&
			scrape(t, address).value("jetpost_jobs_repeated_total") == 1 && s.happened()["request.published"] == len(jobs)-1
	})
	got := scrape(t, address)
	s.wantCounted(got, len(jobs))
	for what, code := range map[string]float64{
		"jetpost_accounts": 3, "jetpost_worker_ready": 1, "jetpost_jobs_waiting": 0, "jetpost_lane_slots": 16, "jetpost_database_up": 1,
	} {
		if is := got.value(what); is != code {
			t.Errorf("%s is %v, want %v", what, is, code)
		}
	}

	// What is there only at times.
	if code, _, stderr := s.Run("refresh"); code != exitOK {
		t.Fatalf("refresh: %s", stderr)
	}
	if code, _, stderr := s.Run("pause", "--app"); code != exitOK {
		t.Fatalf("pause: %s", stderr)
	}
	testkit.Eventually(t, "a pause of the app and a round", func() bool {
		got = scrape(t, address)
		return got.value("jetpost_app_pauses", "target=publish", "code=paused_by_hand") == 1 && got["jetpost_refresh_completed_timestamp_seconds"] != nil
	})
	harness.Stop(w)
	wantListed(t, got)
}

// wantListed compares what is served with what docs/METRICS.md lists.
func wantListed(t *testing.T, got scraped) {
	t.Helper()
	page, err := os.ReadFile("../../docs/METRICS.md")
	testkit.Must(t, err)
	var listed []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(jetpost_\\w+)` \\|").FindAllStringSubmatch(string(page), -1) {
		listed = append(listed, row[1])
	}
	slices.Sort(listed)
	served := slices.DeleteFunc(slices.Sorted(maps.Keys(got)), func(name string) bool { return !strings.HasPrefix(name, "jetpost_") })
	if diff := cmp.Diff(listed, served); diff != "" {
		t.Errorf("metrics that docs/METRICS.md lists, and that are served (-listed +served):\n%s", diff)
	}
}

// wantCounted compares what was counted with what is known otherwise.
func (s *site) wantCounted(got scraped, jobs int) {
	s.T.Helper()
	happened, counts := s.happened(), s.Sim.Counts()
	calls := func(endpoint string) (sum int) {
		for _, n := range counts[endpoint] {
			sum += n
		}
		return sum
	}
	posted, found := got.value("jetpost_posts_total", "outcome=posted"), got.value("jetpost_doubts_ended_total", "end=found")
	exchanged := 0
	for _, e := range s.Sim.Exchanges("carol") {
		if e.Effect {
			exchanged++
		}
	}
	for _, c := range []struct {
		what      string
		got, want float64
	}{
		{"jobs accepted", got.value("jetpost_jobs_accepted_total"), float64(jobs)},
		{"lags of acceptance", got.value("jetpost_accept_lag_seconds"), float64(jobs)},
		{"posts live, at X", posted + found, float64(len(s.Sim.Posts("")))},
		{"posts refused", got.value("jetpost_posts_total", "outcome=refused"), 1},
		{"posts in doubt", got.value("jetpost_posts_total", "outcome=in_doubt"), 2},
		{"posts in doubt, by events", got.value("jetpost_requests_held_total", "code=reconciling"), float64(happened["request.held reconciling"])},
		{"doubts found", found, 1},
		{"doubts absent", got.value("jetpost_doubts_ended_total", "end=absent"), 1},
		{"first posts", got.value("jetpost_send_lag_seconds"), float64(jobs) - 2}, // one found, one refused
		{"published", got.value("jetpost_requests_settled_total", "state=published"), float64(happened["request.published"])},
		{"failed", got.value("jetpost_requests_settled_total", "state=failed"), float64(happened["request.failed duplicate"])},
		{"holds of a pause", got.value("jetpost_requests_held_total", "code=account_paused"), float64(happened["request.held account_paused"])},
		{"exchanges", got.value("jetpost_token_exchanges_total", "outcome=refreshed"), float64(exchanged)},
		{"all exchanges", got.value("jetpost_token_exchanges_total"), float64(calls(xsim.EndpointToken))},
		{"posts at X", got.value("jetpost_x_calls_total", "endpoint="+xsim.EndpointCreatePost), float64(calls(xsim.EndpointCreatePost))},
		{"times of posts", got.value("jetpost_x_call_duration_seconds", "endpoint="+xsim.EndpointCreatePost), float64(calls(xsim.EndpointCreatePost))},
		{"posts that X took", got.value("jetpost_x_calls_total", "endpoint="+xsim.EndpointCreatePost, "outcome=ok"), posted},
		{"answers lost", got.value("jetpost_x_calls_total", "endpoint="+xsim.EndpointCreatePost, "outcome=lost"), 2},
		{"timelines read", got.value("jetpost_x_calls_total", "endpoint=GET /2/users/:id/tweets"), float64(calls("GET /2/users/:id/tweets"))},
		{"requests published, in the ledger", got.value("jetpost_requests", "state=published"), float64(jobs) - 1},
	} {
		if c.got != c.want {
			s.T.Errorf("%s: counted %v, want %v", c.what, c.got, c.want)
		}
	}
	for _, code := range []jetpost.Code{jetpost.CodeInvalidRequest, jetpost.CodeAccountUnknown, jetpost.CodeIdentityConflict} {
		if n, told := got.value("jetpost_jobs_refused_total", "code="+string(code)), happened[fmt.Sprint("request.refused ", code)]; n != 1 || told != 1 {
			s.T.Errorf("refused as %s: counted %v, told %d, want 1", code, n, told)
		}
	}
}
