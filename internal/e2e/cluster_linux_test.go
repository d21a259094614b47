package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	clusterServers   = 3
	clusterProducers = 5
	clusterAccounts  = 20
	// clusterAck bounds one try of a producer.
	clusterAck = 2 * time.Second
	// clusterPosts is how many posts have to go out between two faults.
	clusterPosts = 200
)

// cluster is three nats-servers, each in a network of its own, which are joined by a bridge.
type cluster struct {
	t       *testing.T
	network string // the first three bytes of its addresses
	servers [clusterServers]*harness.Process
	configs [clusterServers]string
}

// ip runs a command of iproute2.
func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// The names of the network of this process.
func (c *cluster) bridge() string       { return fmt.Sprintf("jp%d", os.Getpid()) }
func (c *cluster) space(i int) string   { return fmt.Sprintf("jetpost-%d-n%d", os.Getpid(), i) }
func (c *cluster) link(i int) string    { return fmt.Sprintf("jp%dn%d", os.Getpid(), i) }
func (c *cluster) address(i int) string { return fmt.Sprintf("%s.%d", c.network, i+1) }

func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, network: fmt.Sprintf("10.%d.%d", 200+os.Getpid()%50, os.Getpid()/50%250)}
	t.Cleanup(func() {
		for i := range clusterServers {
			_ = exec.Command("ip", "netns", "del", c.space(i)).Run() // with its link; there is none where the start failed
		}
		_ = exec.Command("ip", "link", "del", c.bridge()).Run()
	})
	ip(t, "link", "add", c.bridge(), "type", "bridge")
	ip(t, "address", "add", c.network+".254/24", "dev", c.bridge())
	ip(t, "link", "set", c.bridge(), "up")
	var routes []string
	for i := range clusterServers {
		routes = append(routes, fmt.Sprintf("%q", "nats-route://"+c.address(i)+":6222"))
	}
	for i := range clusterServers {
		ip(t, "netns", "add", c.space(i))
		ip(t, "link", "add", c.link(i), "type", "veth", "peer", "name", "eth0", "netns", c.space(i))
		ip(t, "link", "set", c.link(i), "master", c.bridge(), "up")
		ip(t, "-n", c.space(i), "address", "add", c.address(i)+"/24", "dev", "eth0")
		ip(t, "-n", c.space(i), "link", "set", "eth0", "up")
		ip(t, "-n", c.space(i), "link", "set", "lo", "up")
		c.configs[i] = filepath.Join(t.TempDir(), "nats.conf")
		testkit.Must(t, os.WriteFile(c.configs[i], fmt.Appendf(nil, "server_name: n%d\nlisten: %q\njetstream {store_dir: %q}\ncluster {name: house, listen: %q, routes: [%s]}\n",
			i, c.address(i)+":4222", t.TempDir(), c.address(i)+":6222", strings.Join(routes, ", ")), 0o600))
		c.start(i)
	}
	return c
}

// start starts a server, in its own network.
func (c *cluster) start(i int) {
	c.t.Helper()
	c.servers[i] = harness.Start(c.t, fmt.Sprint("nats-server-", i), os.Environ(), "ip", "netns", "exec", c.space(i), harness.NATSServerCommand, c.configs[i])
}

// cut has the others, and all clients, no longer reach a server, or again.
func (c *cluster) cut(i int, off bool) {
	c.t.Helper()
	ip(c.t, "link", "set", c.link(i), map[bool]string{true: "down", false: "up"}[off])
}

func (c *cluster) url() string {
	var urls []string
	for i := range clusterServers {
		urls = append(urls, "nats://"+c.address(i)+":4222")
	}
	return strings.Join(urls, ",")
}

// ready waits until the servers have a leader.
func (c *cluster) ready() {
	c.t.Helper()
	testkit.Eventually(c.t, "JetStream in the cluster", func() bool {
		nc, err := nats.Connect(c.url(), nats.Timeout(time.Second))
		if err != nil {
			return false
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err == nil {
			_, err = js.AccountInfo(c.t.Context())
		}
		return err == nil
	})
}

// clustered is an installation on the cluster, and what is published there.
type clustered struct {
	*site
	*cluster
	pair *pgtest.Pair

	made      atomic.Int64 // posts at X
	acked     atomic.Int64 // jobs that NATS has stored
	refused   atomic.Int64 // tries without an acknowledgement
	producers sync.WaitGroup
	mu        sync.Mutex
	jobs      []*harness.Job
}

func newClustered(t *testing.T, accounts []string) *clustered {
	t.Helper()
	s := &clustered{cluster: startCluster(t), pair: pgtest.StartPair(t)}
	s.ready()
	s.site = newSite(t, harness.SiteConfig{NATS: s.url(), Replicas: clusterServers, Database: s.pair.URL(), Lease: longLease, Accounts: accounts})
	testkit.Must(t, s.Sim.SetLimits([]xsim.Limit{
		{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 10_000_000, WindowMS: 900_000},
		{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeApp24h, Max: 10_000_000, WindowMS: 86_400_000},
	}))
	count := func(r *http.Request, made bool) {
		if made && r.Method == http.MethodPost && r.URL.Path == harness.PostPath {
			s.made.Add(1)
		}
	}
	s.OnCall.Store(&count)
	return s
}

// produce has several producers publish jobs until the context ends, each those of accounts
// of its own and in order. A job that is not acknowledged is sent again.
func (s *clustered) produce(ctx context.Context, accounts []string) {
	for p := range clusterProducers {
		s.producers.Go(func() {
			for n := p; ctx.Err() == nil; n += clusterProducers {
				j := &harness.Job{Account: accounts[n%len(accounts)], Id: fmt.Sprint("job-", n), Posts: 1 + n%11/10}
				for body := j.Body(s.T); !s.try(j, body); {
					if s.T.Context().Err() != nil {
						return
					}
				}
				s.mu.Lock()
				s.jobs = append(s.jobs, j)
				s.mu.Unlock()
				// No faster than X, so that jobs are sent in the middle of each fault.
				for s.acked.Load() > s.made.Load()+clusterPosts && ctx.Err() == nil {
					select {
					case <-ctx.Done():
					case <-time.After(testkit.AskAgain):
					}
				}
			}
		})
	}
}

// try sends a job once.
func (s *clustered) try(j *harness.Job, body []byte) bool {
	ctx, cancel := context.WithTimeout(s.T.Context(), clusterAck)
	defer cancel()
	ack, err := s.Conn.JS.Publish(ctx, "publish.request."+j.Account, body)
	if err != nil {
		s.refused.Add(1)
		return false
	}
	j.Sequence = ack.Sequence
	s.acked.Add(1)
	return true
}

// goesOn waits until posts go out after something has happened.
func (s *clustered) goesOn(after string) {
	s.T.Helper()
	from, began := s.made.Load(), time.Now()
	testkit.Eventually(s.T, "posts after "+after, func() bool { return s.made.Load() >= from+clusterPosts })
	s.T.Logf("%d posts more within %s after %s", clusterPosts, time.Since(began).Round(100*time.Millisecond), after)
}

// leader is the server that leads a stream.
func (s *clustered) leader(stream string) (leader int) {
	s.T.Helper()
	testkit.Eventually(s.T, "a leader of "+stream, func() bool {
		found, err := s.Conn.JS.Stream(s.T.Context(), stream)
		if err != nil || found.CachedInfo().Cluster == nil {
			return false
		}
		_, err = fmt.Sscanf(found.CachedInfo().Cluster.Leader, "n%d", &leader)
		return err == nil
	})
	return leader
}

// inSync waits until each server has all of every stream.
func (s *clustered) inSync() {
	s.T.Helper()
	testkit.Eventually(s.T, "the servers to have caught up", func() bool {
		ctx, cancel := context.WithTimeout(s.T.Context(), clusterAck)
		defer cancel()
		streams, list := 0, s.Conn.JS.ListStreams(ctx)
		for info := range list.Info() {
			streams++
			behind := func(p *jetstream.PeerInfo) bool { return !p.Current || p.Offline }
			if info.Cluster == nil || info.Cluster.Leader == "" || len(info.Cluster.Replicas) != clusterServers-1 || slices.ContainsFunc(info.Cluster.Replicas, behind) {
				return false
			}
		}
		return list.Err() == nil && streams > 0
	})
}

// wantStandstill cuts two servers off. Nothing may be accepted until they are back, and status
// says so.
func (s *clustered) wantStandstill() {
	s.T.Helper()
	s.cut(0, true)
	s.cut(1, true)
	var status app.Status
	testkit.Eventually(s.T, "status to say that nothing is published", func() bool {
		_, stdout, _ := s.Run("status", "-o", "json")
		return json.Unmarshal([]byte(stdout), &status) == nil && status.State == health.NotPublishing
	})
	s.T.Logf("status, with two servers cut off: %s", status.Summary)
	acked, tries := s.acked.Load(), s.refused.Load()
	testkit.Eventually(s.T, "producers to try in vain", func() bool { return s.refused.Load() >= tries+3*clusterProducers })
	if more := s.acked.Load() - acked; more > 0 {
		s.T.Errorf("%d jobs were accepted by one server of three", more)
	}
	s.cut(0, false)
	s.cut(1, false)
}

// TestCluster: JETPOST_REPLICAS=3 on three nats-servers. Their leaders are killed, one is cut
// off, then two, all are restarted in turn, and PostgreSQL's primary is lost, while several
// producers publish. Each job is posted once, in the order of its account.
func TestCluster(t *testing.T) { //nolint:paralleltest // it has a network of its own
	if os.Getenv("JETPOST_TEST_FULL") == "" {
		t.Skip("skipped: it takes minutes, and root; set JETPOST_TEST_FULL=1")
	}
	accounts := harness.AccountNames(clusterAccounts)
	s := newClustered(t, accounts)
	workers := []*harness.Process{s.Worker("worker-1"), s.Worker("worker-2")}
	ctx, stop := context.WithCancel(t.Context())
	defer s.producers.Wait()
	defer stop()
	s.produce(ctx, accounts)
	s.goesOn("the start")

	names := s.Conn.Names
	for _, stream := range []string{names.JobsStream(), names.LanesStream(), names.EventsStream()} {
		i := s.leader(stream)
		s.servers[i].Kill()
		s.goesOn("the leader of " + stream + " was killed")
		s.start(i)
		s.inSync()
	}
	i := s.leader(names.LanesStream())
	s.cut(i, true)
	s.goesOn("the leader of " + names.LanesStream() + " was cut off")
	s.cut(i, false)
	s.inSync()
	s.goesOn("it came back")

	s.wantStandstill()
	s.goesOn("two servers came back")
	s.inSync()

	for i := range clusterServers {
		harness.Stop(s.servers[i])
		s.start(i)
		s.inSync()
	}
	s.goesOn("each server was restarted")

	s.pair.Primary.Kill(t)
	s.pair.Promote(t)
	s.goesOn("the standby of PostgreSQL became the primary")

	stop()
	s.producers.Wait()
	s.AllPublished(len(s.jobs))
	s.WantCallLog(s.jobs)
	t.Logf("%d jobs of %d accounts, %d posts: each once, in order; %d tries of producers were not acknowledged", len(s.jobs), len(accounts), s.made.Load(), s.refused.Load())
	harness.Stop(workers...)
}
