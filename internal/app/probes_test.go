package app

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// testPassword is every user's in the tests.
const testPassword = "secret"

// wallServers are servers of one cluster, or one alone, with the accounts that
// 'jetpost nats config' prints.
func wallServers(t *testing.T, count int, walls Walls) []*server.Server {
	t.Helper()
	logins := map[string]string{}
	for _, user := range walls.Users() {
		logins[user] = fmt.Sprintf("password: %q", testPassword)
	}
	maps.Copy(logins, walls.Logins)
	walls.Logins = logins
	var routes []string
	for range count {
		routes = append(routes, testkit.ClosedAddress(t))
	}
	servers := make([]*server.Server, count)
	for i := range servers {
		var o server.Options
		testkit.Must(t, o.ProcessConfigString(walls.Config()))
		o.ServerName, o.JetStream, o.StoreDir, o.NoLog, o.NoSigs = fmt.Sprint("n", i), true, t.TempDir(), true, true
		natstest.Listen(&o)
		if count > 1 {
			host, port, err := net.SplitHostPort(routes[i])
			testkit.Must(t, err)
			o.Cluster.Name, o.Cluster.Host = "walls", host
			_, err = fmt.Sscan(port, &o.Cluster.Port)
			testkit.Must(t, err)
			o.Routes = server.RoutesFromStr("nats://" + strings.Join(routes, ",nats://"))
		}
		s, err := server.NewServer(&o)
		testkit.Must(t, err)
		go s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		servers[i] = s
	}
	for _, s := range servers {
		if !s.ReadyForConnections(testkit.Patience) {
			t.Fatal("a server did not start")
		}
	}
	if count > 1 {
		testkit.Eventually(t, "the cluster to have a leader", func() bool {
			return slices.ContainsFunc(servers, (*server.Server).JetStreamIsLeader)
		})
		testkit.Eventually(t, "all servers to be in JetStream", func() bool {
			return !slices.ContainsFunc(servers, func(s *server.Server) bool { return !s.JetStreamIsCurrent() })
		})
		testkit.Eventually(t, "the leader to hear of all servers, on which it places streams", func() bool {
			leader := slices.IndexFunc(servers, (*server.Server).JetStreamIsLeader)
			if leader < 0 {
				return false
			}
			info, err := servers[leader].Jsz(nil)
			if err != nil || info.Meta == nil || len(info.Meta.Replicas) != count-1 {
				return false
			}
			return !slices.ContainsFunc(info.Meta.Replicas, func(p *server.PeerInfo) bool { return p.Offline || !p.Current })
		})
	}
	return servers
}

// setUpWalls makes everything as the user setup, and connects as the worker.
func setUpWalls(t *testing.T, servers []*server.Server, names jetpost.Names, prefix string) *Connection {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	cfg := Config{
		DatabaseURL: secret.New("sqlite:" + filepath.Join(t.TempDir(), databaseFile)), Keys: store.GenerateKey(),
		NATS: NATSConfig{URL: servers[0].ClientURL(), User: setupUser, Password: secret.New(testPassword), Prefix: prefix, Replicas: len(servers)},
	}
	var report publishers.Report
	var err error
	testkit.Eventually(t, "a leader that places streams", func() bool { // it may not have heard of all servers yet, or be a new one
		report, err = cfg.Setup(t.Context(), log)
		return err == nil || !strings.Contains(err.Error(), "no suitable peers")
	})
	testkit.Must(t, err)
	if !report.Walled {
		t.Fatal("setup does not see the walls")
	}
	cfg.NATS.User = workerUser
	conn, err := cfg.Connect(t.Context(), log, "worker")
	testkit.Must(t, err)
	t.Cleanup(conn.Close)
	ledger, err := cfg.OpenStore(t.Context())
	testkit.Must(t, err)
	id, err := ledger.LedgerID(t.Context())
	testkit.Must(t, err)
	testkit.Must(t, ledger.Close())
	testkit.Must(t, publishers.Check(t.Context(), conn.JS, cfg.Topology(conn.Names, id)))
	return conn
}

// inventory is what there is in JetStream, in every account and on every
// server: streams with what they hold, and their consumers with what they have
// handed out. Consumers of the mirror are the producers' own, and what producers
// store is told by the two numbers.
func inventory(t *testing.T, servers []*server.Server, n jetpost.Names) (found []string, jobs, media uint64) {
	t.Helper()
	for _, s := range servers {
		callLog, err := s.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Consumer: true, Config: true})
		testkit.Must(t, err)
		for _, account := range callLog.AccountDetails {
			for _, stream := range account.Streams {
				state := fmt.Sprint(stream.State.Msgs, stream.State.Bytes, stream.State.FirstSeq, stream.State.LastSeq)
				switch stream.Name {
				case n.JobsStream():
					jobs, state = max(jobs, stream.State.LastSeq), "jobs"
				case "OBJ_" + n.MediaBucket():
					media, state = max(media, stream.State.Msgs), "media"
				}
				config, err := json.Marshal(stream.Config)
				testkit.Must(t, err)
				where := s.Name() + " " + account.Name + " " + stream.Name
				found = append(found, fmt.Sprintf("%s %s %s", where, state, config))
				for _, c := range stream.Consumer {
					if account.Name == n.MirrorAccount() && stream.Name == n.EventsStream() {
						continue
					}
					config, err := json.Marshal(c.Config)
					testkit.Must(t, err)
					found = append(found, fmt.Sprint(where, " ", c.Name, " ", c.Delivered.Stream, c.AckFloor.Stream, c.NumAckPending, c.Paused, string(config)))
				}
			}
		}
	}
	slices.Sort(found)
	return found, jobs, media
}

// probeTargets are the subjects on which a producer must have no effect.
func probeTargets(n jetpost.Names) []string {
	targets := []string{
		"$KV." + n.LimitsBucket() + ".pause.publish", "$KV." + n.LimitsBucket() + ".window.app",
		n.ScheduleRefresh(), n.ScheduleWake("acme"), n.DuePublish("acme"), n.DueRefresh("tick"), n.PublishWake("acme"),
		n.RefreshBatch(), n.RefreshOrder(), n.PublishFailed("acme", "1"), n.PublishRefused("", "1"), n.RefreshFailed("acme"), n.PublishIntake("0", "acme"),
		n.EventSubject(jetpost.EventAppPaused, "", ""), n.EventSubject(jetpost.EventRequestPublished, "acme", "1"), n.MirrorEvents(),
		n.WorkAPI() + ".CONSUMER.RESET." + n.EventsStream() + "." + jetpost.ConsumerMirror,
		"$JS.FC." + n.EventsStream() + "." + jetpost.ConsumerMirror + ".1",
		"$JS.API.CONSUMER.RESET." + n.EventsStream() + "." + jetpost.ConsumerMirror,
		"$JS.API.STREAM.CREATE.STRANGER", "$SYS.REQ.SERVER.PING", "$SYS.ACCOUNT." + n.WorkAccount() + ".CONNECT",
		"$JS.API.META.LEADER.STEPDOWN", "$JS.API.META.RESCUE", "$JS.API.SERVER.REMOVE", "$JS.API.SERVER.EVACUATE",
	}
	for _, account := range []string{n.WorkAccount(), n.MirrorAccount()} {
		targets = append(targets, "$JS.API.ACCOUNT.PURGE."+account,
			"$JS.API.ACCOUNT.STREAM.MOVE."+account+"."+n.JobsStream(), "$JS.API.ACCOUNT.STREAM.CANCEL_MOVE."+account+"."+n.JobsStream())
	}
	for stream, consumer := range map[string]string{
		n.LanesStream(): jetpost.ConsumerLanes, n.RefreshStream(): jetpost.ConsumerRefresh, n.JobsStream(): jetpost.ConsumerIntakeAny, n.EventsStream(): jetpost.ConsumerMirror,
	} {
		for _, verb := range []string{"PAUSE", "UNPIN", "RESET", "LEADER.STEPDOWN", "PEER.REMOVE", "PEER.EVACUATE"} {
			targets = append(targets, "$JS.API.CONSUMER."+verb+"."+stream+"."+consumer)
		}
	}
	for _, stream := range []string{
		n.JobsStream(), n.LanesStream(), n.ScheduleStream(), n.RefreshStream(), n.FailedStream(), n.EventsStream(), "KV_" + n.LimitsBucket(), "OBJ_" + n.MediaBucket(),
	} {
		for _, verb := range []string{
			"CREATE", "DELETE", "PURGE", "UPDATE", "MSG.DELETE", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN", "PEER.REMOVE", "PEER.EVACUATE", "CANCEL_MOVE",
		} {
			if verb == "PURGE" && stream == "OBJ_"+n.MediaBucket() {
				continue // of which producers are masters
			}
			targets = append(targets, "$JS.API.STREAM."+verb+"."+stream, n.MirrorAPI()+".STREAM."+verb+"."+stream)
		}
		targets = append(targets, "$JS.API.CONSUMER.CREATE."+stream, "$JS.API.CONSUMER.CREATE."+stream+".stranger", "$JS.API.CONSUMER.DURABLE.CREATE."+stream+".stranger",
			"$JS.ACK."+stream+".lanes.1.1.1.1.0")
		for _, consumer := range []string{jetpost.ConsumerLanes, jetpost.ConsumerRefresh, jetpost.ConsumerIntakeAny, jetpost.ConsumerMirror} {
			targets = append(targets, "$JS.API.CONSUMER.DELETE."+stream+"."+consumer, "$JS.API.CONSUMER.MSG.NEXT."+stream+"."+consumer)
		}
	}
	slices.Sort(targets)
	targets = slices.Compact(targets)
	// The mirror's consumers are the producers' own.
	return slices.DeleteFunc(targets, func(target string) bool {
		return strings.HasPrefix(target, "$JS.API.CONSUMER.CREATE."+n.EventsStream()) || strings.HasPrefix(target, "$JS.API.CONSUMER.DURABLE.CREATE."+n.EventsStream())
	})
}

// attack sends everything to one target that a producer can send: as the
// subject, as the place of an answer, and as that of a consumer's deliveries.
func attack(t *testing.T, nc *nats.Conn, n jetpost.Names, target string, object string) (jobs uint64, made []string, delivers bool) {
	t.Helper()
	events, media := n.EventsStream(), "OBJ_"+n.MediaBucket()
	stop := []byte(`{"target":"publish","reason":{"code":"app_paused"}}`)
	consumer := fmt.Sprintf(`{"stream_name":%q,"config":{"durable_name":"stranger","ack_policy":"none","deliver_subject":"x"}}`, n.LanesStream())
	for _, header := range []nats.Header{
		nil,
		{jetstream.MsgRollup: {jetstream.MsgRollupAll}},
		{jetstream.ScheduleHeader: {"@every 1s"}, jetstream.ScheduleTargetHeader: {n.DueRefresh("tick")}},
		{"Nats-Scheduler": {n.ScheduleRefresh()}, "Nats-Schedule-Next": {"purge"}},
	} {
		for _, body := range [][]byte{nil, stop, []byte(consumer)} {
			testkit.Must(t, nc.PublishMsg(&nats.Msg{Subject: target, Header: header, Data: body}))
		}
		testkit.Must(t, nc.PublishMsg(&nats.Msg{Subject: n.PublishRequest("acme"), Reply: target, Header: header, Data: []byte(`{"posts":[{"text":"Hello"}]}`)}))
	}
	if !strings.HasPrefix(target, "$JS.ACK.") { // a reply that nats-server itself refuses
		jobs++ // the one without a header
	}
	chunk := "$O." + n.MediaBucket() + ".C.none"
	for _, ask := range []struct{ subject, body string }{
		{"$JS.API.INFO", ""}, {"$JS.API.STREAM.NAMES", ""}, {"$JS.API.STREAM.LIST", ""}, {"$JS.API.STREAM.INFO." + events, ""},
		{"$JS.API.STREAM.MSG.GET." + events, `{"last_by_subj":"none"}`},
		{"$JS.API.DIRECT.GET." + events, `{"last_by_subj":"none"}`}, {"$JS.API.DIRECT.GET." + events, `{"seq":1}`},
		{"$JS.API.DIRECT.GET." + events, `{"batch":10,"seq":1,"next_by_subj":">"}`}, {"$JS.API.DIRECT.GET." + events + ".none", ""},
		{"$JS.API.DIRECT.GET." + media, `{"last_by_subj":"` + chunk + `"}`}, {"$JS.API.DIRECT.GET." + media + "." + object, ""},
		{"$JS.API.STREAM.MSG.GET." + media, `{"last_by_subj":"` + object + `"}`},
		{"$JS.API.STREAM.PURGE." + media, `{"filter":"` + chunk + `"}`},
		{object, consumer},
		{"$JS.API.CONSUMER.MSG.NEXT." + events + ".mine", `{"batch":1,"no_wait":true}`}, {"$JS.API.CONSUMER.MSG.NEXT." + events + ".empty", `{"batch":1,"no_wait":true}`},
		{"$JS.API.CONSUMER.MSG.NEXT." + events + ".empty", `{"batch":1,"expires":1000000}`},
		{"$JS.API.CONSUMER.NAMES." + events, ""}, {"$JS.API.CONSUMER.INFO." + events + ".mine", ""},
		{"$JS.ACK." + events + ".mine.1.1.1.1.0", ""}, {"$JS.FC." + events + ".mine.1", ""},
	} {
		testkit.Must(t, nc.PublishRequest(ask.subject, target, []byte(ask.body)))
	}
	for i, deliver := range [][2]string{{target, ""}, {"_INBOX.x", target}, {target, target}} {
		name := fmt.Sprintf("push-%d-%s", i, strings.NewReplacer(".", "-", "$", "").Replace(target))
		for _, stream := range []string{events, media} {
			config := fmt.Sprintf(`{"stream_name":%q,"config":{"name":%q,"ack_policy":"none","deliver_subject":%q,"deliver_group":%q,"inactive_threshold":60000000000}}`,
				stream, name, deliver[0], deliver[1])
			durable := strings.Replace(config, `"name"`, `"durable_name":"durable-`+name+`","name"`, 1)
			made = append(made, name, "durable-"+name)
			testkit.Must(t, nc.PublishRequest("$JS.API.CONSUMER.CREATE."+stream+"."+name, target, []byte(config)))
			testkit.Must(t, nc.PublishRequest("$JS.API.CONSUMER.DURABLE.CREATE."+stream+".durable-"+name, target, []byte(strings.Replace(durable, `"name":"`+name, `"name":"durable-`+name, 1))))
		}
	}
	// The server drops requests that pile up; this waits for those before it.
	made = append(made, "last-"+made[0])
	answer, err := nc.Request("$JS.API.CONSUMER.CREATE."+events+".last-"+made[0], []byte(fmt.Sprintf(
		`{"stream_name":%q,"config":{"name":"last-%s","ack_policy":"none","deliver_subject":%q,"inactive_threshold":60000000000}}`, events, made[0], target)), testkit.Patience)
	if err != nil {
		t.Fatalf("after %s: %v", target, err)
	}
	return jobs, made, !strings.Contains(string(answer.Data), `"error"`)
}

// A producer can send anything to anywhere, and have any answer and any delivery
// sent anywhere: nothing but its own jobs and media come of it.
func TestProbes(t *testing.T) {
	t.Parallel()
	type installation struct {
		name    string
		servers int
		prefix  string
		login   []nats.Option
	}
	login := []nats.Option{nats.UserInfo(producerUser, testPassword)}
	runs := []installation{{"one server", 1, "", nil}, {"three servers, with a prefix", 3, "acme", login}}
	if fullTest() {
		runs = append(runs, installation{"one server, with a login", 1, "", login}, installation{"three servers", 3, "", nil})
	}
	for _, run := range runs {
		t.Run(run.name, func(t *testing.T) {
			t.Parallel()
			names, err := jetpost.NewNames(run.prefix)
			testkit.Must(t, err)
			walls := Walls{Names: names, NoLogin: run.login == nil, Logins: map[string]string{}}
			if walls.NoLogin {
				walls.Logins[producerUser] = `password: ""`
			}
			servers := wallServers(t, run.servers, walls)
			probe(t, servers, setUpWalls(t, servers, names, run.prefix), run.login)
		})
	}
}

func fullTest() bool { return os.Getenv("JETPOST_TEST_FULL") != "" }

// prober is a producer that sends everything to everywhere.
type prober struct {
	servers []*server.Server
	names   jetpost.Names
	worker  *Connection
	nc      *nats.Conn
	object  string // the subject of the bait
}

func probe(t *testing.T, servers []*server.Server, worker *Connection, login []nats.Option) {
	t.Helper()
	p := &prober{servers: servers, names: worker.Names, worker: worker}
	p.fill(t)
	p.connect(t, login)
	p.awaitMirror(t)
	before, _, _ := settled(t, servers, p.names)
	jobs := p.attackAll(t)
	after, stored, media := settled(t, servers, p.names)
	if stored != jobs {
		t.Errorf("%d jobs are stored, want %d", stored, jobs)
	}
	if media == 0 {
		t.Error("the media are gone")
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("was there: %s", line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			t.Errorf("came: %s", line)
		}
	}
}

// fill puts one message into each of the workers' streams, so that each can lose one.
func (p *prober) fill(t *testing.T) {
	t.Helper()
	n, ctx := p.names, t.Context()
	wakeups, deadLetters := publishers.NewWakeups(p.worker.JS, n), publishers.NewDeadLetters(p.worker.JS, n)
	testkit.Must(t, wakeups.Wake(ctx, "victim"))
	testkit.Must(t, wakeups.WakeAt(ctx, "victim", time.Now().Add(time.Hour)))
	testkit.Must(t, wakeups.Batch(ctx, jetpost.RefreshBatch{Round: "1"}))
	for range 3 {
		testkit.Must(t, deadLetters.Event(ctx, n.EventSubject(jetpost.EventAppResumed, "", ""), jetpost.Event{Type: jetpost.EventAppResumed, App: &jetpost.AppStatus{Target: publishers.TargetPublish}}))
	}
	_, err := p.worker.JS.Publish(ctx, n.PublishFailed("victim", "1"), []byte("{}"))
	testkit.Must(t, err)
	kv, err := p.worker.JS.KeyValue(ctx, n.LimitsBucket())
	testkit.Must(t, err)
	_, err = kv.Put(ctx, "window.account.victim", []byte("[]"))
	testkit.Must(t, err)
}

// connect gives the producer what it may have: consumers of events, and an object whose
// bytes are a request. Whoever reads that has them sent anywhere.
func (p *prober) connect(t *testing.T, login []nats.Option) {
	t.Helper()
	n, ctx := p.names, t.Context()
	var err error
	p.nc, err = nats.Connect(p.servers[len(p.servers)-1].ClientURL(), append(login, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))...)
	testkit.Must(t, err)
	t.Cleanup(p.nc.Close)
	js, err := jetstream.New(p.nc)
	testkit.Must(t, err)
	mirror, err := js.Stream(ctx, n.EventsStream())
	testkit.Must(t, err)
	testkit.Eventually(t, "the mirror to have the events", func() bool {
		info, err := mirror.Info(ctx)
		return err == nil && info.State.Msgs == 3
	})
	for _, c := range []jetstream.ConsumerConfig{{Durable: "mine", AckPolicy: jetstream.AckExplicitPolicy}, {Durable: "empty", FilterSubject: n.EventSubject(jetpost.EventAppPaused, "", "")}} {
		_, err := mirror.CreateConsumer(ctx, c)
		testkit.Must(t, err)
	}
	p.object = "$O." + n.MediaBucket() + ".M." + base64.URLEncoding.EncodeToString([]byte("bait"))
	_, err = js.Publish(ctx, p.object, []byte(`{"stream_name":"`+n.LanesStream()+`","config":{"durable_name":"stranger"}}`))
	testkit.Must(t, err)
}

// awaitMirror waits until the streams are as they stay.
func (p *prober) awaitMirror(t *testing.T) {
	t.Helper()
	wakeup, err := p.worker.JS.Consumer(t.Context(), p.names.LanesStream(), jetpost.ConsumerLanes)
	testkit.Must(t, err)
	if got := wakeup.CachedInfo().NumPending; got != 1 {
		t.Fatalf("%d wake-ups wait, want 1", got)
	}
	testkit.Eventually(t, "the mirror to have acknowledged the events", func() bool {
		feed, err := p.worker.JS.PushConsumer(t.Context(), p.names.EventsStream(), jetpost.ConsumerMirror)
		return err == nil && feed.CachedInfo().AckFloor.Stream == 3
	})
}

// attackAll attacks each target, and returns how many jobs it sent.
func (p *prober) attackAll(t *testing.T) (jobs uint64) {
	t.Helper()
	targets := probeTargets(p.names)
	if len(p.servers) > 1 && !fullTest() { // where each consumer is a Raft group of its own
		const stride = 16
		kept := targets[:0]
		for i := 0; i < len(targets); i += stride {
			kept = append(kept, targets[i])
		}
		targets = kept
	}
	var left []string
	delivered := 0
	for _, target := range targets {
		more, made, delivers := attack(t, p.nc, p.names, target, p.object)
		jobs += more
		if delivers {
			delivered++
		}
		for _, name := range left { // which have delivered
			testkit.Must(t, p.nc.Publish("$JS.API.CONSUMER.DELETE."+p.names.EventsStream()+"."+name, nil))
		}
		left = made
	}
	testkit.Must(t, p.nc.FlushTimeout(testkit.Patience))
	t.Logf("%d targets, %d jobs, consumers that deliver onto %d of them", len(targets), jobs, delivered)
	if delivered < len(targets)/2 {
		t.Errorf("consumers deliver onto %d of %d targets: the attack did not take place", delivered, len(targets))
	}
	return jobs
}

// settled is the inventory once two looks at it, with a quiet moment between
// them, are the same.
func settled(t *testing.T, servers []*server.Server, n jetpost.Names) (found []string, jobs, media uint64) {
	t.Helper()
	const quiet = 500 * time.Millisecond // far longer than any answer is on its way
	testkit.Eventually(t, "everything to be quiet", func() bool {
		first, firstJobs, _ := inventory(t, servers, n)
		<-time.After(quiet)
		found, jobs, media = inventory(t, servers, n)
		return slices.Equal(first, found) && firstJobs == jobs
	})
	return found, jobs, media
}

// A customer's account knows its own X accounts, and so does a reader's: another's jobs and
// events stay out.
func TestCustomerBehindWalls(t *testing.T) { //nolint:paralleltest // it sets variables of the environment
	const prefix = "pre"
	names, err := jetpost.NewNames(prefix)
	testkit.Must(t, err)
	walls := Walls{Names: names, Customers: []string{"acme"}, Readers: []string{"press"}, Accounts: map[string][]string{"press": {"acme", "third"}}}
	for _, user := range walls.Users() {
		t.Setenv(PasswordVariable(user), testPassword) // as nats-server reads them
	}
	var read server.Options
	testkit.Must(t, read.ProcessConfigString(walls.Config()))
	servers := wallServers(t, 1, walls)
	worker := setUpWalls(t, servers, names, prefix)
	js, reads := connectJS(t, servers[0], "acme"), connectJS(t, servers[0], "press")
	ctx := t.Context()
	if _, err := js.Publish(ctx, names.PublishRequest("acme"), []byte(`{"posts":[{"text":"Hello"}]}`)); err != nil {
		t.Errorf("its own job: %v", err)
	}
	for _, subject := range []string{names.PublishRequest("other"), names.PublishRequest(""), names.RefreshRequest()} {
		for user, js := range map[string]jetstream.JetStream{"acme": js, "press": reads} {
			if _, err := js.Publish(ctx, subject, []byte(`{}`), jetstream.WithRetryAttempts(0)); err == nil {
				t.Errorf("%s, %s: it was stored", user, subject)
			}
		}
	}
	if _, err := reads.Publish(ctx, names.PublishRequest("acme"), []byte(`{}`), jetstream.WithRetryAttempts(0)); err == nil {
		t.Error("a reader's job was stored")
	}
	if _, err := reads.Stream(ctx, names.EventsStream()); err == nil {
		t.Error("a reader reads the events of all")
	}
	heard := map[string]*nats.Subscription{}
	for user, js := range map[string]jetstream.JetStream{"acme": js, "press": reads} {
		heard[user], err = js.Conn().SubscribeSync(">")
		testkit.Must(t, err)
		testkit.Must(t, js.Conn().Flush())
	}
	deadLetters := publishers.NewDeadLetters(worker.JS, names)
	for _, account := range []string{"other", "acme"} {
		testkit.Must(t, deadLetters.Event(ctx, names.EventSubject(jetpost.EventRequestPublished, account, "1"), jetpost.Event{Type: jetpost.EventRequestPublished}))
	}
	for user, events := range heard {
		msg, err := events.NextMsg(testkit.Patience)
		testkit.Must(t, err)
		if want := names.EventSubject(jetpost.EventRequestPublished, "acme", "1"); msg.Subject != want {
			t.Errorf("%s: the first event is %s, want %s", user, msg.Subject, want)
		}
	}
}

// connectJS is the JetStream of a user.
func connectJS(t *testing.T, s *server.Server, user string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), nats.UserInfo(user, testPassword))
	testkit.Must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	testkit.Must(t, err)
	return js
}
