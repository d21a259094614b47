package postgres

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

const (
	// soon is how long calls in these tests wait for a database that does not answer.
	soon = 300 * time.Millisecond
	// transaction and statement are the last message that a client sends in a call: a
	// commit, or a statement that was prepared before.
	transaction, statement = "commit", "stmtcache_"
	// patiently is how long a test waits for a fact.
	patiently = 20 * time.Second
)

// prepared is the client's name of a statement that it has prepared.
func prepared(statement string) string {
	return fmt.Sprintf("stmtcache_%x", sha256.Sum256([]byte(statement)))[:len("stmtcache_")+48]
}

// proxied is a ledger behind a proxy.
type proxied struct {
	*testBundle
	proxy *pgtest.Proxy
	lane  store.Claim
	token store.Token
	link  string
	state []byte
	round string
}

// behind opens a ledger behind a proxy, with one warm connection: every statement was
// prepared on it.
func behind(t *testing.T) *proxied {
	t.Helper()
	p := &proxied{testBundle: setup(t)}
	p.proxy = pgtest.NewProxy(t, p.url)
	sealer, err := store.NewSealer(p.key)
	check(t, err)
	p.st = open(t, p.proxy.URL()+"&pool_max_conns=1", sealer)
	return p
}

// hold claims everything that a worker may hold.
func (p *proxied) hold(t *testing.T) {
	t.Helper()
	_, err := p.st.Accept(t.Context(), p.acceptance("r"))
	check(t, err)
	p.lane, _, err = p.st.ClaimLane(t.Context(), acme, "worker", lease, p.now)
	check(t, err)
	p.token, _, err = p.st.ClaimToken(t.Context(), store.TokenClaim{Account: acme, UsedVersion: 1, Force: true, Refused: true, Pace: store.Pace{Lease: lease}, Now: p.now})
	check(t, err)
	token := secret.New(uuid.NewString())
	p.link, p.state = store.LinkID(store.LinkDigest(token)), store.LinkDigest(secret.New(uuid.NewString()))
	check(t, p.st.AddLink(t.Context(), store.NewLink{Token: token, Account: "new", Now: p.now, ExpiresAt: p.now.Add(time.Hour)}))
	_, err = p.st.BeginAttempt(t.Context(), p.link, p.attempt())
	check(t, err)
	id, err := uuid.NewV7()
	check(t, err)
	p.round = id.String()
	_, err = p.st.OpenRound(t.Context(), p.round, 24*time.Hour, 1, p.now)
	check(t, err)
}

func (p *proxied) attempt() store.LinkAttempt {
	return store.LinkAttempt{State: p.state, Browser: store.LinkDigest(secret.New("b")), Verifier: secret.New("v"), ExpiresAt: p.now.Add(time.Hour), Now: p.now}
}

func (p *proxied) intent() store.Intent {
	return store.Intent{NotAfter: p.now.Add(time.Minute), Now: p.now, Lease: lease}
}

func (p *proxied) outcome() store.Outcome {
	return store.Outcome{State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeRateLimited, Until: p.now.Add(time.Hour)}, PostState: jetpost.PostPending, Now: p.now}
}

// calls is every method of a store but Close.
func (p *proxied) calls() map[string]func(context.Context) error {
	all := map[string]func(context.Context) error{}
	for _, calls := range p.families() {
		maps.Copy(all, calls)
	}
	return all
}

// families is calls by what they are about.
func (p *proxied) families() []map[string]func(context.Context) error {
	return []map[string]func(context.Context) error{p.ledgerCalls(), p.accountCalls(), p.userCalls(), p.hookCalls(), p.laneCalls(), p.requestCalls()}
}

func errorOf(_ any, err error) error { return err }

// ledgerCalls are of the ledger as a whole: its clock, leases, keys and upkeep.
func (p *proxied) ledgerCalls() map[string]func(context.Context) error {
	st := p.st
	return map[string]func(ctx context.Context) error{
		"CheckKeys":  st.CheckKeys,
		"Clock":      func(ctx context.Context) error { return errorOf(st.Clock(ctx)) },
		"DropLeases": func(ctx context.Context) error { return st.DropLeases(ctx, []string{"name"}, "owner", p.now) },
		"LedgerID":   func(ctx context.Context) error { return errorOf(st.LedgerID(ctx)) },
		"TakeLeases": func(ctx context.Context) error {
			return errorOf(st.TakeLeases(ctx, []string{"name"}, "owner", lease, p.now))
		},
		"TryLease":        func(ctx context.Context) error { return errorOf(st.TryLease(ctx, "name", "owner", lease, p.now)) },
		"KeyCheck":        func(ctx context.Context) error { _, _, err := st.KeyCheck(ctx); return err },
		"KeyUses":         func(ctx context.Context) error { return errorOf(st.KeyUses(ctx)) },
		"Reseal":          func(ctx context.Context) error { return errorOf(st.Reseal(ctx, nil)) },
		"SealedTokens":    func(ctx context.Context) error { return errorOf(st.SealedTokens(ctx, "", 1)) },
		"Keep":            func(ctx context.Context) error { return errorOf(st.Keep(ctx, store.Desired{Name: "k"})) },
		"Desired":         func(ctx context.Context) error { return errorOf(st.Desired(ctx)) },
		"Progress":        func(ctx context.Context) error { return errorOf(st.Progress(ctx, store.ProgressQuery{Now: p.now})) },
		"AnswerOperation": func(ctx context.Context) error { return st.AnswerOperation(ctx, "op", nil) },
		"Operate": func(ctx context.Context) error {
			_, _, err := st.Operate(ctx, store.Operation{ID: "op", Now: p.now}, func(context.Context, store.Changes) ([]byte, error) { return nil, nil })
			return err
		},
	}
}

// accountCalls are of accounts, and of what gives access to them.
func (p *proxied) accountCalls() map[string]func(context.Context) error {
	st := p.st
	return map[string]func(ctx context.Context) error{
		"Account":       func(ctx context.Context) error { return errorOf(st.Account(ctx, acme)) },
		"Accounts":      func(ctx context.Context) error { return errorOf(st.Accounts(ctx)) },
		"AccountsAfter": func(ctx context.Context) error { return errorOf(st.AccountsAfter(ctx, "", 1)) },
		"ImportAccount": func(ctx context.Context) error {
			return errorOf(st.ImportAccount(ctx, store.Import{Name: "new", XUserID: "2", Pair: store.Pair{Refresh: secret.New("r2")}, Now: p.now}))
		},
		"BatchDone": func(ctx context.Context) error {
			return errorOf(st.BatchDone(ctx, store.BatchResult{Round: p.round, Refreshed: 1, Now: p.now}))
		},
		"ClaimDue": func(ctx context.Context) error {
			return errorOf(st.ClaimDue(ctx, store.DueClaim{Round: p.round, Limit: 1, Pace: store.Pace{Lease: lease}, Now: p.now}))
		},
		"ClaimToken": func(ctx context.Context) error {
			_, _, err := st.ClaimToken(ctx, store.TokenClaim{Account: acme, UsedVersion: 1, Force: true, Pace: store.Pace{Lease: lease}, Now: p.now})
			return err
		},
		"Fits":           st.Fits,
		"RemoveAccount":  func(ctx context.Context) error { return st.RemoveAccount(ctx, "none", p.now) },
		"RenameAccount":  func(ctx context.Context) error { return st.RenameAccount(ctx, "none", "other", p.now) },
		"Disconnect":     func(ctx context.Context) error { return errorOf(st.Disconnect(ctx, acme, p.now)) },
		"ForgetPair":     func(ctx context.Context) error { return st.ForgetPair(ctx, p.token) },
		"OpenRound":      func(ctx context.Context) error { return errorOf(st.OpenRound(ctx, p.round, time.Hour, 1, p.now)) },
		"Retries":        func(ctx context.Context) error { return errorOf(st.Retries(ctx, acme)) },
		"RoundDelivered": func(ctx context.Context) error { return st.RoundDelivered(ctx, p.round) },
		"SaveToken": func(ctx context.Context) error {
			return st.SaveToken(ctx, p.token, store.Pair{Refresh: secret.New("r3")}, p.now)
		},
		"SaveTokenFailure": func(ctx context.Context) error {
			return st.SaveTokenFailure(ctx, p.token, store.TokenFailure{Now: p.now})
		},
		"Token": func(ctx context.Context) error { return errorOf(st.Token(ctx, acme)) },
		"AddLink": func(ctx context.Context) error {
			return st.AddLink(ctx, store.NewLink{Token: secret.New(uuid.NewString()), Account: "new", Now: p.now, ExpiresAt: p.now.Add(lease)})
		},
		"AttemptLink": func(ctx context.Context) error {
			return errorOf(st.AttemptLink(ctx, p.state, store.LinkDigest(secret.New("b")), p.now))
		},
		"ForgetBilled": func(ctx context.Context) error { return st.ForgetBilled(ctx, p.now) },
		"LimitMonth":   func(ctx context.Context) error { return st.LimitMonth(ctx, acme, 1, p.now) },
		"MonthSpent":   func(ctx context.Context) error { return errorOf(st.MonthSpent(ctx, acme, p.now)) },
		"NoteBilled":   func(ctx context.Context) error { return st.NoteBilled(ctx, p.now) },
		"Spend": func(ctx context.Context) error {
			return errorOf(st.Spend(ctx, acme, store.Expense{ID: "r", Micros: 1, Posts: 1, AppLimit: 1, Now: p.now}))
		},
		"BeginAttempt": func(ctx context.Context) error { return errorOf(st.BeginAttempt(ctx, p.link, p.attempt())) },
		"GiveUpAttempt": func(ctx context.Context) error {
			return st.GiveUpAttempt(ctx, p.link, p.state)
		},
		"Link": func(ctx context.Context) error { return errorOf(st.Link(ctx, p.link)) },
		"TakeAttempt": func(ctx context.Context) error {
			_, _, err := st.TakeAttempt(ctx, p.state, store.LinkDigest(secret.New("b")), lease, p.now)
			return err
		},
		"UseLink":        func(ctx context.Context) error { return st.UseLink(ctx, p.link, p.now) },
		"APIToken":       func(ctx context.Context) error { return errorOf(st.APIToken(ctx, "none")) },
		"APITokens":      func(ctx context.Context) error { return errorOf(st.APITokens(ctx)) },
		"RevokeAPIToken": func(ctx context.Context) error { return errorOf(st.RevokeAPIToken(ctx, "none", p.now)) },
		"AddAPIToken": func(ctx context.Context) error {
			return st.AddAPIToken(ctx, store.APIToken{Name: uuid.NewString(), Digest: make([]byte, 32), CreatedAt: p.now, ExpiresAt: p.now.Add(lease)})
		},
	}
}

// userCalls are of the dashboard's users, and of who changed what.
func (p *proxied) userCalls() map[string]func(context.Context) error {
	st := p.st
	return map[string]func(ctx context.Context) error{
		"User":       func(ctx context.Context) error { return errorOf(st.User(ctx, "none")) },
		"Users":      func(ctx context.Context) error { return errorOf(st.Users(ctx)) },
		"RemoveUser": func(ctx context.Context) error { return errorOf(st.RemoveUser(ctx, "none")) },
		"SetUser": func(ctx context.Context) error {
			return errorOf(st.SetUser(ctx, "none", jetpost.RoleViewer, "", p.now))
		},
		"AddUser": func(ctx context.Context) error {
			return st.AddUser(ctx, store.User{Name: uuid.NewString(), Role: jetpost.RoleViewer, PasswordHash: "h", CreatedAt: p.now, PasswordAt: p.now})
		},
		"AddSession": func(ctx context.Context) error {
			return st.AddSession(ctx, store.Session{Digest: make([]byte, 32), User: "none", CreatedAt: p.now})
		},
		"UseSession": func(ctx context.Context) error { return errorOf(st.UseSession(ctx, make([]byte, 32), p.now)) },
		"EndSession": func(ctx context.Context) error { return errorOf(st.EndSession(ctx, make([]byte, 32))) },
		"CountAttempts": func(ctx context.Context) error {
			return errorOf(st.CountAttempts(ctx, [][]byte{make([]byte, 32)}, time.Minute, p.now))
		},
		"ForgiveAttempts": func(ctx context.Context) error { return st.ForgiveAttempts(ctx, [][]byte{make([]byte, 32)}) },
		"AddAudit":        func(ctx context.Context) error { return st.AddAudit(ctx, store.Audit{At: p.now}) },
		"Audits":          func(ctx context.Context) error { return errorOf(st.Audits(ctx, store.AuditFilter{Limit: 1})) },
	}
}

// hookCalls are of webhooks, and of accounts that are erased.
func (p *proxied) hookCalls() map[string]func(context.Context) error {
	st := p.st
	return map[string]func(ctx context.Context) error{
		"AddHook": func(ctx context.Context) error {
			return st.AddHook(ctx, store.Hook{ID: uuid.NewString(), CreatedAt: p.now}, store.NewHookSecret())
		},
		"RemoveHook":    func(ctx context.Context) error { return errorOf(st.RemoveHook(ctx, "none")) },
		"EnableHook":    func(ctx context.Context) error { return errorOf(st.EnableHook(ctx, "none")) },
		"Hooks":         func(ctx context.Context) error { return errorOf(st.Hooks(ctx)) },
		"HookDelivered": func(ctx context.Context) error { return st.HookDelivered(ctx, "none", p.now) },
		"HookFailed":    func(ctx context.Context) error { return st.HookFailed(ctx, "none", store.HookFailure{At: p.now}) },
		"ResealHook":    func(ctx context.Context) error { return errorOf(st.ResealHook(ctx, store.Hook{ID: "none"}, "jp1.")) },
		"BeginErase":    func(ctx context.Context) error { return errorOf(st.BeginErase(ctx, "none", p.now)) },
		"EraseRequests": func(ctx context.Context) error { return st.EraseRequests(ctx, p.lane, []string{"none"}, p.now) },
		"EraseAccount": func(ctx context.Context) error {
			return errorOf(st.EraseAccount(ctx, store.Claim{Account: "none"}, p.now))
		},
		"EraseRest": func(ctx context.Context) error { return st.EraseRest(ctx, "none") },
		"Erasing":   func(ctx context.Context) error { return errorOf(st.Erasing(ctx)) },
		"EndErase":  func(ctx context.Context) error { return st.EndErase(ctx, "none") },
	}
}

// laneCalls are those of workers, by intake and lane.
func (p *proxied) laneCalls() map[string]func(context.Context) error {
	st := p.st
	return map[string]func(ctx context.Context) error{
		"Accept": func(ctx context.Context) error { return errorOf(st.Accept(ctx, p.acceptance("r"))) },
		"AcceptMany": func(ctx context.Context) error {
			return errorOf(st.AcceptMany(ctx, store.Lease{}, []store.Acceptance{p.acceptance("r")}))
		},
		"JobFailed": func(ctx context.Context) error { return errorOf(st.JobFailed(ctx, store.JobFailure{Stored: p.now})) },
		"Refuse":    func(ctx context.Context) error { return st.Refuse(ctx, jetpost.Refusal{Stored: p.now}, nil) },
		"Begin":     func(ctx context.Context) error { return st.Begin(ctx, p.lane, "r", p.intent()) },
		"ClaimLane": func(ctx context.Context) error {
			_, _, err := st.ClaimLane(ctx, acme, "worker", lease, p.now)
			return err
		},
		"Conclude":   func(ctx context.Context) error { return st.Conclude(ctx, p.lane, "r", p.outcome()) },
		"Deleted":    func(ctx context.Context) error { return errorOf(st.Deleted(ctx, []string{"1"})) },
		"DueLanes":   func(ctx context.Context) error { return errorOf(st.DueLanes(ctx, p.now, 1)) },
		"ExtendLane": func(ctx context.Context) error { return st.ExtendLane(ctx, p.lane, lease, p.now) },
		"HoldQueue": func(ctx context.Context) error {
			return errorOf(st.HoldQueue(ctx, p.lane, jetpost.Reason{Code: jetpost.CodeAccountReauthRequired}, 0, p.now))
		},
		"HoldUnpublish": func(ctx context.Context) error { return st.HoldUnpublish(ctx, p.lane, "r", p.outcome()) },
		"Snapshot":      func(ctx context.Context) error { return errorOf(st.Snapshot(ctx, p.lane, p.now)) },
		"BlockAccount": func(ctx context.Context) error {
			return errorOf(st.BlockAccount(ctx, p.lane, jetpost.BlockedPause(p.now, jetpost.CodeAccountLocked, "w", time.Hour, time.Hour), p.now))
		},
		"Refused": func(ctx context.Context) error {
			return errorOf(st.Refused(ctx, p.lane, "r", store.UnruledRefusal{Words: "w", Within: time.Hour, Now: p.now}))
		},
		"Owned":       func(ctx context.Context) error { return errorOf(st.Owned(ctx, []string{"1"})) },
		"PostDeleted": func(ctx context.Context) error { return st.PostDeleted(ctx, p.lane, "r", 0, p.now) },
		"Posted": func(ctx context.Context) error {
			return errorOf(st.Posted(ctx, p.lane, "r", store.LivePost{PostID: "1", Now: p.now}))
		},
		"ReleaseLane": func(ctx context.Context) error { return errorOf(st.ReleaseLane(ctx, p.lane, 1, p.now, p.now)) },
		"Reserve": func(ctx context.Context) error {
			return errorOf(st.Reserve(ctx, p.lane, store.Reservation{Window: "w", Left: 5, Need: 1, Now: p.now}))
		},
		"Sent": func(ctx context.Context) error { return errorOf(st.Sent(ctx, acme, p.now, 1)) },
		"Unpublishing": func(ctx context.Context) error {
			_, _, err := st.Unpublishing(ctx, p.lane)
			return err
		},
		"Uploaded": func(ctx context.Context) error {
			return st.Uploaded(ctx, p.lane, "r", map[int][]store.Media{0: {{Digest: "d"}}})
		},
		"Anchor": func(ctx context.Context) error { return errorOf(st.Anchor(ctx, acme)) },
	}
}

// requestCalls are those that change or read requests beside the lane.
func (p *proxied) requestCalls() map[string]func(context.Context) error {
	key := store.Key{Account: acme, ID: "r"}
	st := p.st
	return map[string]func(ctx context.Context) error{
		"Cancel": func(ctx context.Context) error { return errorOf(st.Cancel(ctx, key, p.now)) },
		"EndHolds": func(ctx context.Context) error {
			return errorOf(st.EndHolds(ctx, acme, jetpost.CodePostingLimit, p.now))
		},
		"ExpireLate": func(ctx context.Context) error {
			return errorOf(st.ExpireLate(ctx, acme, p.now.Add(time.Hour), 1, p.now))
		},
		"PauseAccount":         func(ctx context.Context) error { return st.PauseAccount(ctx, acme, store.Pause{Since: p.now}) },
		"Reconcile":            func(ctx context.Context) error { return st.Reconcile(ctx, key, p.now) },
		"Replay":               func(ctx context.Context) error { return errorOf(st.Replay(ctx, key, p.now)) },
		"Reschedule":           func(ctx context.Context) error { return errorOf(st.Reschedule(ctx, key, p.now.Add(time.Hour), p.now)) },
		"Resolve":              func(ctx context.Context) error { return errorOf(st.Resolve(ctx, key, "1", p.now)) },
		"ResumeAccount":        func(ctx context.Context) error { return errorOf(st.ResumeAccount(ctx, acme, p.now)) },
		"Unpublish":            func(ctx context.Context) error { return errorOf(st.Unpublish(ctx, key, p.now)) },
		"CountAccountRequests": func(ctx context.Context) error { return errorOf(st.CountAccountRequests(ctx, acme)) },

		"CountRequests": func(ctx context.Context) error { return errorOf(st.CountRequests(ctx)) },
		"CountCodes":    func(ctx context.Context) error { return errorOf(st.CountCodes(ctx, jetpost.StateFailed)) },
		"Series":        func(ctx context.Context) error { return errorOf(st.Series(ctx, store.SeriesQuery{Now: p.now})) },
		"Late":          func(ctx context.Context) error { return errorOf(st.Late(ctx, "", p.now, 1)) },
		"Calendar": func(ctx context.Context) error {
			return errorOf(st.Calendar(ctx, store.CalendarQuery{Before: p.now, Limit: 1}))
		},
		"ListRequests": func(ctx context.Context) error { return errorOf(st.ListRequests(ctx, store.Filter{})) },
		"Refusals":     func(ctx context.Context) error { return errorOf(st.Refusals(ctx, 1)) },
		"Request":      func(ctx context.Context) error { return errorOf(st.Request(ctx, key)) },
		"SameText": func(ctx context.Context) error {
			_, _, err := st.SameText(ctx, store.TextQuery{Hashes: [][]byte{{1}}, Now: p.now})
			return err
		},
		"Waiting":       func(ctx context.Context) error { return errorOf(st.Waiting(ctx, store.Waiting{}, 1)) },
		"MarkDelivered": func(ctx context.Context) error { return errorOf(st.MarkDelivered(ctx, key, 1)) },
		"MarkManyDelivered": func(ctx context.Context) error {
			return errorOf(st.MarkManyDelivered(ctx, []store.Revision{{Key: key, Number: 1}}))
		},
		"MarkNoticed": func(ctx context.Context) error { return st.MarkNoticed(ctx, store.Notice{Account: acme, Version: 1}) },
		"MarkPauseChangeTold": func(ctx context.Context) error {
			return st.MarkPauseChangeTold(ctx, store.PauseChange{Account: acme, Event: jetpost.EventAccountPaused, At: time.Unix(0, 0)})
		},
		"PauseChanges":  func(ctx context.Context) error { return errorOf(st.PauseChanges(ctx, "", 1)) },
		"Notices":       func(ctx context.Context) error { return errorOf(st.Notices(ctx, "", 1)) },
		"OutboxPending": func(ctx context.Context) error { return errorOf(st.OutboxPending(ctx, p.now, 1)) },
		"MediaUsers":    func(ctx context.Context) error { return st.MediaUsers(ctx, func(string, []byte) {}) },
		"Prunable": func(ctx context.Context) error {
			return errorOf(st.Prunable(ctx, store.PrunePage{FinishedBefore: p.now, Limit: 1}))
		},
		"Prune": func(ctx context.Context) error {
			return errorOf(st.Prune(ctx, acme, []string{"r"}, p.now))
		},
		"PrunedRequests": func(ctx context.Context) error { return errorOf(st.PrunedRequests(ctx, "", "r")) },
		"Doubt": func(ctx context.Context) error {
			return errorOf(st.Doubt(ctx, key, store.Gap{Since: p.now, Until: p.now.Add(time.Hour)}))
		},
		"Rebuild": func(ctx context.Context) error {
			return errorOf(st.Rebuild(ctx, store.Rebuilt{Status: jetpost.RequestStatus{Account: acme, ID: "r"}}))
		},
	}
}

// TestEveryCallIsBounded: if packets are dropped, each call ends with an error that
// says why, and nothing is left of its connection once the database answers again.
func TestEveryCallIsBounded(t *testing.T) {
	t.Parallel()
	p := behind(t)
	p.hold(t)
	calls := p.calls()
	for method := range reflect.TypeFor[store.Store]().Methods() {
		if calls[method.Name] == nil && !slices.Contains([]string{"Close", "Pools", "HookSecret"}, method.Name) { // the latter two ask nobody
			t.Errorf("%s is not tried", method.Name)
		}
	}
	p.st.bound(patience{call: soon, report: soon})
	p.proxy.Hang()
	var group sync.WaitGroup
	for _, calls := range p.families() { // those of one family share what they hold
		group.Go(func() {
			for name, call := range calls {
				ended := make(chan error, 1)
				go func() { ended <- call(t.Context()) }()
				select {
				case err := <-ended:
					if !store.Unavailable(err) {
						t.Errorf("%s: error is %v, want an UnavailableError", name, err)
					}
				case <-time.After(patiently):
					t.Errorf("%s waits without bound", name)
					return
				}
			}
		})
	}
	group.Wait()
	p.proxy.Heal()
	p.answers(t)
}

// answers waits until the ledger answers again, by calls with the time limits of
// production.
func (p *proxied) answers(t *testing.T) {
	t.Helper()
	p.st.bound(patience{call: callTimeout, report: reportTimeout})
	ctx, stop := context.WithTimeout(t.Context(), patiently)
	defer stop()
	for {
		_, err := p.st.LedgerID(ctx)
		switch {
		case err == nil:
			return
		case ctx.Err() != nil:
			t.Fatalf("the ledger does not answer again: %v", err)
		}
	}
}

// TestGivenUpTakesEffect: a write whose answer is lost has taken effect. Repeating the
// call does no harm, and its result lets the caller continue.
func TestGivenUpTakesEffect(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		word  string // the last message that the client sends
		again error
	}{
		{"Accept", prepared(sqlCommit), nil},
		{"Begin", transaction, store.ErrNotRunnable},
		{"BeginAttempt", transaction, nil},
		{"Cancel", transaction, store.ErrNotRunnable},
		{"ClaimLane", statement, nil},
		{"ClaimToken", transaction, nil},
		{"Conclude", transaction, nil},
		{"Disconnect", transaction, nil},
		{"EndHolds", transaction, nil},
		{"ExpireLate", transaction, nil},
		{"ExtendLane", statement, nil},
		{"ForgetBilled", transaction, nil},
		{"ForgetPair", statement, nil},
		{"GiveUpAttempt", statement, nil},
		{"HoldQueue", transaction, nil},
		{"HoldUnpublish", transaction, store.ErrNotRunnable},
		{"ImportAccount", transaction, nil},
		{"LimitMonth", transaction, nil},
		{"MarkDelivered", statement, nil},
		{"MarkNoticed", statement, nil},
		{"MarkPauseChangeTold", statement, nil},
		{"NoteBilled", transaction, nil},
		{"OpenRound", transaction, nil},
		{"PauseAccount", transaction, nil},
		{"PostDeleted", transaction, nil},
		{"Posted", transaction, nil},
		{"Reconcile", transaction, nil},
		{"Refuse", transaction, nil},
		{"ReleaseLane", statement, store.ErrFenced},
		{"Replay", transaction, nil},
		{"Reschedule", transaction, nil},
		{"Reserve", transaction, nil},
		{"Resolve", transaction, store.ErrNotRunnable},
		{"ResumeAccount", transaction, nil},
		{"RoundDelivered", statement, nil},
		{"SaveToken", statement, nil},
		{"SaveTokenFailure", statement, nil},
		{"Spend", transaction, nil},
		{"TakeAttempt", transaction, store.ErrAttemptOver},
		{"TryLease", statement, nil},
		{"Unpublish", transaction, nil},
		{"Uploaded", transaction, nil},
		{"UseLink", statement, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := behind(t)
			p.ready(t, test.name, test.word)
			call := p.calls()[test.name]
			before := dump(t, p.url)
			noted := p.proxy.LoseAnswers(test.word)
			p.st.bound(patience{call: soon, report: soon})
			if err := call(t.Context()); !store.Unavailable(err) {
				t.Fatalf("error is %v, want an UnavailableError", err)
			}
			<-noted
			p.proxy.Heal()
			p.answers(t)
			after := dump(t, p.url)
			if string(before) == string(after) {
				t.Fatal("the call took no effect, so that this test shows nothing")
			}
			if err := call(t.Context()); !errors.Is(err, test.again) {
				t.Errorf("the same again: error is %v, want %v", err, test.again)
			}
		})
	}
}

// TestClaimGivenUp: a claim whose answer is lost does not keep the lane from its own
// worker, and does not count as a worker that died on it.
func TestClaimGivenUp(t *testing.T) {
	t.Parallel()
	p := behind(t)
	p.ready(t, "ClaimLane", statement)
	p.claimsGivenUp(t, "ClaimLane", statement, func() error {
		_, _, err := p.st.ClaimLane(t.Context(), acme, "worker", lease, p.now)
		return err
	})
}

// TestClaimWithAcceptanceGivenUp is TestClaimGivenUp for claims that come with an
// acceptance: their worker gets the lane, with the acceptance again or by itself.
func TestClaimWithAcceptanceGivenUp(t *testing.T) {
	t.Parallel()
	p := behind(t)
	in := p.acceptance("r")
	in.Claim = &store.LaneClaim{Worker: "worker", Lease: lease}
	p.ready(t, "Accept", prepared(sqlCommit))
	p.claimsGivenUp(t, "Accept", prepared(sqlCommit), func() error {
		return errorOf(p.st.AcceptMany(t.Context(), store.Lease{}, []store.Acceptance{in}))
	})
}

// TestClaimWithLateAcceptance: an acceptance whose caller has given up frees the lane that came
// with it, since nobody runs it.
func TestClaimWithLateAcceptance(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := &arriving{t: t, b: b}
	in := b.acceptance("r")
	in.Claim = &store.LaneClaim{Worker: "worker", Lease: lease}
	ctx, giveUp := context.WithCancel(t.Context())
	given := make(chan error)
	a.lock()
	go func() { given <- errorOf(b.st.AcceptMany(ctx, store.Lease{}, []store.Acceptance{in})) }()
	b.locked(t)
	giveUp()
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Fatalf("given up: %v", err)
	}
	a.free()
	testkit.Eventually(t, "another worker gets the lane of the request", func() bool {
		_, err := b.st.Request(t.Context(), in.Key())
		if errors.Is(err, store.ErrNotFound) {
			return false
		}
		check(t, err)
		_, claimed, err := b.st.ClaimLane(t.Context(), acme, "another", lease, b.now)
		check(t, err)
		return claimed
	})
}

// TestLockedLaneBesideOthers: while somebody holds the lock of one lane, as a worker that froze
// in a transaction does, the steps of other lanes succeed, and that lane's own step waits.
func TestLockedLaneBesideOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	names := []string{"beta", "gamma"}
	for i, name := range names {
		_, err := b.st.ImportAccount(t.Context(), store.Import{
			Name: name, XUserID: fmt.Sprint(i + 2), Username: name, Now: b.now,
			Pair: store.Pair{Access: secret.New("a"), Refresh: secret.New(name), ExpiresAt: b.now.Add(time.Hour)},
		})
		check(t, err)
	}
	claim := func(account string) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, claimed, err := b.st.ClaimLane(t.Context(), account, "worker", lease, b.now)
			if err == nil && !claimed {
				err = errors.New(account + " was not claimed")
			}
			done <- err
		}()
		return done
	}
	a := &arriving{t: t, b: b}
	a.lock()
	locked := claim(acme)
	b.locked(t)
	others := []<-chan error{claim(names[0]), claim(names[1])}
	for _, done := range others {
		check(t, <-done)
	}
	select {
	case err := <-locked:
		t.Fatalf("the lane that is locked has given up before others were done: %v", err)
	default:
	}
	a.free()
	check(t, <-locked)
}

// claimsGivenUp makes claims without an answer, and then one with an answer.
func (p *proxied) claimsGivenUp(t *testing.T, warm, word string, claim func() error) {
	t.Helper()
	for range 3 {
		noted := p.proxy.LoseAnswers(word)
		p.st.bound(patience{call: soon, report: soon})
		if err := claim(); !store.Unavailable(err) {
			t.Fatalf("error is %v, want an UnavailableError", err)
		}
		<-noted
		p.proxy.Heal()
		p.answers(t)
		p.warm(t, warm)
	}
	another := func() (store.Claim, bool, error) { return p.st.ClaimLane(t.Context(), acme, "worker", lease, p.now) }
	lane, claimed, err := another()
	if err != nil || !claimed || lane.LostClaims != 0 {
		t.Errorf("claimed: %t, %v; lost claims: %d", claimed, err, lane.LostClaims)
	}
	if _, claimed, _ := another(); claimed {
		t.Error("a claim that is known was taken from its worker")
	}
}

// ready brings what the call is about into the state that the call changes, and
// prepares its statement.
func (p *proxied) ready(t *testing.T, name, word string) {
	t.Helper()
	if name != "Accept" {
		p.hold(t)
	}
	do := func(names ...string) {
		for _, name := range names {
			check(t, p.calls()[name](t.Context()))
		}
	}
	switch name {
	case "Accept": // its statements are prepared
		_, err := p.st.Accept(t.Context(), p.acceptance("another"))
		check(t, err)
	case "ForgetBilled":
		do("NoteBilled")
	case "Posted":
		do("Begin")
	case "PostDeleted":
		do("Begin", "Posted", "Unpublish")
	case "HoldUnpublish":
		do("Begin", "Unpublish")
	case "Resolve", "Reconcile":
		do("Begin")
		out := p.outcome()
		out.PostState = jetpost.PostSending
		check(t, p.st.Conclude(t.Context(), p.lane, "r", out))
	case "ForgetPair":
		check(t, p.st.SaveTokenFailure(t.Context(), p.token, store.TokenFailure{Outcome: store.ExchangeRefused, Now: p.now}))
	case "Disconnect", "ClaimToken":
		check(t, p.st.SaveTokenFailure(t.Context(), p.token, store.TokenFailure{Now: p.now}))
	case "Replay":
		do("ExpireLate")
	case "ResumeAccount":
		do("PauseAccount")
	case "GiveUpAttempt":
		do("TakeAttempt")
	case "HoldQueue":
		_, err := p.st.Accept(t.Context(), p.acceptance("behind"))
		check(t, err)
	case "ClaimLane":
		do("ReleaseLane")
	case "OpenRound":
		p.round = "01900000-0000-7000-8000-000000000000"
	case "MarkNoticed":
		execute(t, p.url, "UPDATE oauth_tokens SET reauth_told = true")
	case "MarkPauseChangeTold":
		execute(t, p.url, "INSERT INTO pause_changes VALUES ('acme', 'account.paused', 'epoch', '', '')")
	}
	if word == statement {
		p.warm(t, name)
	}
}

// warm prepares a statement by calls that change nothing.
func (p *proxied) warm(t *testing.T, name string) {
	t.Helper()
	q := *p
	q.lane.Fence, q.token.Version, q.round, q.link, q.state = -1, -1, uuid.NewString(), store.LinkID(store.LinkDigest(secret.New("another"))), store.LinkDigest(secret.New("another"))
	switch name {
	case "ClaimLane":
		_, _, _ = p.st.ClaimLane(t.Context(), "nobody", "worker", lease, p.now)
	case "MarkDelivered":
		_, _ = p.st.MarkDelivered(t.Context(), store.Key{}, 1)
	case "MarkNoticed":
		_ = p.st.MarkNoticed(t.Context(), store.Notice{})
	case "MarkPauseChangeTold":
		_ = p.st.MarkPauseChangeTold(t.Context(), store.PauseChange{})
	case "TryLease":
		_, err := p.st.TryLease(t.Context(), "another", "owner", lease, p.now)
		check(t, err)
	default:
		_ = q.calls()[name](t.Context())
	}
}

// TestDemotedPrimaryIsLeft: a primary that takes no more writes keeps no connection of
// the pool. Each connection finds out once.
func TestDemotedPrimaryIsLeft(t *testing.T) {
	t.Parallel()
	pair := pgtest.StartPair(t)
	check(t, Migrate(t.Context(), pair.URL()))
	st := open(t, pair.URL(), newSealer(t))
	const connections = 4
	held := make([]*pgxpool.Conn, connections)
	for i := range held {
		var err error
		held[i], err = st.pool.Acquire(t.Context())
		check(t, err)
	}
	for _, conn := range held {
		conn.Release()
	}
	write := func() error {
		_, err := st.TryLease(t.Context(), "name", "owner", lease, time.Now())
		return err
	}
	check(t, write())
	execute(t, pair.Primary.URL(), "ALTER SYSTEM SET default_transaction_read_only = on")
	execute(t, pair.Primary.URL(), "SELECT pg_reload_conf()")
	for write() == nil { // until every session has the setting
	}
	pair.Promote(t)
	for range connections {
		err := write()
		if err == nil {
			return
		}
		if !store.Unavailable(err) {
			t.Fatalf("error is %v, want an UnavailableError", err)
		}
	}
	check(t, write())
}
