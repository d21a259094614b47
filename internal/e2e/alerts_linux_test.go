package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/disktest"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

var alertsFor = flag.Duration("alerts-for", 0, "for how long TestAlerts has one fault after the other; each once where zero, and for ten minutes in full")

const deployed = "../../deploy/"

// prometheus is a Prometheus, as Debian has it, that scrapes workers.
type prometheus struct {
	t       *testing.T
	address string
}

// startPrometheus has it scrape an address every two seconds. Times in the rules are shorter:
// an alert waits for five seconds, and what is rated is rated over ten.
func startPrometheus(t *testing.T, target string) *prometheus {
	t.Helper()
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Fatalf("%v: install it, on Debian as the package prometheus", err)
	}
	dir, p := t.TempDir(), &prometheus{t, testkit.ClosedAddress(t)}
	rules, err := os.ReadFile(deployed + "prometheus/alerts.yml")
	testkit.Must(t, err)
	short := string(rules)
	for pattern, by := range map[string]string{`(?m)^( +for:) .*`: "$1 5s", `\[2m\]`: "[10s]", `> 30\b`: "> 5", `> 600\b`: "> 5"} {
		shorter := regexp.MustCompile(pattern).ReplaceAllString(short, by)
		if shorter == short {
			t.Fatalf("the rules have no %s", pattern)
		}
		short = shorter
	}
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "alerts.yml"), []byte(short), 0o600))
	config, err := os.ReadFile(deployed + "prometheus/prometheus.yml")
	testkit.Must(t, err)
	for from, to := range map[string]string{"127.0.0.1:8080": target, "interval: 15s": "interval: 2s"} {
		if !strings.Contains(string(config), from) {
			t.Fatalf("prometheus.yml has no %s", from)
		}
		config = []byte(strings.ReplaceAll(string(config), from, to))
	}
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), config, 0o600))
	harness.Start(t, "prometheus", os.Environ(), "prometheus", "--config.file", filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", p.address, "--log.level", "warn")
	testkit.Eventually(t, "Prometheus to scrape", func() bool { return len(p.query(`up{job="jetpost"} == 1`)) == 1 })
	return p
}

// ask asks its API. Its error is that it does not answer, or says that the query is wrong.
func (p *prometheus) ask(path string, into any) error {
	request, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://"+p.address+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: into}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return nil
}

// query returns what a query has just now; nothing where Prometheus does not answer.
func (p *prometheus) query(expr string) []any {
	var data struct{ Result []any }
	_ = p.ask("/api/v1/query?query="+url.QueryEscape(expr), &data) // which says it by having none
	return data.Result
}

// firing are the names of the alerts that fire; pending tells that others may soon.
func (p *prometheus) firing() (firing []string, pending bool) {
	p.t.Helper()
	var data struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	testkit.Must(p.t, p.ask("/api/v1/alerts", &data))
	names := map[string]bool{}
	for _, a := range data.Alerts {
		if a.State == "firing" {
			names[a.Labels["alertname"]] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), len(data.Alerts) > 0
}

// alertsFault is something that goes wrong, and the one alert that is to fire for it.
type alertsFault struct {
	alert      string
	begin, end func()
}

// Each alert fires for its fault, and no other does, while jobs come all the time. Each
// query of the dashboard is answered.
func TestAlerts(t *testing.T) {
	if os.Getenv("JETPOST_TEST_FULL") == "" && *alertsFor == 0 {
		t.Skip("takes minutes: set JETPOST_TEST_FULL, or -alerts-for 1s")
	}
	t.Parallel()
	disk := disktest.New(t, 300<<20)
	if disk == nil {
		return
	}
	s := newSite(t, harness.SiteConfig{
		Database: sqliteURL(t), Lease: 4 * time.Second, Minute: 50 * time.Millisecond,
		Accounts: []string{"alice", "bob", "carol"}, RefreshCron: never,
	})
	testkit.Must(t, s.Sim.SetLimits([]xsim.Limit{
		{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 100_000, WindowMS: 900_000},
		{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeApp24h, Max: 1_000_000, WindowMS: 86_400_000},
	}))
	a := &alerting{site: s, disk: disk, address: testkit.ClosedAddress(t)}
	a.work()
	s.Publish(harness.MakeJobs(1, []string{"bob"}, harness.One)) // which X must show with each later one
	s.AllPublished(1)
	p := startPrometheus(t, a.address)
	stopLoad := a.load()
	p.answersDashboard()
	p.quiet("before any fault")
	faults := a.faults()
	until := time.Now().Add(*alertsFor)
	if *alertsFor == 0 {
		until = time.Now().Add(10 * time.Minute)
	}
	began, rounds := time.Now(), 0
	for first := true; first || time.Now().Before(until); first = false {
		for _, fault := range faults {
			p.fires(fault)
		}
		rounds++
	}
	stopLoad()
	harness.Stop(a.worker)
	t.Logf("%d rounds of %d faults in %s: each alert that should fire did, no other did; %d posts", rounds, len(faults), time.Since(began).Round(time.Second), len(s.Sim.Posts("")))
	var named []string
	for _, fault := range faults {
		named = append(named, fault.alert)
	}
	slices.Sort(named)
	if all := alertNames(t); !slices.Equal(named, all) {
		t.Errorf("alerts that were tried: %v, and that there are: %v", named, all)
	}
}

// alertNames are those of the rules.
func alertNames(t *testing.T) (names []string) {
	t.Helper()
	text, err := os.ReadFile(deployed + "prometheus/alerts.yml")
	testkit.Must(t, err)
	var rules struct {
		Groups []struct{ Rules []struct{ Alert string } }
	}
	testkit.Must(t, yaml.Unmarshal(text, &rules))
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			names = append(names, rule.Alert)
		}
	}
	slices.Sort(names)
	return names
}

// quiet waits until no alert fires.
func (p *prometheus) quiet(when string) {
	p.t.Helper()
	testkit.Eventually(p.t, "no alert, "+when, func() bool { _, pending := p.firing(); return !pending })
}

// fires has a fault, until its alert has fired for some seconds. No other may fire from
// its beginning until all is quiet again.
func (p *prometheus) fires(fault alertsFault) {
	p.t.Helper()
	began := time.Now()
	others := func() bool {
		firing, _ := p.firing()
		for _, name := range firing {
			if name != fault.alert {
				p.t.Fatalf("%s fires, where %s should", name, fault.alert)
			}
		}
		return len(firing) > 0
	}
	fault.begin()
	testkit.Eventually(p.t, fault.alert, others)
	p.t.Logf("%s fired after %s", fault.alert, time.Since(began).Round(time.Second))
	since := time.Now()
	testkit.Eventually(p.t, fault.alert+" to stay", func() bool {
		if !others() {
			p.t.Fatalf("%s is over before its fault", fault.alert)
		}
		return time.Since(since) > 3*time.Second
	})
	fault.end()
	testkit.Eventually(p.t, "the end of "+fault.alert, func() bool { return !others() })
	p.quiet("after " + fault.alert) // work goes on again before the next fault
}

// answersDashboard runs each query of the dashboard.
func (p *prometheus) answersDashboard() {
	p.t.Helper()
	text, err := os.ReadFile(deployed + "grafana/jetpost.json")
	testkit.Must(p.t, err)
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	testkit.Must(p.t, json.Unmarshal(text, &dashboard))
	queries := 0
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries++
			expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "10s")
			testkit.Eventually(p.t, panel.Title+" to have "+expr, func() bool { return len(p.query(expr)) > 0 })
		}
	}
	if queries < 30 {
		p.t.Errorf("the dashboard has %d queries; are they still seen?", queries)
	}
}

// alerting is an installation that has faults.
type alerting struct {
	*site
	disk    *disktest.Disk
	address string // of the worker's metrics
	worker  *harness.Process
	doubts  int
}

// work starts the worker.
func (a *alerting) work(flags ...string) {
	a.T.Helper()
	a.worker = a.site.Worker("worker", append(flags, "--health-listen", a.address, "--lifeboat", a.disk.Dir)...)
}

// load publishes jobs of alice and carol until it is stopped.
func (a *alerting) load() (stop func()) {
	ctx, cancel := context.WithCancel(a.T.Context())
	var done sync.WaitGroup
	done.Go(func() {
		every := time.NewTicker(200 * time.Millisecond)
		defer every.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-every.C:
			}
			body := fmt.Sprintf(`{"id":"load-%d","posts":[{"text":"load %d"}]}`, i, i)
			_, _ = a.Conn.JS.Publish(ctx, "publish.request."+[]string{"alice", "carol"}[i%2], []byte(body)) // one more or less
		}
	})
	return func() { cancel(); done.Wait() }
}

// do runs a command, which must work.
func (a *alerting) do(args ...string) {
	a.T.Helper()
	if code, stdout, stderr := a.Run(args...); code != exitOK {
		a.T.Fatalf("%v: exit code %d\n%s%s", args, code, stdout, stderr)
	}
}

func (a *alerting) faults() []alertsFault {
	t := a.T
	x := func(faults ...xsim.Fault) func() { return func() { testkit.Must(t, a.Sim.SetFaults(faults)) } }
	resumed := func() {
		x()()
		a.do("resume", "--app")
	}
	return []alertsFault{
		{"JetpostWorkerGone", func() { a.worker.Signal(syscall.SIGSTOP) }, func() { a.worker.Signal(syscall.SIGCONT) }},
		{"JetpostNothingAccepted", func() { a.pauseIntake(time.Now().Add(time.Hour)) }, func() { a.pauseIntake(time.Time{}) }},
		{"JetpostNothingSent", func() {
			testkit.Must(t, a.Conn.JS.DeleteConsumer(t.Context(), a.Conn.Names.LanesStream(), jetpost.ConsumerLanes))
		}, func() { a.do("setup", "--replicas", "1", "--refresh-cron", never) }},
		{"JetpostCapHit", x(xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Variant: "spend-cap", Endpoint: xsim.EndpointCreatePost}), resumed},
		{"JetpostAppPaused", x(xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Variant: "app-suspended", Endpoint: xsim.EndpointCreatePost}), resumed},
		{"JetpostAccountsToReconnect", func() {
			a.Sim.RevokeConsent("bob")
			a.force("bob")
		}, func() { a.Account("bob", 0) }},
		{"JetpostDoubtUnresolved", a.doubt, a.resolve},
		{"JetpostLifeboatNotEmpty", a.strand, a.unstrand},
		{"JetpostDiskLow", func() { a.disk.Fill(200 << 20) }, a.disk.Free},
		{"JetpostRefreshMissed", func() { a.refreshing("publish", "* * * * * *") }, func() { a.refreshing("publish,refresh", never) }},
	}
}

// pauseIntake keeps NATS from handing out jobs, or no more.
func (a *alerting) pauseIntake(until time.Time) {
	a.T.Helper()
	for p := range jetpost.Partitions {
		_, err := a.Conn.JS.PauseConsumer(a.T.Context(), a.Conn.Names.JobsStream(), jetpost.ConsumerIntake(p), until)
		testkit.Must(a.T, err)
	}
}

// doubt has X lose the answer to a post of bob's, and show no timeline from then on.
func (a *alerting) doubt() {
	a.T.Helper()
	a.doubts++
	text := fmt.Sprintf("doubt %d", a.doubts)
	testkit.Must(a.T, a.Sim.SetFaults([]xsim.Fault{
		{Kind: xsim.FaultCut, After: true, Endpoint: xsim.EndpointCreatePost, Text: text, Times: 1},
		{Kind: xsim.FaultTimelineLag, DelayMS: (10 * time.Minute).Milliseconds(), Account: "bob"},
	}))
	_, err := a.Conn.JS.Publish(a.T.Context(), "publish.request.bob", fmt.Appendf(nil, `{"id":"doubt-%d","posts":[{"text":%q}]}`, a.doubts, text))
	testkit.Must(a.T, err)
}

// resolve says what a person sees on X.
func (a *alerting) resolve() {
	a.T.Helper()
	posts := a.Sim.Posts("bob")
	a.do("requests", "resolve", fmt.Sprint("doubt-", a.doubts), "--posted", posts[len(posts)-1].ID)
	testkit.Must(a.T, a.Sim.SetFaults(nil))
}

// stranded is a pair that no key of the workers opens.
func (a *alerting) stranded() (*store.Lifeboat, store.Token) {
	a.T.Helper()
	id, err := a.Ledger.LedgerID(a.T.Context())
	testkit.Must(a.T, err)
	sealer, err := store.NewSealer(store.GenerateKey().Reveal())
	testkit.Must(a.T, err)
	return store.NewLifeboat(a.disk.Dir, id, sealer), store.Token{ID: "6ab3a1f8-4f6c-4dc5-a5f1-2e0df1b3c9b7", Account: "bob", Version: 1}
}

func (a *alerting) strand() {
	boat, claim := a.stranded()
	testkit.Must(a.T, boat.Keep(claim, store.Pair{}, time.Now()))
}

func (a *alerting) unstrand() {
	pairs, err := filepath.Glob(filepath.Join(a.disk.Dir, "*", "*.pair.json"))
	testkit.Must(a.T, err)
	for _, path := range append(pairs, filepath.Join(a.disk.Dir, "*.pair.json")) {
		_ = os.Remove(path)
	}
}

// refreshing has the worker begin anew with roles and another refresh schedule.
func (a *alerting) refreshing(roles, cron string) {
	a.T.Helper()
	harness.Stop(a.worker)
	a.do("setup", "--replicas", "1", "--refresh-cron", cron)
	a.work("--roles", roles)
}
