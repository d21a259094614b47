package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

const (
	// factsWithin bounds gathering the facts of NATS and of the database, which run in
	// parallel, in case a server accepts connections and does not answer.
	factsWithin = 6 * time.Second
	// roomForOne is the free space that a stream needs to count as not full.
	roomForOne = 1 << 20 // bytes
)

// place is the source of the facts: NATS and a ledger. Each is nil if it cannot be
// reached; its error then says why.
type place struct {
	cfg       Config
	conn      *Connection
	ledger    store.Store
	connErr   error
	ledgerErr error
}

// status gathers the facts of NATS, the database and the workers' heartbeats, and judges
// them.
func (p place) status(ctx context.Context) Status {
	now := time.Now()
	s := Status{Installation: p.cfg.Installation()}
	f := health.Facts{Now: now}
	fromLedger := factsOfLedger{now: now}
	fromNATS := factsOfNATS{now: now}
	var both sync.WaitGroup
	both.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, factsWithin)
		defer cancel()
		if err := p.ledgerErr; err != nil {
			fromLedger.err = err
		} else {
			fromLedger.read(ctx, p.ledger)
		}
	})
	both.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, factsWithin)
		defer cancel()
		if err := p.connErr; err != nil {
			fromNATS.err = err
		} else {
			fromNATS.read(ctx, p.conn)
			walled, err := publishers.Walled(ctx, p.conn.JS, p.conn.Names)
			s.Unwalled = err == nil && !walled
		}
	})
	both.Wait()
	fromNATS.tell(&s, &f)
	fromLedger.tell(&s, &f)
	if err := fromLedger.err; err != nil {
		f.Database = &health.Fault{Reason: "the database cannot be reached: " + oneLine(err), Do: databaseAdvice(ctx, p.conn, err)}
	}
	if f.NATS == nil && f.Database == nil {
		if err := p.checkSetup(ctx, fromLedger.id); err != nil {
			f.Setup = &health.Fault{Reason: oneLine(err), Do: Hint(err)}
		}
		f.CronDiffers = fromLedger.cron != nil && (fromNATS.cron == nil || *fromNATS.cron != *fromLedger.cron)
	}
	for _, d := range p.cfg.disks() {
		f.Disks = append(f.Disks, health.Disk{What: d.What, Path: d.Path, Free: d.Free, Total: d.Total})
	}
	s.Verdict, s.facts = health.Judge(f), f
	s.Publishing, s.Summary = s.State == health.Publishing, s.Sentence()
	return s
}

// statusStays is how long a status is reused before it is gathered again.
const statusStays = 250 * time.Millisecond

// sharedStatus gathers the status for any number of callers at once.
type sharedStatus struct {
	place place

	mu   sync.Mutex
	last Status
	at   time.Time
}

func (s *sharedStatus) get(ctx context.Context) (Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.IsZero() || time.Since(s.at) > statusStays {
		p := s.place
		if !p.conn.Conn.IsConnected() {
			p.connErr = natsError(p.cfg.NATS.URL, nats.ErrDisconnected)
		}
		s.last, s.at = p.status(context.WithoutCancel(ctx)), time.Now()
	}
	return s.last, ctx.Err()
}

func (p place) checkSetup(ctx context.Context, ledgerID string) error {
	ctx, cancel := context.WithTimeout(ctx, factsWithin)
	defer cancel()
	return publishers.Check(ctx, p.conn.JS, p.cfg.Topology(p.conn.Names, ledgerID))
}

// factsOfLedger are the facts of the database.
type factsOfLedger struct {
	now      time.Time
	id       string
	counts   map[jetpost.State]int
	progress store.Progress
	cron     *publishers.Cron
	pauses   []publishers.Pause
	hooks    []store.Hook
	// full is why it accepts no writes.
	full error
	err  error
}

func (f *factsOfLedger) read(ctx context.Context, ledger store.Store) {
	var clock time.Time
	for _, step := range []func() error{
		func() (err error) { f.id, err = ledger.LedgerID(ctx); return err },
		func() (err error) { clock, err = ledger.Clock(ctx); return err },
		func() (err error) { f.counts, err = ledger.CountRequests(ctx); return err },
		func() (err error) {
			f.progress, err = ledger.Progress(ctx, store.ProgressQuery{Now: clock, LateBefore: clock.Add(-lateAfter), Blocked: maxBlocked})
			return err
		},
		func() (err error) { f.cron, _, err = consumers.DesiredCron(ctx, ledger); return err },
		func() (err error) { f.pauses, err = consumers.DesiredPauses(ctx, ledger, clock); return err },
		func() (err error) { f.hooks, err = ledger.Hooks(ctx); return err },
	} {
		if err := step(); err != nil {
			f.err = databaseError(err)
			return
		}
	}
	_, f.full = ledger.TryLease(ctx, "status", "status", time.Second, clock)
	ahead := f.now.Sub(clock)
	for _, t := range []*time.Time{&f.progress.DueSince, &f.progress.AcceptedAt, &f.progress.PostedAt, &f.progress.UntoldSince, &f.progress.LateSince} {
		shift(t, ahead)
	}
}

// shift makes a time of another clock one of this machine's.
func shift(t *time.Time, d time.Duration) {
	if !t.IsZero() {
		*t = t.Add(d)
	}
}

func (f *factsOfLedger) tell(s *Status, facts *health.Facts) {
	if f.err != nil {
		return
	}
	p := f.progress
	if facts.NATS != nil {
		tellPauses(s, facts, f.pauses)
	}
	s.Requests = f.counts
	s.Refused, s.BlockedTotal, s.LastPost, s.LastAccepted = p.Refused, p.BlockedAccounts, p.PostedAt, p.AcceptedAt
	for _, one := range p.Standing {
		switch {
		case one.Reauth:
			s.Reauth = append(s.Reauth, one.Account)
		case !one.Pause.Since.IsZero() && !one.Pause.ByHand():
			facts.Blocked++
		}
		if !one.Pause.Since.IsZero() {
			s.Paused = append(s.Paused, Paused{Account: one.Account, Pause: one.Pause})
		}
	}
	for _, hook := range f.hooks {
		if !hook.FailingSince.IsZero() || !hook.DisabledAt.IsZero() {
			s.FailingHooks++
		}
	}
	if p.LateRequests > 0 {
		s.Late = &Late{Requests: p.LateRequests, Since: p.LateSince}
	}
	for _, b := range p.Blocked {
		s.Blocked = append(s.Blocked, Blocked{Account: b.Account, ID: b.ID, State: b.State, Code: b.Code, Waiting: b.Waiting, Do: AdviceFor(b.Code, b.Account, b.ID)})
	}
	facts.Holders = map[string]int{}
	for _, h := range p.Holders {
		facts.Holders[h.Worker] = h.Lanes
	}
	facts.Accounts, facts.Reauth, facts.ReauthDo = p.Accounts, len(s.Reauth), s.ReauthAdvice()
	facts.DueAccount, facts.DueSince, facts.PostedAt = p.DueAccount, p.DueSince, p.PostedAt
	facts.AcceptedAt, facts.UntoldSince = p.AcceptedAt, p.UntoldSince
	if f.full != nil {
		facts.Writes = append(facts.Writes, health.Fault{
			Reason: "the database takes no writes: " + oneLine(f.full), Do: "free space on its disk, or check that it is not a standby",
		})
	}
}

// factsOfNATS are the facts of NATS.
type factsOfNATS struct {
	now   time.Time
	jobs  *jetstream.StreamInfo
	first string // subject of the oldest job
	// intake are the consumers of jobs.
	intake     []*jetstream.ConsumerInfo
	lanes      *jetstream.ConsumerInfo
	pauses     []publishers.Pause
	heartbeats []publishers.Heartbeat
	store      jetstream.AccountInfo
	full       error
	cron       *publishers.Cron
	// cronSet is when the schedule was set.
	cronSet time.Time
	round   *jetpost.Event
	names   jetpost.Names
	err     error
}

// read reads all facts that it can: if a stream is missing, it reads the others.
func (f *factsOfNATS) read(ctx context.Context, conn *Connection) {
	f.names = conn.Names
	for _, step := range []func() error{
		func() error {
			info, err := conn.JS.AccountInfo(ctx)
			if err == nil {
				f.store = *info
			}
			return err
		},
		func() error { return f.readJobs(ctx, conn) },
		func() error {
			consumer, err := conn.JS.Consumer(ctx, conn.Names.LanesStream(), jetpost.ConsumerLanes)
			if err == nil {
				f.lanes = consumer.CachedInfo()
			}
			return err
		},
		func() (err error) { f.pauses, err = publishers.NewAppPauses(conn.JS, conn.Names).All(ctx); return err },
		func() (err error) {
			f.heartbeats, err = publishers.NewHeartbeats(conn.JS, conn.Names).All(ctx)
			return err
		},
		func() (err error) {
			f.cron, f.cronSet, err = publishers.ReadCron(ctx, conn.JS, conn.Names)
			return err
		},
		func() (err error) { f.round, err = lastRound(ctx, conn); return err },
	} {
		if err := step(); err != nil && !missingInNATS(err) {
			f.err = err
			return
		}
	}
	if err := publishers.NewHeartbeats(conn.JS, conn.Names).Probe(ctx); err != nil && !missingInNATS(err) {
		f.full = err
	}
}

// missingInNATS tells whether something is missing, which checkSetup reports.
func missingInNATS(err error) bool {
	return errors.As(err, new(*publishers.NotSetUpError)) || errors.Is(err, jetstream.ErrStreamNotFound) ||
		errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrBucketNotFound)
}

func (f *factsOfNATS) readJobs(ctx context.Context, conn *Connection) error {
	jobs, err := conn.JS.Stream(ctx, conn.Names.JobsStream())
	if err != nil {
		return err
	}
	f.jobs = jobs.CachedInfo()
	list := jobs.ListConsumers(ctx)
	for info := range list.Info() {
		f.intake = append(f.intake, info)
	}
	if list.Err() != nil || f.jobs.State.Msgs == 0 {
		return list.Err()
	}
	oldest, err := jobs.GetMsg(ctx, f.jobs.State.FirstSeq)
	if errors.Is(err, jetstream.ErrMsgNotFound) { // it was accepted this moment
		return nil
	}
	if err == nil {
		f.first = oldest.Subject
	}
	return err
}

// lastRound is the event of the last completed refresh round; nil if none is known.
func lastRound(ctx context.Context, conn *Connection) (*jetpost.Event, error) {
	stream, err := conn.JS.Stream(ctx, conn.Names.EventsStream())
	if err != nil {
		return nil, err
	}
	msg, err := stream.GetLastMsgForSubject(ctx, conn.Names.EventSubject(jetpost.EventRefreshCompleted, "", ""))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read last refresh round: %w", err)
	}
	var event jetpost.Event
	if err := json.Unmarshal(msg.Data, &event); err != nil {
		return nil, nil //nolint:nilerr // it is not an event of ours
	}
	return &event, nil
}

func (f *factsOfNATS) tell(s *Status, facts *health.Facts) {
	if f.err != nil {
		facts.NATS = &health.Fault{Reason: "NATS cannot be reached: " + oneLine(f.err), Do: Hint(f.err)}
		return
	}
	if f.full != nil {
		facts.Writes = append(facts.Writes, health.Fault{Reason: "NATS takes no writes: " + oneLine(f.full), Do: "make room on the disk of nats-server, or raise its limits"})
	}
	if limit := f.store.Limits.MaxStore; limit > 0 {
		facts.StoreUsed, facts.StoreMax = f.store.Store, uint64(limit)
	}
	f.tellJobs(s, facts)
	if f.lanes != nil {
		s.LanesPaused, facts.LanesPaused = f.lanes.Paused, f.lanes.Paused
	}
	tellPauses(s, facts, f.pauses)
	for _, heartbeat := range f.heartbeats {
		s.Workers = append(s.Workers, control.WorkerReport(heartbeat, health.AliveWithin))
		facts.Workers = append(facts.Workers, workerFact(heartbeat))
	}
	f.tellRound(s, facts)
}

func tellPauses(s *Status, facts *health.Facts, pauses []publishers.Pause) {
	for _, pause := range pauses {
		if pause.Active(facts.Now) {
			s.AppPauses = append(s.AppPauses, pause)
			facts.Pauses = append(facts.Pauses, pauseFact(pause, facts.Now))
		}
	}
}

func pauseFact(pause publishers.Pause, now time.Time) health.Pause {
	words, do := pause.Reason.Detail, Advice(pause.Reason.Code)
	if words == "" {
		words = string(pause.Reason.Code)
	}
	if do == "" {
		do = "wait: publishing goes on by itself after that"
	}
	return health.Pause{
		Target: pause.Target, ByHand: pause.Reason.Code == jetpost.CodePausedByHand, Words: words, Until: pause.Reason.Until, ProbeAt: pause.NextProbeAt, Due: pause.Due(now), Do: do,
	}
}

func (f *factsOfNATS) tellJobs(s *Status, facts *health.Facts) {
	if f.jobs == nil {
		return
	}
	state, ahead := f.jobs.State, f.now.Sub(f.jobs.TimeStamp)
	s.QueuedJobs = &state.Msgs
	facts.Jobs = health.Jobs{Waiting: state.Msgs}
	if state.Msgs > 0 {
		facts.Jobs.Oldest = state.FirstTime
		shift(&facts.Jobs.Oldest, ahead)
		if tokens := strings.Split(f.names.Trim(f.first), "."); len(tokens) == len(strings.Split(jetpost.Names{}.PublishIntake("0", "a"), ".")) {
			facts.Jobs.Account = tokens[len(tokens)-1]
		}
	}
	room := f.jobs.Config.MaxBytes
	facts.Jobs.Full = room > 0 && state.Bytes+min(roomForOne, uint64(room)/2) > uint64(room)
	for _, info := range f.intake {
		facts.Pulling = facts.Pulling || info.NumWaiting > 0
		facts.Resting = facts.Resting || info.NumPending == 0 && info.NumAckPending == 0 && info.NumWaiting == 0
		if at := info.AckFloor.Last; at != nil {
			t := *at
			shift(&t, ahead)
			if t.After(facts.Jobs.TakenAt) {
				facts.Jobs.TakenAt = t
			}
		}
	}
	facts.Pulling = facts.Pulling || f.lanes != nil && f.lanes.NumWaiting > 0
}

// tellRound finds out when the next refresh round should have been.
func (f *factsOfNATS) tellRound(s *Status, facts *health.Facts) {
	since := f.cronSet
	if f.round != nil {
		s.LastRefresh, s.LastRefreshAt = f.round.Refresh, f.round.Time
		if f.round.Time.After(since) {
			since = f.round.Time
		}
	} else if f.now.Sub(since) > publishers.DefaultEventsMaxAge/2 {
		return // the last one may be forgotten
	}
	if f.cron == nil || f.jobs == nil {
		return
	}
	if due, ok := health.NextRound(f.cron.Cron, f.cron.TimeZone, since); ok {
		facts.RoundDue = due.Add(f.now.Sub(f.jobs.TimeStamp))
	}
}

func workerFact(w publishers.Heartbeat) health.Worker {
	fact := health.Worker{
		Name: w.Worker, Host: w.Host, Publishes: slices.Contains(w.Roles, RolePublish), Refreshes: slices.Contains(w.Roles, RoleRefresh),
		Age: w.Age, StartedAt: w.StartedAt, Faults: w.Faults,
	}
	for _, d := range w.Disks {
		fact.Disks = append(fact.Disks, health.Disk{What: d.What, Path: d.Path, Free: d.Free, Total: d.Total})
	}
	return fact
}

// Installation names what a configuration is for, without any secret.
func (c Config) Installation() string {
	if c.instance != "" {
		return c.instance
	}
	var hosts []string
	for _, address := range strings.Split(c.NATS.URL, ",") {
		if u, err := url.Parse(strings.TrimSpace(address)); err == nil && u.Host != "" {
			hosts = append(hosts, u.Host)
		}
	}
	name := "NATS at " + strings.Join(hosts, ", ")
	kind, target, err := databaseKind(c.DatabaseURL.Reveal())
	switch {
	case err != nil:
		return name
	case kind == "sqlite":
		return name + ", database " + target
	}
	u, err := url.Parse(target)
	if err != nil {
		return name
	}
	if host := u.Host; host != "" {
		return name + ", database " + strings.TrimPrefix(u.Path, "/") + " at " + host
	}
	return name + ", database " + strings.TrimPrefix(u.Path, "/") + " at " + u.Query().Get("host")
}
