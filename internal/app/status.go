package app

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// Status tells whether posts go out and, if not, why.
type Status struct {
	Publishing bool `json:"publishing"`
	// Summary is one sentence for people: the verdict's state and reason.
	Summary string `json:"summary"`
	health.Verdict
	// Installation names what it is about.
	Installation string `json:"installation"`
	// AppPauses are those in force.
	AppPauses []publishers.Pause `json:"app_pauses,omitempty"`
	// Requests counts by state, up to store.MaxCounted; nil where the database cannot be
	// reached.
	Requests map[jetpost.State]int `json:"requests,omitempty"`
	// Refused counts the messages refused within the last hour, up to store.MaxProgress.
	Refused int `json:"refused_last_hour"`
	// Reauth names the accounts that must be connected again.
	Reauth []string `json:"reauth_required,omitempty"`
	// Paused are the accounts that somebody has paused, or that X refuses.
	Paused []Paused `json:"paused,omitempty"`
	// Late is what would go out late; nil where nothing would.
	Late *Late `json:"late,omitempty"`
	// Blocked are accounts whose queue waits for a person: at most maxBlocked, of
	// BlockedTotal.
	Blocked      []Blocked `json:"blocked,omitempty"`
	BlockedTotal int       `json:"blocked_total"`
	// QueuedJobs counts the jobs that no worker has accepted yet; nil where NATS
	// cannot be asked.
	QueuedJobs *uint64 `json:"queued_jobs,omitempty"`
	// LanesPaused tells that NATS hands out no wake-ups.
	LanesPaused bool `json:"lanes_paused"`
	// Workers are those that are alive, and those whose heartbeats stopped within the hour.
	Workers []WorkerHeartbeat `json:"workers,omitempty"`
	// LastAccepted and LastPost are when the ledger saw one last.
	LastAccepted time.Time `json:"last_accepted_at,omitzero"`
	LastPost     time.Time `json:"last_post_at,omitzero"`
	// Unwalled tells that producers share the workers' NATS account.
	Unwalled bool `json:"unwalled,omitempty"`
	// FailingHooks counts the webhooks whose last delivery failed, and those that were
	// disabled.
	FailingHooks int `json:"failing_hooks,omitempty"`
	// LastRefresh is the last refresh round that completed, and when.
	LastRefresh   *jetpost.RefreshSummary `json:"last_refresh,omitempty"`
	LastRefreshAt time.Time               `json:"last_refresh_at,omitzero"`
	// facts are what the verdict was made of.
	facts health.Facts
}

// Blocked, Late and WorkerHeartbeat are as the contract has them.
type (
	Blocked         = jetpost.Blocked
	Late            = jetpost.Late
	WorkerHeartbeat = jetpost.WorkerReport
)

// report is the status as the contract has it.
func (s Status) report() jetpost.StatusReport {
	r := jetpost.StatusReport{
		Publishing: s.Publishing, Summary: s.Summary, State: string(s.State), Code: s.Code, Reason: s.Reason, Do: s.Do,
		Installation: s.Installation, AppPauses: s.AppPauses, Requests: s.Requests, Refused: s.Refused, Reauth: s.Reauth, Paused: s.Paused,
		Late: s.Late, Blocked: s.Blocked, BlockedTotal: s.BlockedTotal, QueuedJobs: s.QueuedJobs, LanesPaused: s.LanesPaused,
		Workers: s.Workers, LastAccepted: s.LastAccepted, LastPost: s.LastPost, Unwalled: s.Unwalled,
		LastRefresh: s.LastRefresh, LastRefreshAt: s.LastRefreshAt, FailingHooks: s.FailingHooks,
	}
	for _, cause := range s.Causes {
		r.Causes = append(r.Causes, jetpost.StatusCause{State: string(cause.State), Code: cause.Code, Reason: cause.Reason, Do: cause.Do})
	}
	return r
}

// statusOf is the status that a report tells of.
func statusOf(r jetpost.StatusReport) Status {
	s := Status{
		Publishing: r.Publishing, Summary: r.Summary, Installation: r.Installation, AppPauses: r.AppPauses, Requests: r.Requests, Refused: r.Refused,
		Reauth: r.Reauth, Paused: r.Paused, Late: r.Late, Blocked: r.Blocked, BlockedTotal: r.BlockedTotal, QueuedJobs: r.QueuedJobs,
		LanesPaused: r.LanesPaused, Workers: r.Workers, LastAccepted: r.LastAccepted, LastPost: r.LastPost, Unwalled: r.Unwalled,
		LastRefresh: r.LastRefresh, LastRefreshAt: r.LastRefreshAt, FailingHooks: r.FailingHooks,
	}
	s.Verdict = health.Verdict{State: health.State(r.State), Code: r.Code, Reason: r.Reason, Do: r.Do}
	for _, cause := range r.Causes {
		s.Causes = append(s.Causes, health.Cause{State: health.State(cause.State), Code: cause.Code, Reason: cause.Reason, Do: cause.Do})
	}
	return s
}

// lateAfter is how long after its time a request that has not begun is late.
const lateAfter = 15 * time.Minute

// maxBlocked is how many accounts are named that wait for a person.
const maxBlocked = 20

// Status gathers the state of NATS, the database and the workers. A fault of these is
// part of the status; an error means that the configuration is wrong.
func (c Config) Status(ctx context.Context, log *slog.Logger) (Status, error) {
	if c.DatabaseURL.Empty() {
		return c.statusByWorkers(ctx, log)
	}
	if err := c.validate(needs{nats: true, database: true, keys: true}); err != nil {
		return Status{}, err
	}
	p := place{cfg: c}
	var both sync.WaitGroup
	both.Go(func() { p.conn, p.connErr = c.Connect(ctx, log, "jetpost status") })
	both.Go(func() { p.ledger, p.ledgerErr = c.OpenStore(ctx) })
	both.Wait()
	if p.conn != nil {
		defer p.conn.Close()
	}
	if p.ledger != nil {
		defer func() { _ = p.ledger.Close() }() // nothing is pending
	}
	return p.status(ctx), ctx.Err()
}

// statusByWorkers is what a worker tells or, where none does, what NATS alone shows.
func (c Config) statusByWorkers(ctx context.Context, log *slog.Logger) (Status, error) {
	if err := c.validate(needs{nats: true}); err != nil {
		return Status{}, err
	}
	p := place{cfg: c, ledgerErr: &HintError{
		Err: errors.New("no worker answers, and DATABASE_URL is not set here"), Help: "start a worker, or set DATABASE_URL and HUB_ENCRYPTION_KEY",
	}}
	p.conn, p.connErr = c.Connect(ctx, log, "jetpost status")
	if p.conn == nil {
		return p.status(ctx), ctx.Err()
	}
	defer p.conn.Close()
	workers, err := client.New(p.conn.Conn, client.WithPrefix(c.NATS.Prefix))
	if err != nil {
		return Status{}, err
	}
	asking, cancel := context.WithTimeout(ctx, 2*factsWithin)
	defer cancel()
	if report, err := workers.AppStatus(asking); err == nil {
		return statusOf(report), nil
	}
	return p.status(ctx), ctx.Err()
}

// Workers are those that live, and those that fell silent within the hour.
func (c Config) Workers(ctx context.Context, log *slog.Logger) ([]WorkerHeartbeat, error) {
	conn, err := c.Connect(ctx, log, "jetpost workers")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	heartbeats, err := publishers.NewHeartbeats(conn.JS, conn.Names).All(ctx)
	if err != nil {
		return nil, err
	}
	workers := make([]WorkerHeartbeat, len(heartbeats))
	for i, heartbeat := range heartbeats {
		workers[i] = control.WorkerReport(heartbeat, health.AliveWithin)
	}
	return workers, nil
}

// databaseAdvice is the error's own hint, except if the database is empty although NATS
// is set up: then DATABASE_URL names the wrong database, and setup is not the remedy.
func databaseAdvice(ctx context.Context, conn *Connection, err error) string {
	var schema *store.SchemaError
	if conn == nil || !errors.As(err, &schema) || schema.Found != 0 {
		return Hint(err)
	}
	if _, err := conn.JS.Stream(ctx, conn.Names.JobsStream()); err != nil {
		return Hint(err)
	}
	return "check DATABASE_URL: NATS was set up with a database that has its schema"
}

// ReauthAdvice is what a person can do about the accounts in Reauth.
func (s *Status) ReauthAdvice() string {
	name := ""
	if len(s.Reauth) == 1 {
		name = s.Reauth[0]
	}
	return AdviceFor(jetpost.CodeAccountReauthRequired, name, "")
}

// oneLine is an error on one line.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// AdviceFor is Advice for an account and the request with that id, either of
// which may be empty.
func AdviceFor(code jetpost.Code, account, id string) string {
	return control.AdviceFor(code, account, id)
}

// Advice is what a person can do about a reason, or "" where waiting is all.
func Advice(code jetpost.Code) string { return control.Advice(code) }
