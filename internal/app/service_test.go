package app

import (
	"context"
	"errors"
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
		"as it comes": {Walls{Customers: []string{"acme", "agency"}, Readers: []string{"press"}, Accounts: map[string][]string{
			"agency": {"acme", "other"}, "press": {"acme"},
		}}, map[string]func(jetpost.OperationInfo, string) bool{
			producerUser: func(o jetpost.OperationInfo, account string) bool {
				return account != "" && slices.Contains(ProducerOperations(), o.Operation)
			},
			"acme": func(o jetpost.OperationInfo, account string) bool {
				return account == "acme" && slices.Contains(ProducerOperations(), o.Operation)
			},
			"agency": func(o jetpost.OperationInfo, account string) bool {
				return account != "" && account != "third" && slices.Contains(ProducerOperations(), o.Operation)
			},
			"press":      func(jetpost.OperationInfo, string) bool { return false },
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
					for _, account := range []string{"", "acme", "other", "third"} {
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

// TestOwnAccountsAlone: a customer who may call everything that names an account neither sees
// nor touches what is another's, and a reader hears of its own alone.
func TestOwnAccountsAlone(t *testing.T) {
	t.Parallel()
	var all []jetpost.Operation
	for _, o := range jetpost.Operations() {
		if CheckAllowed(o.Operation) == nil {
			all = append(all, o.Operation)
		}
	}
	s := serve(t, Walls{Customers: []string{"acme", "other"}, Readers: []string{"press"}, Accounts: map[string][]string{"press": {"other"}}, Allow: all}, "acme", "other")
	s.work()
	ctx, acme, operator := t.Context(), s.as("acme"), s.as(operatorUser)
	heard := map[string]*nats.Subscription{}
	for _, user := range []string{"other", "press"} {
		nc := s.connect(user)
		var err error
		heard[user], err = nc.SubscribeSync((jetpost.Names{}).AllEvents())
		testkit.Must(t, err)
		testkit.Must(t, nc.Flush())
	}
	hook, err := acme.HookCreate(ctx, "acme", jetpost.HookCreate{URL: "https://example.com/in"})
	testkit.Must(t, err)
	media, err := acme.MediaPut(ctx, "acme", strings.NewReader("GIF89a of acme"))
	testkit.Must(t, err)
	for _, id := range []string{"same", "secret"} {
		_, err := acme.RequestPublish(ctx, "acme", later(id, jetpost.Post{Text: "of acme", Media: []jetpost.Media{{Object: media.Object}}}))
		testkit.Must(t, err)
	}
	s.names("acme", hook.Hook.ID)
	answer, err := s.as("other").RequestPublish(ctx, "other", later("same", jetpost.Post{Text: "of other"}))
	if err != nil || answer.Request == nil || answer.Request.State != jetpost.StateScheduled {
		t.Fatalf("published as %+v, %v", answer, err)
	}
	s.means("other", hook.Hook.ID, media.Object)
	for user, events := range heard {
		msg, err := events.NextMsg(testkit.Patience)
		testkit.Must(t, err)
		if want := (jetpost.Names{}).EventSubject(jetpost.EventRequestScheduled, "other", "same"); msg.Subject != want {
			t.Errorf("%s first hears %s, want %s", user, msg.Subject, want)
		}
	}
	page, err := operator.RequestList(ctx, "acme", jetpost.RequestList{})
	testkit.Must(t, err)
	for _, r := range page.Requests {
		if r.State != jetpost.StateScheduled {
			t.Errorf("after the tries request %s of acme is %s", r.ID, r.State)
		}
	}
	hooks, err := operator.HookList(ctx, "acme", jetpost.HookList{})
	if err != nil || len(hooks.Hooks) != 1 || len(page.Requests) != 2 {
		t.Errorf("after the tries acme has %+v and %+v, %v", page, hooks, err)
	}
	if _, err := operator.RequestCancel(ctx, "", jetpost.RequestCancel{ID: "same"}); codeOf(err) != jetpost.ErrAmbiguous {
		t.Errorf("without an account: %v", err)
	}
}

// later is a request that is due in an hour.
func later(id string, posts ...jetpost.Post) jetpost.Request {
	return jetpost.Request{ID: id, PublishAt: time.Now().Add(time.Hour), Posts: posts}
}

// names tries what is of an account by naming the account, or none.
func (s *served) names(account, hook string) {
	t, ctx, other := s.t, s.t.Context(), s.as("other")
	t.Helper()
	for _, account := range []string{account, ""} {
		tries := map[string]error{
			"request.get": second(other.RequestGet(ctx, account, jetpost.RequestGet{ID: "same"})), "request.list": second(other.RequestList(ctx, account, jetpost.RequestList{})),
			"request.count":      second(other.RequestCount(ctx, account)),
			"request.calendar":   second(other.RequestCalendar(ctx, account, jetpost.RequestCalendar{From: time.Now(), To: time.Now().Add(time.Hour)})),
			"request.history":    second(other.RequestHistory(ctx, account, jetpost.RequestHistory{ID: "same"})),
			"request.cancel":     second(other.RequestCancel(ctx, account, jetpost.RequestCancel{ID: "same"})),
			"request.unpublish":  second(other.RequestUnpublish(ctx, account, jetpost.RequestUnpublish{ID: "same"})),
			"request.reschedule": second(other.RequestReschedule(ctx, account, jetpost.RequestReschedule{ID: "same"})),
			"cancel_many":        second(other.RequestCancelMany(ctx, account, jetpost.RequestCancelMany{All: account == ""})),
			"deadletters.list":   second(other.DeadLettersList(ctx, account, jetpost.DeadLettersList{})),
			"hook.list":          second(other.HookList(ctx, account, jetpost.HookList{})),
			"hook.remove":        second(other.HookRemove(ctx, account, jetpost.HookRemove{ID: hook})),
			"hook.create":        second(other.HookCreate(ctx, account, jetpost.HookCreate{URL: "https://example.com/spy"})),
			"media.put":          second(other.MediaPut(ctx, account, strings.NewReader("GIF89a of other"))),
			"app.pause":          second(other.AppPause(ctx, jetpost.PauseRequest{})),
			"token.list":         second(other.TokenList(ctx, jetpost.TokenList{})),
			"audit.list":         second(other.AuditList(ctx, jetpost.AuditList{})),
		}
		if account != "" {
			tries["request.publish"] = second(other.RequestPublish(ctx, account, later("forged", jetpost.Post{Text: "x"})))
			tries["account.get"] = second(other.AccountGet(ctx, account))
			tries["account.pause"] = second(other.AccountPause(ctx, account, jetpost.PauseRequest{}))
			tries["account.erase"] = second(other.AccountErase(ctx, account, jetpost.AccountErase{}))
		}
		for what, err := range tries {
			if codeOf(err) != jetpost.ErrUnavailable {
				t.Errorf("%s of account %q: %v", what, account, err)
			}
		}
	}
	if _, err := connectJS(t, s.server, "other").ObjectStore(ctx, (jetpost.Names{}).MediaBucket()); err == nil {
		t.Error("a customer opens the object store of all")
	}
}

// means tries what is of another account by its ids, under an account's own name.
func (s *served) means(account, hook, object string) {
	t, ctx, c := s.t, s.t.Context(), s.as(account)
	t.Helper()
	for what, err := range map[string]error{
		"request.get":     second(c.RequestGet(ctx, account, jetpost.RequestGet{ID: "secret"})),
		"request.history": second(c.RequestHistory(ctx, account, jetpost.RequestHistory{ID: "secret"})),
		"request.cancel":  second(c.RequestCancel(ctx, account, jetpost.RequestCancel{ID: "secret"})),
		"cancel_many":     second(c.RequestCancelMany(ctx, account, jetpost.RequestCancelMany{IDs: []string{"secret"}})),
		"reschedule":      second(c.RequestReschedule(ctx, account, jetpost.RequestReschedule{ID: "secret"})),
		"unpublish":       second(c.RequestUnpublish(ctx, account, jetpost.RequestUnpublish{ID: "secret"})),
		"resolve":         second(c.RequestResolve(ctx, account, jetpost.RequestResolve{ID: "secret", NotPosted: true})),
		"reconcile":       second(c.RequestReconcile(ctx, account, jetpost.RequestReconcile{ID: "secret"})),
		"hook.test":       second(c.HookTest(ctx, account, jetpost.HookTest{ID: hook})),
		"hook.enable":     second(c.HookEnable(ctx, account, jetpost.HookEnable{ID: hook})),
		"hook.remove":     second(c.HookRemove(ctx, account, jetpost.HookRemove{ID: hook})),
	} {
		if codeOf(err) != jetpost.ErrNotFound {
			t.Errorf("%s of another account's: %v", what, err)
		}
	}
	replayed, err := c.RequestReplay(ctx, account, jetpost.RequestReplay{IDs: []string{"secret"}})
	if err != nil || len(replayed.Replayed) != 0 {
		t.Errorf("it replays %+v, %v", replayed, err)
	}
	list, err := c.RequestList(ctx, account, jetpost.RequestList{})
	if err != nil || len(list.Requests) != 1 || list.Requests[0].Account != account {
		t.Errorf("it lists %+v, %v", list, err)
	}
	counts, err := c.RequestCount(ctx, account)
	if err != nil || len(counts.States) != 1 || counts.States[jetpost.StateScheduled] != 1 {
		t.Errorf("it counts %+v, %v", counts, err)
	}
	calendar, err := c.RequestCalendar(ctx, account, jetpost.RequestCalendar{From: time.Now(), To: time.Now().Add(24 * time.Hour)})
	if err != nil || len(calendar.Requests) != 1 || calendar.Requests[0].Text != "of other" {
		t.Errorf("its calendar is %+v, %v", calendar, err)
	}
	hooks, err := c.HookList(ctx, account, jetpost.HookList{})
	if err != nil || len(hooks.Hooks) != 0 {
		t.Errorf("its webhooks are %+v, %v", hooks, err)
	}
	taken := later("taken", jetpost.Post{Text: "x", Media: []jetpost.Media{{Object: object}}})
	answer, err := c.RequestPublish(ctx, account, taken)
	if err != nil || answer.Refusal == nil || answer.Refusal.Code != jetpost.CodeInvalidRequest || answer.Refusal.Problems[0].Pointer != "/posts/0/media/0/object" {
		t.Errorf("a job with another account's picture: %+v, %v", answer, err)
	}
	check, err := c.RequestCheck(ctx, account, jetpost.Request{Posts: []jetpost.Post{{Text: "of acme"}}})
	if err != nil || check.Queue == nil || check.Queue.SameText == nil || *check.Queue.SameText != (jetpost.RequestName{}) {
		t.Errorf("a check of another account's text: %+v, %v", check, err)
	}
	if _, err := c.RequestCheck(ctx, account, taken); codeOf(err) != jetpost.ErrInvalid {
		t.Errorf("a check of it: %v", err)
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
	_, err := s.as("acme").RequestPublish(forged, "acme", later("one", jetpost.Post{Text: "Hello"}))
	testkit.Must(t, err)
	published, err := s.as(operatorUser).AuditList(t.Context(), jetpost.AuditList{Operation: string(jetpost.OpRequestPublish)})
	if want := "account:" + (jetpost.Names{}).CustomerAccount("acme"); err != nil || len(published.Entries) != 1 || published.Entries[0].Actor != want || published.Entries[0].Target != "one" {
		t.Errorf("of the request %+v is noted, %v, want one by %s", published.Entries, err, want)
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
