package app

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jetpost/jetpost"
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
	Stops []publishers.Pause `json:"stops,omitempty"`
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
	// Blocked are accounts whose line waits until a person acts: maxBlocked at most, of
	// BlockedTotal.
	Blocked      []Blocked `json:"blocked,omitempty"`
	BlockedTotal int       `json:"blocked_total"`
	// QueuedJobs counts the jobs that no worker has accepted yet; nil where NATS
	// cannot be asked.
	QueuedJobs *uint64 `json:"queued_jobs,omitempty"`
	// LanesPaused tells that NATS hands out no wake-ups.
	LanesPaused bool `json:"lanes_paused"`
	// Workers are those that live, and those that fell silent within the hour.
	Workers []WorkerHeartbeat `json:"workers,omitempty"`
	// LastAccepted and LastPost are when the ledger saw one last.
	LastAccepted time.Time `json:"last_accepted_at,omitzero"`
	LastPost     time.Time `json:"last_post_at,omitzero"`
	// Unwalled tells that producers share the workers' NATS account.
	Unwalled bool `json:"unwalled,omitempty"`
	// LastRefresh is the last refresh round that completed, and when.
	LastRefresh   *jetpost.RefreshSummary `json:"last_refresh,omitempty"`
	LastRefreshAt time.Time               `json:"last_refresh_at,omitzero"`
}

// Blocked is an account whose line waits for a person, by its first such request.
type Blocked struct {
	Account string        `json:"account"`
	ID      string        `json:"id"`
	State   jetpost.State `json:"state"`
	Code    jetpost.Code  `json:"code"`
	Waiting int           `json:"waiting"` // requests that are due in the line, with this one
	Do      string        `json:"do"`
}

// maxBlocked is how many accounts are named that wait for a person.
const maxBlocked = 20

// Status looks at NATS, the database and the workers. Whatever is wrong there
// is its content; an error says that the configuration is.
func (c Config) Status(ctx context.Context, log *slog.Logger) (Status, error) {
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
		workers[i] = newWorkerSign(heartbeat)
	}
	return workers, nil
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

// AdviceFor is Advice about an account and the request of that id, either of
// which may be empty.
func AdviceFor(code jetpost.Code, account, id string) string {
	advice := Advice(code)
	if code == jetpost.CodeAccountUnknown && id == "" { // nothing was sent that could be sent again
		advice, _, _ = strings.Cut(advice, "; then:")
	}
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
	case jetpost.CodeSetAside:
		return "read the error; once its cause is gone: jetpost replay ID"
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
	case jetpost.CodeAccountSuspended:
		return "appeal on X, as the account; once it is lifted go on at once with: jetpost resume ACCOUNT"
	case jetpost.CodeAccountLocked:
		return "log in to x.com as the account and unlock it; then: jetpost resume ACCOUNT"
	case jetpost.CodeAccountUnauthorized:
		return "look at the account on X; if all is well there, connect it again with: jetpost accounts connect ACCOUNT, then: jetpost resume ACCOUNT"
	case jetpost.CodeAccountScopeMissing:
		return "connect it again, with every permission that is asked for: jetpost accounts connect ACCOUNT"
	case jetpost.CodeAccountRefused:
		return "read X's words and look at the account on X; then: jetpost resume ACCOUNT, and jetpost replay what failed"
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
	case jetpost.CodeAppReadOnly:
		return "give the app the permission to read and write in X's developer console, connect its accounts again, then jetpost resume --app"
	case jetpost.CodeAppSuspended:
		return "see in X's developer console why the app is suspended, and appeal; then jetpost resume --app"
	case jetpost.CodeClientForbidden:
		return "see in X's developer console what the app may use; then jetpost resume --app"
	case jetpost.CodeAppRefused:
		return "read X's words and see X's developer console; then jetpost resume --app, and jetpost replay what failed"
	case jetpost.CodeAppMisconfigured:
		return "correct X_CLIENT_ID and X_CLIENT_SECRET, check the app's type in X's developer console, restart the workers, then jetpost resume --app"
	case jetpost.CodeAccountPaused:
		return "go on before its end with: jetpost resume ACCOUNT"
	case jetpost.CodePausedByHand:
		return "go on before its end with: jetpost resume --app"
	case jetpost.CodeAppPaused:
		return "see what stopped it with jetpost status"
	default: // rate limits and outages of X end by themselves
		return ""
	}
}
