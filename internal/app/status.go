package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// Status tells whether posts go out and, if not, why.
type Status struct {
	Publishing bool `json:"publishing"`
	// Summary is one sentence for people.
	Summary string `json:"summary"`
	// Do is what a person can do about it, where there is something.
	Do string `json:"do,omitempty"`
	// Stops are those in force.
	Stops []publishers.Stop `json:"stops,omitempty"`
	// Requests counts by state; nil where the database cannot be reached.
	Requests map[jetpost.State]int `json:"requests,omitempty"`
	// Reauth names the accounts that must be connected again.
	Reauth []string `json:"reauth_required,omitempty"`
	// Paused are the accounts that somebody has paused.
	Paused []Paused `json:"paused,omitempty"`
	// Late is what would go out late; nil where nothing would.
	Late     *Late `json:"late,omitempty"`
	accounts int   // of the ledger
	// Blocked are requests that hold up their account's line until a person
	// acts: maxBlocked at most, of BlockedTotal.
	Blocked      []Blocked `json:"blocked,omitempty"`
	BlockedTotal int       `json:"blocked_total"`
	// QueuedJobs counts the jobs that no worker has accepted yet; nil where NATS
	// cannot be asked.
	QueuedJobs *uint64 `json:"queued_jobs,omitempty"`
	// LanesPaused tells that NATS hands out no doorbells.
	LanesPaused bool `json:"lanes_paused"`
	// Unwalled tells that producers share the workers' NATS account.
	Unwalled bool `json:"unwalled,omitempty"`
	// LastRefresh is the last refresh round that completed, and when.
	LastRefresh   *jetpost.RefreshSummary `json:"last_refresh,omitempty"`
	LastRefreshAt time.Time               `json:"last_refresh_at,omitzero"`
}

// Blocked is a request that waits for a person, and its account's line with it.
type Blocked struct {
	Account string        `json:"account"`
	ID      string        `json:"id"`
	State   jetpost.State `json:"state"`
	Code    jetpost.Code  `json:"code"`
	Do      string        `json:"do"`
}

const (
	maxBlocked = 20 // that are named
	// maxBlockedRead bounds what is read for each reason; what lies beyond is
	// not counted.
	maxBlockedRead = 1000
)

// Status looks at NATS, the database and the workers. Whatever is wrong there
// is its content; an error says that the configuration is.
func (c Config) Status(ctx context.Context, log *slog.Logger) (Status, error) {
	if err := c.validate(needs{nats: true, database: true, keys: true}); err != nil {
		return Status{}, err
	}
	var s Status
	conn, err := c.Connect(ctx, log, "jetpost status")
	if err != nil {
		s.say("NOT PUBLISHING: NATS cannot be reached: "+oneLine(err), Hint(err))
	} else {
		defer conn.Close()
	}
	ledgerID, err := s.readLedger(ctx, c)
	if err != nil {
		s.say("NOT PUBLISHING: the database cannot be reached: "+oneLine(err), databaseAdvice(ctx, conn, err))
	}
	if conn != nil && ledgerID != "" {
		if err := publishers.Check(ctx, conn.JS, c.Topology(conn.Names, ledgerID)); err != nil {
			s.say("NOT PUBLISHING: "+oneLine(err), Hint(err))
		}
	}
	if conn != nil {
		walled, err := publishers.Walled(ctx, conn.JS, conn.Names)
		s.Unwalled = err == nil && !walled
		if err := s.readNATS(ctx, conn, time.Now()); err != nil {
			s.say("NOT PUBLISHING: "+oneLine(err), Hint(err))
		}
	}
	if len(s.Reauth) > 0 && len(s.Reauth) == s.accounts {
		s.say("NOT PUBLISHING: every account must be connected again", s.ReauthAdvice())
	}
	if s.Summary == "" {
		s.Publishing, s.Summary = true, "PUBLISHING"
	}
	return s, ctx.Err()
}

// databaseAdvice is the error's own, but for a database that is empty beside a
// NATS that is set up: it is another one than it was, and setup would only
// make that last.
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

// say sets the one sentence. The first one stays: it is the cause, what
// follows may be its effect.
func (s *Status) say(sentence, do string) {
	if s.Summary == "" {
		s.Summary, s.Do = sentence, do
	}
}

// ReauthAdvice is what a person can do about the accounts in Reauth.
func (s *Status) ReauthAdvice() string {
	name := ""
	if len(s.Reauth) == 1 {
		name = s.Reauth[0]
	}
	return AdviceFor(jetpost.CodeAccountReauthRequired, name, "")
}

// oneLine keeps the one sentence one line.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func (s *Status) readLedger(ctx context.Context, c Config) (id string, err error) {
	ledger, err := c.OpenStore(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = ledger.Close() }() // only read from
	if s.Requests, err = ledger.CountRequests(ctx); err != nil {
		return "", databaseError(err)
	}
	accounts, err := ledger.Accounts(ctx)
	if err != nil {
		return "", databaseError(err)
	}
	now := time.Now()
	s.accounts = len(accounts)
	for _, a := range accounts {
		if a.RequiresReauth {
			s.Reauth = append(s.Reauth, a.Name)
		}
		if a.Pause.Active(now) {
			s.Paused = append(s.Paused, Paused{Account: a.Name, Pause: a.Pause})
		}
	}
	if s.Late, err = readLate(ctx, ledger, now); err != nil {
		return "", databaseError(err)
	}
	if err := s.readBlocked(ctx, ledger); err != nil {
		return "", databaseError(err)
	}
	id, err = ledger.LedgerID(ctx)
	return id, databaseError(err)
}

// readBlocked finds the requests that wait for a person, those in doubt first.
func (s *Status) readBlocked(ctx context.Context, ledger store.Requests) error {
	for _, filter := range []store.Filter{
		{State: jetpost.StateUnknown},
		{State: jetpost.StateHeld, Code: jetpost.CodePoison},
		{State: jetpost.StateHeld, Code: jetpost.CodeKeyUnavailable},
		{State: jetpost.StateHeld, Code: jetpost.CodeAccountReauthRequired},
	} {
		filter.Limit = maxBlockedRead
		found, err := ledger.ListRequests(ctx, filter)
		if err != nil {
			return err
		}
		s.BlockedTotal += len(found)
		for _, r := range found[:min(len(found), maxBlocked-len(s.Blocked))] {
			code := filter.Code
			if r.Status.Reason != nil {
				code = r.Status.Reason.Code
			}
			s.Blocked = append(s.Blocked, Blocked{
				Account: r.Account, ID: r.ID, State: r.Status.State, Code: code,
				Do: AdviceFor(code, r.Account, r.ID),
			})
		}
	}
	return nil
}

// readNATS says what it finds wrong; its error says that NATS cannot tell.
func (s *Status) readNATS(ctx context.Context, conn *Connection, now time.Time) error {
	jobs, err := conn.JS.Stream(ctx, conn.Names.JobsStream())
	if err != nil {
		return notSetUp("stream "+conn.Names.JobsStream(), err)
	}
	s.QueuedJobs = &jobs.CachedInfo().State.Msgs
	stops, err := publishers.NewStops(conn.JS, conn.Names).All(ctx)
	if err != nil {
		return err
	}
	for _, stop := range stops {
		if stop.Active(now) {
			s.Stops = append(s.Stops, stop)
		}
	}
	lanes, err := consumerInfo(ctx, conn, conn.Names.LanesStream(), jetpost.ConsumerLanes)
	if err != nil {
		return err
	}
	s.judgeLanes(lanes, now)
	alive, err := workerAlive(ctx, conn, lanes)
	if err != nil {
		return err
	}
	if !alive {
		s.say("NOT PUBLISHING: no worker is alive", "start one: jetpost worker, or jetpost up")
	}
	return s.readLastRefresh(ctx, conn)
}

// workerAlive tells by the pull requests that wait at the server whether
// anybody works: they end with their worker. One whose slots for doorbells are
// all taken still asks for jobs. What is delivered and not acknowledged proves
// nothing, since a worker that was killed leaves just that.
func workerAlive(ctx context.Context, conn *Connection, lanes *jetstream.ConsumerInfo) (bool, error) {
	if lanes.NumWaiting > 0 {
		return true, nil
	}
	intakes := []string{jetpost.ConsumerIntakeAny}
	for p := range jetpost.Partitions {
		intakes = append(intakes, jetpost.ConsumerIntake(p))
	}
	for _, name := range intakes {
		info, err := consumerInfo(ctx, conn, conn.Names.JobsStream(), name)
		if err != nil || info.NumWaiting > 0 {
			return err == nil, err
		}
	}
	return false, nil
}

func consumerInfo(ctx context.Context, conn *Connection, stream, name string) (*jetstream.ConsumerInfo, error) {
	consumer, err := conn.JS.Consumer(ctx, stream, name)
	if err != nil {
		return nil, notSetUp("consumer "+name, err)
	}
	return consumer.CachedInfo(), nil
}

// judgeLanes says what keeps NATS from handing out doorbells.
func (s *Status) judgeLanes(info *jetstream.ConsumerInfo, now time.Time) {
	s.LanesPaused = info.Paused
	for _, stop := range s.Stops {
		if stop.Scope == publishers.ScopePublish {
			s.say(stopSentence(stop, now), cmp.Or(Advice(stop.Reason.Code), "wait: posts go on by themselves then"))
		}
	}
	if info.Paused {
		s.say(stopSentence(publishers.Stop{Reason: jetpost.Reason{
			Until: now.Add(info.PauseRemaining), Detail: "the consumer " + info.Name + " of stream " + info.Stream + " is paused in NATS",
		}}, now), "resume it with: nats consumer resume "+info.Stream+" "+info.Name)
	}
}

func stopSentence(stop publishers.Stop, now time.Time) string {
	reason := stop.Reason
	words, verb := cmp.Or(reason.Detail, string(reason.Code)), "STOPPED"
	if reason.Code == jetpost.CodeAppPaused {
		verb = "PAUSED"
	}
	switch {
	case stop.Due(now):
		return verb + " until the next post finds out whether it is over: " + words
	case reason.Until.IsZero():
		return verb + ": " + words
	default:
		return verb + " until " + reason.Until.Local().Format(time.RFC3339) + ": " + words
	}
}

func (s *Status) readLastRefresh(ctx context.Context, conn *Connection) error {
	stream, err := conn.JS.Stream(ctx, conn.Names.EventsStream())
	if err != nil {
		return notSetUp("stream "+conn.Names.EventsStream(), err)
	}
	msg, err := stream.GetLastMsgForSubject(ctx, conn.Names.EventSubject(jetpost.EventRefreshCompleted, "", ""))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read last refresh round: %w", err)
	}
	var event jetpost.Event
	if err := json.Unmarshal(msg.Data, &event); err != nil {
		return fmt.Errorf("decode last refresh round: %w", err)
	}
	s.LastRefresh, s.LastRefreshAt = event.Refresh, event.Time
	return nil
}

func notSetUp(what string, err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrConsumerNotFound) {
		return &publishers.NotSetUpError{Missing: []string{what + " is missing"}, Err: err}
	}
	return fmt.Errorf("look at %s: %w", what, err)
}

// AdviceFor is Advice about an account and the request of that id, either of
// which may be empty.
func AdviceFor(code jetpost.Code, account, id string) string {
	advice := Advice(code)
	for placeholder, name := range map[string]string{" ACCOUNT": account, " ID": id} {
		if name != "" {
			advice = strings.ReplaceAll(advice, placeholder, " "+name)
		}
	}
	return advice
}

// Advice is what a person can do about a reason, or "" where waiting is all.
func Advice(code jetpost.Code) string {
	switch code {
	case jetpost.CodeInvalidRequest:
		return "correct the message and send it again"
	case jetpost.CodeAccountUnknown:
		return "see the names with jetpost accounts list, or add it with jetpost accounts connect ACCOUNT; then: jetpost replay ID"
	case jetpost.CodeIdentityConflict:
		return "send it with an id of its own"
	case jetpost.CodeMediaUnavailable:
		return "make the file readable again, or jetpost requests cancel"
	case jetpost.CodeTokenRefreshFailed:
		return "wait, or try now with jetpost refresh ACCOUNT --force"
	case jetpost.CodeNeedsNewerWorker:
		return "finish the upgrade of the workers"
	case jetpost.CodeReconciling:
		return "wait, or say what you see on X with jetpost requests resolve ID"
	case jetpost.CodeAccountReauthRequired:
		return "connect it again with: jetpost accounts connect ACCOUNT"
	case jetpost.CodeKeyUnavailable:
		return "see which key is missing with jetpost keys status, add it to HUB_ENCRYPTION_KEY, behind the first, and restart the workers"
	case jetpost.CodePoison:
		return "read the workers' logs, remove the cause, then jetpost replay ID or jetpost requests cancel ID"
	case jetpost.CodeRefusedByX:
		return "change the post and send it under another id, or remove the cause and jetpost replay ID"
	case jetpost.CodeDuplicate:
		return "change the text and send it under another id, or jetpost replay ID later"
	case jetpost.CodeMediaInvalid:
		return "send a new request with another file, or replace the one at its URL and jetpost replay ID"
	case jetpost.CodeMediaChanged:
		return "put the first file back and jetpost replay ID, or send a new request with the new one"
	case jetpost.CodeTextTooLong:
		return "shorten it, or cut it with jetpost publish --split, and send it under another id; or subscribe the account and jetpost replay ID"
	case jetpost.CodeSameText:
		return "change the text and send it under another id; jetpost replay ID sends it all the same"
	case jetpost.CodeExpired:
		return "send a new request; jetpost replay ID sends it late, unless its expires_at has passed"
	case jetpost.CodeOutcomeUnknown:
		return "look at the account on X, then say with jetpost requests resolve ID whether the post is there"
	case jetpost.CodeUsageCapped:
		return "raise the cap in X's developer console, then jetpost resume --app"
	case jetpost.CodeCreditsDepleted:
		return "buy credits in X's developer console, then jetpost resume --app"
	case jetpost.CodeSpendCapReached:
		return "raise the limit in X's developer console, then jetpost resume --app"
	case jetpost.CodeClientNotEnrolled:
		return "enrol the app in X's developer console, then jetpost resume --app"
	case jetpost.CodeAppMisconfigured:
		return "correct X_CLIENT_ID and X_CLIENT_SECRET, check the app's type in X's developer console, restart the workers, then jetpost resume --app"
	case jetpost.CodeAccountPaused:
		return "go on before its end with: jetpost resume ACCOUNT"
	case jetpost.CodeAppPaused:
		return "go on before its end with: jetpost resume --app"
	case jetpost.CodeAppStopped:
		return "see what stopped it with jetpost status"
	default: // rate limits and outages of X end by themselves
		return ""
	}
}
