package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// served is an installation whose NATS has walls: a database, a simulated X and a worker.
type served struct {
	t      *testing.T
	cfg    Config
	server *server.Server
	sim    *xsim.Server
	ledger store.Store
}

func serve(t *testing.T, walls Walls, accounts ...string) *served {
	t.Helper()
	return serveOn(t, "sqlite:"+filepath.Join(t.TempDir(), databaseFile), walls, accounts...)
}

func serveOn(t *testing.T, database string, walls Walls, accounts ...string) *served {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s := &served{t: t, server: wallServers(t, 1, walls)[0], sim: &xsim.Server{}}
	x := httptest.NewServer(s.sim)
	t.Cleanup(x.Close)
	s.cfg = Config{
		DatabaseURL: secret.New(database), Keys: store.GenerateKey(),
		NATS:     NATSConfig{URL: s.server.ClientURL(), User: setupUser, Password: secret.New(testPassword), Replicas: 1},
		X:        XConfig{URL: x.URL, ClientID: "app"},
		Lifeboat: t.TempDir(),
	}
	_, err := s.cfg.Setup(t.Context(), log)
	testkit.Must(t, err)
	s.cfg.NATS.User = workerUser
	s.ledger, err = s.cfg.OpenStore(t.Context())
	testkit.Must(t, err)
	t.Cleanup(func() { _ = s.ledger.Close() })
	conn, err := s.cfg.Connect(t.Context(), log, "import")
	testkit.Must(t, err)
	defer conn.Close()
	importer := Importer{Ledger: s.ledger, NATS: conn, XURL: x.URL}
	for _, account := range accounts {
		grant, err := s.sim.AddAccount(xsim.NewAccount{Handle: account})
		testkit.Must(t, err)
		_, err = importer.Import(t.Context(), ImportLine{
			Name: account, AccessToken: grant.AccessToken, RefreshToken: grant.RefreshToken,
			ExpiresAt: time.Now().Add(time.Duration(grant.ExpiresIn) * time.Second),
		})
		testkit.Must(t, err)
	}
	return s
}

// work has a worker at it until the returned function is called, or the test ends.
func (s *served) work() (stop func()) {
	s.t.Helper()
	w, err := NewWorker(s.t.Context(), s.cfg, slog.New(slog.DiscardHandler))
	testkit.Must(s.t, err)
	ctx, cancel := context.WithCancel(s.t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx); err != nil {
			s.t.Errorf("worker: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait(); w.Close() })
	s.t.Cleanup(stop)
	operator := s.as(operatorUser)
	testkit.Eventually(s.t, "the service to answer", func() bool {
		_, err := operator.WorkersList(s.t.Context())
		return err == nil
	})
	return stop
}

// as is a client that logs in as that user.
func (s *served) as(user string) *client.Client {
	s.t.Helper()
	c, err := client.New(s.connect(user))
	testkit.Must(s.t, err)
	return c
}

func (s *served) connect(user string) *nats.Conn {
	s.t.Helper()
	nc, err := nats.Connect(s.server.ClientURL(), nats.UserInfo(user, testPassword), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	testkit.Must(s.t, err)
	s.t.Cleanup(nc.Close)
	return nc
}

// codeOf is the code of an operation's error, "" of none.
func codeOf(err error) jetpost.ErrorCode {
	var failed *client.Error
	if errors.As(err, &failed) {
		return failed.Code
	}
	return ""
}

// TestWhoMayCall: each user reaches the operations that its NATS account was given, on its
// own accounts, and no other; an operator reaches all.
func TestWhoMayCall(t *testing.T) {
	t.Parallel()
	given := []jetpost.Operation{jetpost.OpRequestGet, jetpost.OpRequestCancel}
	for name, test := range map[string]struct {
		walls Walls
		users map[string]func(o jetpost.OperationInfo, account string) bool
	}{
		"as it comes": {Walls{Customers: []string{"acme"}}, map[string]func(jetpost.OperationInfo, string) bool{
			producerUser: func(o jetpost.OperationInfo, account string) bool {
				return account != "" && slices.Contains(ProducerOperations(), o.Operation)
			},
			"acme": func(o jetpost.OperationInfo, account string) bool {
				return account == "acme" && slices.Contains(ProducerOperations(), o.Operation)
			},
			operatorUser: func(jetpost.OperationInfo, string) bool { return true },
			workerUser:   func(jetpost.OperationInfo, string) bool { return true },
		}},
		"get and cancel alone": {Walls{Customers: []string{"acme"}, Allow: given}, map[string]func(jetpost.OperationInfo, string) bool{
			producerUser: func(o jetpost.OperationInfo, account string) bool {
				return account != "" && slices.Contains(given, o.Operation)
			},
			"acme": func(o jetpost.OperationInfo, account string) bool {
				return account == "acme" && slices.Contains(given, o.Operation)
			},
		}},
		"nothing": {Walls{Customers: []string{"acme"}, Allow: []jetpost.Operation{}}, map[string]func(jetpost.OperationInfo, string) bool{
			producerUser: func(jetpost.OperationInfo, string) bool { return false },
			"acme":       func(jetpost.OperationInfo, string) bool { return false },
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, test.walls, "acme", "other")
			s.work()
			for user, may := range test.users {
				nc := s.connect(user)
				for _, o := range jetpost.Operations() {
					for _, account := range []string{"", "acme", "other"} {
						if account == "" && o.Account == jetpost.OfOne || account != "" && o.Account == jetpost.OfNone {
							continue
						}
						// A body that is no call changes nothing, and is answered all the same.
						_, err := nc.Request(jetpost.Names{}.API(o.Operation, account), []byte(`{"none":0}`), testkit.Patience)
						switch reached := err == nil; {
						case err != nil && !errors.Is(err, nats.ErrNoResponders):
							t.Errorf("%s calls %s of %q: %v", user, o.Operation, account, err)
						case reached != may(o, account):
							t.Errorf("%s reaches %s of %q: %t", user, o.Operation, account, reached)
						}
					}
				}
				_, err := nc.Request("$SRV.PING.jetpost", nil, testkit.Patience)
				if inside := user == operatorUser || user == workerUser; (err == nil) != inside {
					t.Errorf("%s finds the service: %v", user, err)
				}
			}
		})
	}
}

// TestOwnRequestsAlone: another account's requests are neither shown nor touched.
func TestOwnRequestsAlone(t *testing.T) {
	t.Parallel()
	s := serve(t, Walls{Customers: []string{"acme", "other"}}, "acme", "other")
	s.work()
	ctx, acme, other, operator := t.Context(), s.as("acme"), s.as("other"), s.as(operatorUser)
	later := time.Now().Add(time.Hour)
	for account, c := range map[string]*client.Client{"acme": acme, "other": other} {
		answer, err := c.RequestPublish(ctx, account, jetpost.Request{ID: "same", PublishAt: later, Posts: []jetpost.Post{{Text: "of " + account}}})
		testkit.Must(t, err)
		if answer.Request == nil || answer.Request.State != jetpost.StateScheduled {
			t.Fatalf("%s: published as %+v", account, answer)
		}
	}
	for what, err := range map[string]error{
		"get":     second(other.RequestGet(ctx, "acme", jetpost.RequestGet{ID: "same"})),
		"cancel":  second(other.RequestCancel(ctx, "acme", jetpost.RequestCancel{ID: "same"})),
		"publish": second(other.RequestPublish(ctx, "acme", jetpost.Request{ID: "forged", Posts: []jetpost.Post{{Text: "x"}}})),
		"any":     second(other.RequestGet(ctx, "", jetpost.RequestGet{ID: "same"})),
	} {
		if codeOf(err) != jetpost.ErrUnavailable {
			t.Errorf("%s of another account: %v", what, err)
		}
	}
	got, err := other.RequestGet(ctx, "other", jetpost.RequestGet{ID: "same"})
	if err != nil || got.Request.Account != "other" || got.Texts[0] != "of other" {
		t.Errorf("its own: %+v, %v", got, err)
	}
	cancelled, err := other.RequestCancel(ctx, "other", jetpost.RequestCancel{ID: "same"})
	if err != nil || cancelled.State != jetpost.StateCancelled {
		t.Errorf("its own: %+v, %v", cancelled, err)
	}
	page, err := operator.RequestList(ctx, "", jetpost.RequestList{})
	testkit.Must(t, err)
	var found []string
	for _, r := range page.Requests {
		found = append(found, fmt.Sprint(r.Account, " ", r.ID, " ", r.State))
	}
	if len(found) != 2 || !slices.Contains(found, "acme same scheduled") || !slices.Contains(found, "other same cancelled") {
		t.Errorf("requests are %q", found)
	}
	if _, err := operator.RequestCancel(ctx, "", jetpost.RequestCancel{ID: "same"}); codeOf(err) != jetpost.ErrAmbiguous {
		t.Errorf("without an account: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestActors: who changed something is what NATS says of another account, whatever its
// client says, and what a client of the workers' own account says.
func TestActors(t *testing.T) {
	t.Parallel()
	s := serve(t, Walls{Customers: []string{"acme"}}, "acme")
	s.work()
	forged := jetpost.WithActor(t.Context(), "user:anna")
	for _, user := range []string{"acme", producerUser, operatorUser} {
		nc := s.connect(user)
		call := nats.NewMsg(jetpost.Names{}.API(jetpost.OpRequestCancel, "acme"))
		call.Data = []byte(`{"id":"none-of-` + user + `"}`)
		call.Header.Set(jetpost.HeaderActor, jetpost.ActorOf(forged))
		call.Header.Set("Nats-Request-Info", `{"acc":"FORGED"}`)
		if user == operatorUser { // whom nobody stops from it
			call.Header.Del("Nats-Request-Info")
		}
		_, err := nc.RequestMsg(call, testkit.Patience)
		testkit.Must(t, err)
	}
	page, err := s.as(operatorUser).AuditList(t.Context(), jetpost.AuditList{Operation: string(jetpost.OpRequestCancel)})
	testkit.Must(t, err)
	names := jetpost.Names{}
	want := []string{"user:anna none-of-operator", "account:" + names.ProducersAccount() + " none-of-producer", "account:" + names.CustomerAccount("acme") + " none-of-acme"}
	var got []string
	for _, e := range page.Entries {
		got = append(got, e.Actor+" "+e.Target)
	}
	if !slices.Equal(got, want) {
		t.Errorf("noted %q, want %q", got, want)
	}
}

// TestServiceBesideASilentDatabase: a worker whose database does not answer says so, and a
// change that was cut off by that takes effect once.
func TestServiceBesideASilentDatabase(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.New(t))
	s := serveOn(t, proxy.URL(), Walls{}, "acme")
	s.work()
	ctx, operator := t.Context(), s.as(operatorUser)
	_, err := operator.RequestPublish(ctx, "acme", jetpost.Request{ID: "one", PublishAt: time.Now().Add(time.Hour), Posts: []jetpost.Post{{Text: "Hello"}}})
	testkit.Must(t, err)
	proxy.Hang()
	cancel := jetpost.RequestCancel{OperationID: "cancel", ID: "one"}
	var all sync.WaitGroup
	for what, ask := range map[string]func() error{
		"list":   func() error { return second(operator.RequestList(ctx, "", jetpost.RequestList{})) },
		"get":    func() error { return second(operator.RequestGet(ctx, "acme", jetpost.RequestGet{ID: "one"})) },
		"cancel": func() error { return second(operator.RequestCancel(ctx, "acme", cancel)) },
		"pause":  func() error { return second(operator.AccountPause(ctx, "acme", jetpost.PauseRequest{})) },
	} {
		all.Go(func() {
			if err := ask(); codeOf(err) != jetpost.ErrUnavailable || strings.Contains(err.Error(), "no answer came") {
				t.Errorf("%s beside a silent database: %v", what, err)
			}
		})
	}
	all.Wait()
	proxy.Heal()
	testkit.Eventually(t, "the repeat to tell", func() bool {
		status, err := operator.RequestCancel(ctx, "acme", cancel)
		return err == nil && status.State == jetpost.StateCancelled
	})
}

// TestServiceOps: each operation is done over NATS, by whichever worker is asked.
func TestServiceOps(t *testing.T) {
	t.Parallel()
	s := serve(t, Walls{}, "acme", "beta")
	s.work()
	ctx, operator := t.Context(), s.as(operatorUser)
	testkit.Eventually(t, "the status to say that posts go out", func() bool {
		status, err := operator.AppStatus(ctx)
		testkit.Must(t, err)
		return status.Publishing && len(status.Workers) == 1 && status.Workers[0].Alive
	})
	published, err := operator.PublishAndWait(ctx, "acme", jetpost.Request{ID: "one", Posts: []jetpost.Post{{Text: "Hello"}}}, nil)
	if err != nil || published.State != jetpost.StatePublished || published.Posts[0].URL == "" {
		t.Errorf("published %+v, %v", published, err)
	}
	again, err := operator.RequestPublish(ctx, "acme", jetpost.Request{ID: "one", Posts: []jetpost.Post{{Text: "Hello"}}})
	if err != nil || !again.Repeated || again.Request.State != jetpost.StatePublished {
		t.Errorf("published again: %+v, %v", again, err)
	}
	other, err := operator.RequestPublish(ctx, "acme", jetpost.Request{ID: "one", Posts: []jetpost.Post{{Text: "Another"}}})
	if err != nil || other.Refusal == nil || other.Refusal.Code != jetpost.CodeIdentityConflict {
		t.Errorf("another of that id: %+v, %v", other, err)
	}
	nobody, err := operator.RequestPublish(ctx, "nobody", jetpost.Request{ID: "one", Posts: []jetpost.Post{{Text: "Hello"}}})
	if err != nil || nobody.Refusal == nil || nobody.Refusal.Code != jetpost.CodeAccountUnknown || nobody.Refusal.Sequence != nobody.Sequence {
		t.Errorf("of nobody: %+v, %v", nobody, err)
	}
	letters, err := operator.DeadLettersList(ctx, "", jetpost.DeadLettersList{})
	if err != nil || len(letters.Refusals) != 1 || letters.Refusals[0].Code != jetpost.CodeAccountUnknown {
		t.Errorf("dead letters are %+v, %v", letters, err)
	}
	_, err = operator.RequestPublish(ctx, "acme", jetpost.Request{Posts: []jetpost.Post{{Text: "Hello"}}})
	if codeOf(err) != jetpost.ErrInvalid {
		t.Errorf("without an id: %v", err)
	}
	check, err := operator.RequestCheck(ctx, "beta", jetpost.Request{Posts: []jetpost.Post{{Text: "Hello"}}})
	if err != nil || check.Queue == nil || check.Queue.SameText == nil || check.CostEstimateUSD <= 0 {
		t.Errorf("check is %+v, %v", check, err)
	}
	details, err := operator.RequestGet(ctx, "", jetpost.RequestGet{ID: "one"})
	if err != nil || len(details.Texts) != 1 || details.Texts[0] != "Hello" {
		t.Errorf("details are %+v, %v", details, err)
	}
	if _, err := operator.RequestCancel(ctx, "acme", jetpost.RequestCancel{ID: "one"}); codeOf(err) != jetpost.ErrConflict {
		t.Errorf("cancel of what is live: %v", err)
	}
	counts, err := operator.RequestCount(ctx, "")
	if err != nil || counts.States[jetpost.StatePublished] != 1 {
		t.Errorf("counts are %+v, %v", counts, err)
	}
	s.servesAccounts(operator)
	s.servesPauses(operator)
}

func (s *served) servesAccounts(operator *client.Client) {
	t, ctx := s.t, s.t.Context()
	t.Helper()
	first, err := operator.AccountList(ctx, jetpost.AccountList{Limit: 1})
	if err != nil || len(first.Accounts) != 1 || first.Accounts[0].Name != "acme" || first.Next == "" {
		t.Fatalf("first page is %+v, %v", first, err)
	}
	rest, err := operator.AccountList(ctx, jetpost.AccountList{Limit: 1, Cursor: first.Next})
	if err != nil || len(rest.Accounts) != 1 || rest.Accounts[0].Name != "beta" || rest.Next != "" {
		t.Errorf("second page is %+v, %v", rest, err)
	}
	report, err := operator.AccountGet(ctx, "acme")
	if err != nil || report.State != "ok" || report.Account.Username != "acme" {
		t.Errorf("report is %+v, %v", report, err)
	}
	refreshed, err := operator.AccountRefresh(ctx, "acme", jetpost.AccountRefresh{Force: true, WaitSeconds: 30})
	if err != nil || refreshed.LastRefreshAt.IsZero() {
		t.Errorf("refreshed %+v, %v", refreshed, err)
	}
	link, err := operator.AccountLink(ctx, "gamma", jetpost.AccountLink{OperationID: "link", PublicURL: "https://connect.example.com"})
	if err != nil || link.URL == "" || link.Account != "gamma" {
		t.Errorf("link is %+v, %v", link, err)
	}
	if again, err := operator.AccountLink(ctx, "gamma", jetpost.AccountLink{OperationID: "link", PublicURL: "https://connect.example.com"}); codeOf(err) != jetpost.ErrConflict || again.URL != "" {
		t.Errorf("link again is %+v, %v", again, err)
	}
	gone, err := operator.AccountDisconnect(ctx, "beta", jetpost.AccountDisconnect{})
	if err != nil || !gone.Revoked {
		t.Errorf("disconnected %+v, %v", gone, err)
	}
	if _, err := operator.AccountGet(ctx, "nobody"); codeOf(err) != jetpost.ErrNotFound {
		t.Errorf("nobody: %v", err)
	}
}

func (s *served) servesPauses(operator *client.Client) {
	t, ctx := s.t, s.t.Context()
	t.Helper()
	paused, err := operator.AccountPause(ctx, "acme", jetpost.PauseRequest{Reason: "holidays"})
	if err != nil || paused.Pause.Reason.Detail != "holidays" {
		t.Errorf("paused %+v, %v", paused, err)
	}
	resumed, err := operator.AccountResume(ctx, "acme", jetpost.ResumeRequest{})
	if err != nil || resumed.Pause.Reason.Detail != "holidays" {
		t.Errorf("resumed %+v, %v", resumed, err)
	}
	in := jetpost.PauseRequest{OperationID: "pause", Reason: "an audit"}
	app, err := operator.AppPause(ctx, in)
	if err != nil || !app.Changed {
		t.Errorf("app paused: %+v, %v", app, err)
	}
	limits, err := operator.AppLimits(ctx, jetpost.LimitsRequest{})
	if err != nil || len(limits.Pauses) != 1 || limits.Pauses[0].Detail != "an audit" {
		t.Errorf("limits are %+v, %v", limits, err)
	}
	forecast, err := operator.AppForecast(ctx, jetpost.ForecastRequest{Add: map[string]int{"acme": 3}})
	if err != nil || forecast.BlockedPosts != 3 {
		t.Errorf("forecast is %+v, %v", forecast, err)
	}
	over, err := operator.AppResume(ctx, jetpost.ResumeRequest{})
	if err != nil || len(over.Pauses) != 1 {
		t.Errorf("app resumed: %+v, %v", over, err)
	}
	// A late repeat of the pause pauses nothing.
	late, err := operator.AppPause(ctx, in)
	if err != nil || !late.Changed || late.Pause.Reason.Detail != "an audit" {
		t.Errorf("pause repeated: %+v, %v", late, err)
	}
	if limits, err = operator.AppLimits(ctx, jetpost.LimitsRequest{}); err != nil || len(limits.Pauses) != 0 {
		t.Errorf("after the late repeat limits are %+v, %v", limits, err)
	}
	in.Reason = "another"
	if _, err := operator.AppPause(ctx, in); codeOf(err) != jetpost.ErrOperationReused {
		t.Errorf("the id for another pause: %v", err)
	}
}
