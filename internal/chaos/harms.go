package chaos

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/disktest"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// This file has the harms of the run on standstill, its poison, and the installations
// that they are done to.

// standHarm is one kind of harm.
type standHarm struct {
	name string
	on   harmPlace
	// codes are the causes with which status may say that everything stands still, beside
	// those of what is stuck; none where nothing must.
	codes []string
	// shows is the guard whose loss it shows.
	shows string
	// do does it from its beginning to its end.
	do func(ctx context.Context, c *standRun, random *rand.Rand)
}

// harmPlace is where a harm can be done.
type harmPlace int

const (
	anywhere   harmPlace = iota
	onFleet              // where there is more than one worker
	onInstance           // 'jetpost up'
	onDisk               // 'jetpost up' on a disk that can be filled
)

func (h standHarm) applies(c *standRun) bool {
	switch h.on {
	case onFleet:
		return c.instance == nil
	case onInstance:
		return c.instance != nil
	case onDisk:
		return c.instance != nil && c.instance.disk != nil
	default:
		return true
	}
}

// slowBy is how long a slow dependency takes for each answer.
const slowBy = 5 * time.Second

func (p path) ofDatabase() *pgtest.Proxy { return p.database }
func (p path) ofNATS() *pgtest.Proxy     { return p.nats }

func slowly(p *pgtest.Proxy) { p.Delay(slowBy) }

// The causes, as status has them.
const (
	notSetUp, lanesPaused, diskFull, noWrites = "not_set_up", "lanes_paused", "disk_full", "no_writes"
	natsAway, noWorker                        = "nats_unreachable", "no_worker"
	intakeStuck, lanesStuck                   = "intake_stuck", "lanes_stuck"
)

var standHarms = []standHarm{
	{name: "the database refuses one worker", on: onFleet, do: onPath(path.ofDatabase, (*pgtest.Proxy).Refuse)},
	{name: "the database of one worker is silent", on: onFleet, shows: guardDeadline, do: onPath(path.ofDatabase, (*pgtest.Proxy).Hang)},
	{name: "the database of one worker is slow", on: onFleet, do: onPath(path.ofDatabase, slowly)},
	{name: "NATS refuses one worker", on: onFleet, do: onPath(path.ofNATS, (*pgtest.Proxy).Refuse)},
	{name: "NATS is silent to one worker", on: onFleet, do: onPath(path.ofNATS, (*pgtest.Proxy).Hang)},
	{name: "NATS is slow to one worker", on: onFleet, do: onPath(path.ofNATS, slowly)},
	{name: "one worker is frozen", on: onFleet, do: func(ctx context.Context, c *standRun, random *rand.Rand) {
		frozen(c, c.victim(ctx, random), func() { c.last(ctx, random) })
	}},
	{name: "'up' is frozen", on: onInstance, codes: []string{natsAway, noWorker}, do: func(ctx context.Context, c *standRun, random *rand.Rand) {
		frozen(c, 0, func() {
			c.tells(ctx, natsAway)
			c.last(ctx, random)
		})
	}},
	{name: "the disk runs low", on: onDisk, codes: []string{diskFull}, do: filled(health.DiskFull - 1<<20)},
	{name: "the disk is full", on: onDisk, codes: []string{diskFull, noWrites, natsAway}, do: filled(0)},
	{name: "the bucket of app pauses is deleted", codes: []string{notSetUp}, do: bucketDeleted},
	{name: "a stream is deleted", codes: []string{notSetUp}, do: streamDeleted},
	{name: "a consumer is deleted", codes: []string{notSetUp}, do: consumerDeleted},
	{name: "the lanes are paused", codes: []string{lanesPaused}, shows: guardUpkeep, do: lanesPausedByHand},
	{name: scheduleReplaced, do: replaceSchedule},
	{name: "producers attack", shows: guardWalls, do: attacked},
}

// scheduleReplaced is looked after in the end: upkeep looks at the schedule every half
// minute.
const scheduleReplaced = "the refresh schedule is replaced"

// order is the next round: every kind once, or of a broken run those that show it.
func (c *standRun) order(random *rand.Rand) (order []standHarm) {
	for _, i := range random.Perm(len(standHarms)) {
		if h := standHarms[i]; h.applies(c) {
			order = append(order, h)
		}
	}
	if shows := slices.DeleteFunc(slices.Clone(order), func(h standHarm) bool { return h.shows == "" || h.shows != c.guard }); len(shows) > 0 {
		return shows
	}
	// It has the more time to be put right.
	slices.SortStableFunc(order, func(a, b standHarm) int {
		switch scheduleReplaced {
		case a.name:
			return -1
		case b.name:
			return 1
		}
		return 0
	})
	return order
}

// last lets a harm last for a while, and tells for how long.
func (c *standRun) last(ctx context.Context, random *rand.Rand) time.Duration {
	began, d := time.Now(), between(random, shortestHarm, c.harm)
	if c.guard != "" {
		d = c.harm
	}
	c.until(ctx, d, c.seen)
	return time.Since(began)
}

// victim is a worker: any, or as often the one that accepts all jobs just now.
func (c *standRun) victim(ctx context.Context, random *rand.Rand) int {
	chosen := random.IntN(c.workers)
	if random.IntN(2) > 0 && c.guard == "" {
		return chosen
	}
	var name string
	c.until(ctx, standsWithin, func() bool {
		err := c.view.db.QueryRowContext(ctx, "SELECT owner FROM leases WHERE name = $1", jetpost.ConsumerIntake(0)).Scan(&name)
		return err == nil
	})
	c.fleet.mu.Lock()
	defer c.fleet.mu.Unlock()
	if at := slices.IndexFunc(c.fleet.now, func(l *life) bool { return l != nil && l.Name == name }); at >= 0 {
		return at
	}
	return chosen
}

// onPath harms the way of one worker to one of what it depends on. Where the database does
// not answer for long, status has to name the worker.
func onPath(to func(path) *pgtest.Proxy, harm func(*pgtest.Proxy)) func(context.Context, *standRun, *rand.Rand) {
	return func(ctx context.Context, c *standRun, random *rand.Rand) {
		victim := c.victim(ctx, random)
		proxy := to(c.paths[victim])
		harm(proxy)
		d := c.last(ctx, random)
		if d >= toldWithin && proxy == c.paths[victim].database {
			c.blames(ctx, victim)
		}
		proxy.Heal()
	}
}

// blames wants status to name a worker that cannot work.
func (c *standRun) blames(ctx context.Context, worker int) {
	status, err := c.status(ctx)
	c.fleet.mu.Lock()
	l := c.fleet.now[worker]
	c.fleet.mu.Unlock()
	named := l != nil && slices.ContainsFunc(status.Causes, func(cause health.Cause) bool {
		return cause.Code == "worker_fault" && strings.HasPrefix(cause.Reason, "worker "+l.Name+": ")
	})
	if !named && ctx.Err() == nil && c.guard == "" {
		c.findings.add("not told", "the database of worker %d does not answer, and status says %q, %v, %v", worker+1, status.Summary, status.Causes, err)
	}
}

// frozen freezes a worker while something is done.
func frozen(c *standRun, worker int, while func()) {
	c.fleet.mu.Lock()
	l := c.fleet.now[worker]
	c.fleet.mu.Unlock()
	if l == nil {
		return // it is being started, and another round comes
	}
	c.fleet.freeze(l)
	defer c.fleet.thaw(l)
	while()
}

// filled fills the disk of 'up' but for so many bytes, and frees it. After a disk that was
// full to the last byte 'up' may end itself, to be started again.
func filled(left int64) func(context.Context, *standRun, *rand.Rand) {
	return func(ctx context.Context, c *standRun, random *rand.Rand) {
		l := c.fleet.all()
		c.instance.disk.Fill(left)
		c.tells(ctx, diskFull)
		c.last(ctx, random)
		c.instance.disk.Free()
		if left > 0 {
			return
		}
		before := c.moved.Load()
		c.until(ctx, standsWithin, func() bool {
			return len(c.fleet.all()) > len(l) || c.moved.Load().posted > before.posted+int64(len(c.names))
		})
		testkit.Eventually(c.T, "'up' to be at work", c.fleet.well)
		testkit.Must(c.T, c.instance.connect(c))
	}
}

// fewExchanges are those that a run has seen before it stops them.
const fewExchanges = 10

// bucketDeleted deletes the bucket of app pauses, and sets it up again: a pause that stood in it
// is not forgotten.
func bucketDeleted(ctx context.Context, c *standRun, random *rand.Rand) {
	c.until(ctx, standsWithin, func() bool { // which the pause keeps from going on
		made := 0
		for _, n := range c.Sim.Counts()[xsim.EndpointToken] {
			made += n
		}
		return made >= fewExchanges
	})
	pauses := &consumers.AppPauseControl{Bucket: harness.SignedPauses(c.T, c.control(), c.Ledger), Ledger: c.Ledger, Log: slog.New(slog.DiscardHandler)}
	_, _, err := pauses.Set(ctx, publishers.Pause{
		Target: publishers.TargetRefresh, Reason: jetpost.Reason{Code: jetpost.CodePausedByHand, Detail: "by hand"}, Since: time.Now(),
	})
	testkit.Must(c.T, err)
	testkit.Must(c.T, c.control().JS.DeleteStream(ctx, "KV_"+c.spaces.LimitsBucket()))
	c.setUpAgain(ctx, random)
	c.mends(ctx, "the pause of the deleted bucket", func() bool {
		_, there, err := pauses.Bucket.Get(ctx, publishers.TargetRefresh)
		return err == nil && there
	})
	if _, err = pauses.Clear(ctx, publishers.TargetRefresh); err != nil {
		c.findings.add("setup", "the pause cannot be ended: %v", err)
	}
}

// streamDeleted deletes a stream, but not that of the jobs, which nobody else has.
func streamDeleted(ctx context.Context, c *standRun, random *rand.Rand) {
	n := c.spaces
	streams := []string{n.LanesStream(), n.ScheduleStream(), n.RefreshStream(), n.FailedStream(), n.EventsStream()}
	stream := streams[random.IntN(len(streams))]
	c.say("  %s", stream)
	testkit.Must(c.T, c.control().JS.DeleteStream(ctx, stream))
	c.setUpAgain(ctx, random)
	testkit.Must(c.T, c.layBait(ctx))
}

func consumerDeleted(ctx context.Context, c *standRun, random *rand.Rand) {
	n := c.spaces
	all := [][2]string{{n.LanesStream(), jetpost.ConsumerLanes}, {n.RefreshStream(), jetpost.ConsumerRefresh}}
	for p := range jetpost.Partitions {
		all = append(all, [2]string{n.JobsStream(), jetpost.ConsumerIntake(p)})
	}
	one := all[random.IntN(len(all))]
	c.say("  %s of %s", one[1], one[0])
	testkit.Must(c.T, c.control().JS.DeleteConsumer(ctx, one[0], one[1]))
	c.setUpAgain(ctx, random)
}

// setUpAgain does what status says once it does, after a while.
func (c *standRun) setUpAgain(ctx context.Context, random *rand.Rand) {
	c.tells(ctx, notSetUp)
	if c.harm > shortestHarm {
		c.last(ctx, random)
	}
	args := []string{"setup"}
	if c.instance != nil {
		args = append(args, "--data", c.instance.dir)
	}
	if code, stdout, stderr := c.Run(args...); code != 0 && ctx.Err() == nil {
		c.findings.add("setup", "jetpost %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
}

func lanesPausedByHand(ctx context.Context, c *standRun, _ *rand.Rand) {
	control := c.control()
	_, err := control.JS.PauseConsumer(ctx, c.spaces.LanesStream(), jetpost.ConsumerLanes, time.Now().Add(time.Hour))
	testkit.Must(c.T, err)
	c.mends(ctx, "the pause of the lanes", func() bool {
		lanes, err := control.JS.Consumer(ctx, c.spaces.LanesStream(), jetpost.ConsumerLanes)
		return err == nil && !lanes.CachedInfo().Paused
	})
}

func replaceSchedule(ctx context.Context, c *standRun, _ *rand.Rand) {
	msg := nats.NewMsg(c.spaces.ScheduleRefresh())
	msg.Header.Set(jetstream.ScheduleHeader, harness.Never)
	msg.Header.Set(jetstream.ScheduleTargetHeader, c.spaces.DueRefresh("tick"))
	msg.Header.Set(jetstream.ScheduleTTLHeader, "6h0m0s")
	_, err := c.control().JS.PublishMsg(ctx, msg)
	testkit.Must(c.T, err)
}

// attacked has a producer send what could do harm to everything that it may not reach: as
// the subject, as the place of an answer, and as that of a consumer's deliveries. Nothing
// must come of it.
func attacked(ctx context.Context, c *standRun, _ *rand.Rand) {
	before, err := c.inventory(ctx)
	testkit.Must(c.T, err)
	targets := c.attackTargets()
	for i, target := range targets {
		c.attack(target, fmt.Sprintf("stranger-%d", i))
	}
	testkit.Must(c.T, c.sender.FlushTimeout(chaosPatience))
	pause(ctx, time.Second) // far longer than any answer is on its way
	for i := range targets {
		_ = c.sender.Publish("$JS.API.CONSUMER.DELETE."+c.spaces.EventsStream()+fmt.Sprintf(".stranger-%d", i), nil) // else it ends by itself
	}
	after, err := c.inventory(ctx)
	if err != nil {
		c.findings.add("walls", "after an attack NATS cannot be asked: %v", err)
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			c.findings.add("walls", "after an attack is gone: %s", line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			c.findings.add("walls", "an attack has made: %s", line)
		}
	}
}

func (c *standRun) attackTargets() []string {
	n := c.spaces
	targets := []string{
		"$KV." + n.LimitsBucket() + ".pause.publish", n.ScheduleRefresh(), n.DueRefresh("tick"), n.PublishWake(c.names[0]), n.RefreshOrder(),
		n.PublishFailed(baitAccount, "1"), n.EventSubject(jetpost.EventAppPaused, "", ""), "$JS.API.CONSUMER.PAUSE." + n.LanesStream() + "." + jetpost.ConsumerLanes,
		"$JS.API.STREAM.CREATE.STRANGER",
	}
	for _, stream := range []string{n.FailedStream(), n.LanesStream(), n.RefreshStream(), n.ScheduleStream(), n.JobsStream(), "KV_" + n.LimitsBucket()} {
		for _, verb := range []string{"PURGE", "DELETE", "UPDATE"} {
			targets = append(targets, "$JS.API.STREAM."+verb+"."+stream, n.MirrorAPI()+".STREAM."+verb+"."+stream)
		}
		targets = append(targets, "$JS.API.CONSUMER.DURABLE.CREATE."+stream+".stranger", "$JS.API.CONSUMER.DELETE."+stream+"."+jetpost.ConsumerLanes)
	}
	return targets
}

// attack is what one target gets. The job that it sends is for an account that nobody has.
func (c *standRun) attack(target, consumer string) {
	n := c.spaces
	pause := []byte(`{"target":"publish","reason":{"code":"app_paused"}}`)
	send := func(subject, reply string, body []byte) {
		_ = c.sender.PublishRequest(subject, reply, body) // what is refused does no harm
	}
	for _, body := range [][]byte{nil, pause} {
		send(target, "", body)
	}
	send(n.PublishRequest(baitAccount), target, []byte(`{"posts":[{"text":"Hello"}]}`))
	events := n.EventsStream()
	for _, ask := range []string{"$JS.API.DIRECT.GET." + events, "$JS.API.STREAM.MSG.GET." + events} {
		send(ask, target, []byte(`{"last_by_subj":"jetpost.event.none"}`))
	}
	send("$JS.API.DIRECT.GET.OBJ_"+n.MediaBucket(), target, []byte(`{"last_by_subj":"$O.`+n.MediaBucket()+`.C.none"}`))
	// Its deliveries go onto the target, and to its group.
	config := fmt.Sprintf(`{"stream_name":%q,"config":{"name":%q,"ack_policy":"none","deliver_policy":"last","deliver_subject":%q,"deliver_group":%q,"inactive_threshold":5000000000}}`,
		events, consumer, target, target)
	send("$JS.API.CONSUMER.CREATE."+events+"."+consumer, target, []byte(config))
}

// inventory is what there is in NATS and does not change while jobs come and go.
func (c *standRun) inventory(ctx context.Context) (found []string, err error) {
	n, control := c.spaces, c.control()
	streams := control.JS.ListStreams(ctx)
	for info := range streams.Info() {
		found = append(found, fmt.Sprintf("stream %s since %s, settings %s", info.Config.Name, info.Created, digestOf(info.Config)))
		if strings.HasPrefix(info.Config.Name, "KV_") {
			continue // whose consumers are watches
		}
		stream, err := control.JS.Stream(ctx, info.Config.Name)
		if err != nil {
			return nil, err
		}
		list := stream.ListConsumers(ctx)
		for consumer := range list.Info() {
			if consumer.Config.Durable == "" {
				continue
			}
			found = append(found, fmt.Sprintf("consumer %s of %s since %s, paused %t, settings %s", consumer.Name, info.Config.Name, consumer.Created, consumer.Paused, digestOf(consumer.Config)))
		}
		if list.Err() != nil {
			return nil, list.Err()
		}
	}
	for _, scope := range publishers.Targets() {
		if _, there, err := publishers.NewAppPauses(control.JS, n).Get(ctx, scope); err == nil && there {
			found = append(found, "a pause of "+scope)
		}
	}
	failed, err := control.JS.Stream(ctx, n.FailedStream())
	if err == nil {
		var msg *jetstream.RawStreamMsg
		if msg, err = failed.GetLastMsgForSubject(ctx, n.PublishFailed(baitAccount, "1")); err == nil {
			found = append(found, fmt.Sprintf("the failed job %d", msg.Sequence))
		}
	}
	if errors.Is(err, jetstream.ErrMsgNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		err = nil // it is missing in what was found
	}
	return found, errors.Join(err, streams.Err())
}

// digestOf tells settings apart.
func digestOf(settings any) string {
	text, err := json.Marshal(settings)
	if err != nil {
		return err.Error()
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:4])
}

const (
	// baitAccount is one that is not connected.
	baitAccount = "nobody"
	// brokenObject is a media object whose metadata nobody can read.
	brokenObject = "broken"
)

// layBait puts there what an attack could take away, and what poisons.
func (c *standRun) layBait(ctx context.Context) error {
	_, err := c.control().JS.Publish(ctx, c.spaces.PublishFailed(baitAccount, "1"), []byte("{}"))
	if err == nil {
		_, err = c.out.Publish(ctx, "$O."+c.spaces.MediaBucket()+".M."+base64.URLEncoding.EncodeToString([]byte(brokenObject)), []byte(`{"name":`))
	}
	return err
}

// poison is a job that cannot be published, and what has to become of it.
type poison struct {
	account, id string
	code        jetpost.Code // with which it is refused; else it fails
}

// poison sends the next one.
func (c *standRun) poison(ctx context.Context, random *rand.Rand, n int) {
	kinds := []struct {
		name, posts string
		code        jetpost.Code
	}{
		{"object", `[{"media":[{"object":"` + brokenObject + `"}]}]`, jetpost.CodeSetAside},
		{"refused", `[{"text":"poison"}]`, jetpost.CodeSetAside}, // by poisonTriggers
		{"invalid", `[{"text":""}]`, jetpost.CodeInvalidRequest},
		{"missing", `[{"media":[{"object":"none"}]}]`, ""},
	}
	k := kinds[n/poisonOneIn%len(kinds)]
	p := poison{c.names[random.IntN(len(c.names))], fmt.Sprintf("poison-%s-%d", k.name, n), k.code}
	c.deliver(ctx, p.account, fmt.Appendf(nil, `{"id":%q,"posts":%s}`, p.id, k.posts))
	c.poisons = append(c.poisons, p)
}

// poisonTriggers have the database refuse some jobs, as one does that finds a bug.
func poisonTriggers(sqlite bool) []string {
	if sqlite {
		return []string{`CREATE TRIGGER poison BEFORE INSERT ON requests WHEN NEW.id LIKE 'poison-refused-%' BEGIN SELECT RAISE(ABORT, 'value too long'); END`}
	}
	return []string{
		`CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'value too long'; END $$`,
		`CREATE TRIGGER poison BEFORE INSERT ON requests FOR EACH ROW WHEN (NEW.id LIKE 'poison-refused-%') EXECUTE FUNCTION poison()`,
	}
}

// judgePoison wants each of them to be refused or failed, with its reason.
func (c *standRun) judgePoison(ctx context.Context, requests map[string]map[string]*requestRow) {
	refusals, err := c.Ledger.Refusals(ctx, windowPlenty)
	testkit.Must(c.T, err)
	codes := map[string]jetpost.Code{}
	for _, r := range refusals {
		codes[r.ID] = r.Code
	}
	for _, p := range c.poisons {
		row := requests[p.account][p.id]
		switch {
		case p.code != "" && codes[p.id] != p.code:
			c.findings.add("poison", "job %s of %s is refused as %q, want %q", p.id, p.account, codes[p.id], p.code)
		case p.code == "" && (row == nil || row.state != string(jetpost.StateFailed)):
			c.findings.add("poison", "job %s of %s has not failed: %+v", p.id, p.account, row)
		}
	}
}

// The guards that a run can switch off.
const (
	guardDeadline = "deadline"
	guardSetAside = "setaside"
	guardWalls    = "walls"
	guardUpkeep   = "upkeep"
)

var brokenStandGuards = map[string][]string{
	// What a worker holds of the job stream has no end: the others wait for one that is
	// silent as long as it is.
	guardDeadline: {`
CREATE FUNCTION break_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.name LIKE 'intake%' AND NEW.until > clock_timestamp() THEN
        NEW.until := clock_timestamp() + interval '1 day';
    END IF;
    RETURN NEW;
END $$`, `CREATE TRIGGER break_guard BEFORE INSERT OR UPDATE ON leases FOR EACH ROW EXECUTE FUNCTION break_guard()`},
	// No failure of a job is ever its second.
	guardSetAside: {`
CREATE FUNCTION break_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    NEW.failures := 1;
    RETURN NEW;
END $$`, `CREATE TRIGGER break_guard BEFORE UPDATE ON intake_failures FOR EACH ROW EXECUTE FUNCTION break_guard()`},
	// NATS has one account for all (see standNATS).
	guardWalls: {},
	// Somebody who does nothing is the one that looks after everything.
	guardUpkeep: {`INSERT INTO leases (name, owner, until) VALUES ('sweep', 'nobody', clock_timestamp() + interval '1 day')`},
}

// standNATS is a server, with walls as 'jetpost nats config' makes them or without any, and
// how a user logs in to it.
func standNATS(t testkit.T, walled bool) (address string, user func(name string) string) {
	t.Helper()
	const password = "secret"
	walls := app.Walls{NoLogin: true, Logins: map[string]string{}}
	for _, name := range app.NATSUsers() {
		walls.Logins[name] = fmt.Sprintf("password: %q", password)
	}
	walls.Logins["producer"] = `password: ""` // whoever has no login
	user = func(string) string { return "" }
	if walled {
		user = func(name string) string { return name + ":" + password + "@" }
	}
	s := natstest.Server(t, func(o *server.Options) {
		if walled {
			dir := o.StoreDir
			testkit.Must(t, o.ProcessConfigString(walls.Config()))
			o.JetStream, o.StoreDir = true, dir
		}
		natstest.Listen(o)
	})
	return strings.TrimPrefix(s.ClientURL(), "nats://"), user
}

// upInstance is an installation of 'jetpost up'.
type upInstance struct {
	dir  string
	disk *disktest.Disk // nil where there is none to fill
}

// instanceDisk is the size of its disk: more than health.DiskLow.
const instanceDisk = 400 << 20

// newInstance makes the directory of 'up', with a database in it.
func (c *standRun) newInstance(t testkit.T, cfg chaosConfig) {
	t.Helper()
	instance := &upInstance{dir: filepath.Join(t.TempDir(), "data")}
	if runtime.GOOS == "linux" && os.Geteuid() == 0 {
		instance.disk = disktest.New(t, instanceDisk)
		instance.dir = filepath.Join(instance.disk.Dir, "data")
	}
	testkit.Must(t, os.Mkdir(instance.dir, 0o700))
	s := &harness.Site{T: t, Sim: &xsim.Server{}, Lease: cfg.claimFor, Minute: cfg.claimFor / harness.LeaseMinutes}
	s.X = httptest.NewServer(s)
	t.Cleanup(s.X.Close)
	s.Cfg = app.Config{
		DatabaseURL: secret.New("sqlite:" + filepath.Join(instance.dir, "jetpost.db")), Keys: store.GenerateKey(), X: app.XConfig{URL: s.X.URL, ClientID: "e2e"},
	}
	testkit.Must(t, s.Cfg.Migrate(t.Context()))
	var err error
	s.Ledger, err = s.Cfg.OpenStore(t.Context())
	testkit.Must(t, err)
	t.Cleanup(func() { _ = s.Ledger.Close() })
	c.chaos = &chaos{name: runStandstill, chaosConfig: cfg, began: time.Now()}
	c.chaos.open(s)
	c.instance, c.address = instance, testkit.ClosedAddress(t)
	c.fleet.command, c.fleet.ends = "up", app.BrokenError{}.Error()
	c.fleet.flags = []string{"--data", instance.dir, "--nats-listen", c.address}
	if instance.disk == nil {
		c.say("no disk is filled: that needs root, on Linux")
	}
}

// reach is how the installation that runs is reached.
func (h *upInstance) reach(c *standRun) (app.Config, error) {
	cfg, runs, err := c.Cfg.Running(h.dir)
	if err == nil && !runs {
		err = errors.New("no 'up' runs")
	}
	return cfg, err
}

// connect connects to the one that runs, which has another password after each start.
func (h *upInstance) connect(c *standRun) error {
	cfg, err := h.reach(c)
	if err != nil {
		return err
	}
	conn, err := cfg.Connect(c.T.Context(), slog.New(slog.DiscardHandler), "test")
	if err != nil {
		return err
	}
	c.mu.Lock()
	before := c.Conn
	c.Conn = conn
	c.mu.Unlock()
	if before != nil {
		before.Close()
	}
	c.T.Cleanup(conn.Close)
	return nil
}
