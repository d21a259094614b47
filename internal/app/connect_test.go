package app_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/control"
	appsecret "github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const testRedirect = "http://127.0.0.1:8484/callback"

// connectBundle is an installation without a worker, on a simulated X where
// alice, bob and carol are; alice and bob are accounts here.
type connectBundle struct {
	*testing.T
	sim     *xsim.Server
	control *app.Control
	c       *app.Connector
	log     *bytes.Buffer
	secret  []string // what must not show in errors or logs
}

func setupConnect(t *testing.T) *connectBundle {
	t.Helper()
	b := &connectBundle{T: t, sim: &xsim.Server{}, log: &bytes.Buffer{}}
	h, err := app.Up(t.Context(), app.InstanceConfig{
		Data: t.TempDir(), NATSListen: "127.0.0.1:0", SimListen: "127.0.0.1:0", NoWorker: true,
		Sim: b.sim, SimAccounts: []string{"alice", "bob"},
	}, slog.New(slog.DiscardHandler))
	b.must(err)
	t.Cleanup(h.Close)
	b.control, err = h.Config.OpenControl(t.Context(), slog.New(slog.NewJSONHandler(b.log, nil)))
	b.must(err)
	t.Cleanup(b.control.Close)
	b.c, err = b.control.Connector()
	b.must(err)
	_, err = b.sim.AddAccount(xsim.NewAccount{Handle: "carol"})
	b.must(err)
	t.Cleanup(func() {
		for _, secret := range b.secret {
			if strings.Contains(b.log.String(), secret) {
				t.Errorf("%q is logged: %s", secret, b.log)
			}
		}
	})
	return b
}

func (b *connectBundle) disconnect(account string) (jetpost.Disconnected, error) {
	done, err := b.control.AccountDisconnect(b.Context(), account, jetpost.AccountDisconnect{})
	if err == nil && !done.Revoked {
		err = &app.NotRevokedError{Account: account, Words: done.NotRevoked}
		done.NotRevoked = ""
	}
	return done, err
}

func (b *connectBundle) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// consent has a user consent, and returns the code and its verifier.
func (b *connectBundle) consent(user string, more ...string) (code, verifier string) {
	b.Helper()
	verifier = xapi.NewVerifier()
	page := b.c.AuthorizeURL("state", verifier, testRedirect) + "&user=" + user + strings.Join(more, "")
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, page, nil)
	b.must(err)
	resp, err := client.Do(req)
	b.must(err)
	back, err := resp.Location()
	b.must(err)
	code = back.Query().Get("code")
	if code == "" {
		b.Fatalf("no code in %s", back)
	}
	b.secret = append(b.secret, code, verifier)
	return code, verifier
}

// connect connects an account by the consent of a user.
func (b *connectBundle) connect(account, user string, more ...string) (app.Connected, error) {
	b.Helper()
	code, verifier := b.consent(user, more...)
	connected, err := b.c.Connect(b.Context(), account, code, verifier, testRedirect)
	b.hidden(err)
	return connected, err
}

// hidden checks that an error is one line without a secret, and has advice.
func (b *connectBundle) hidden(err error) {
	b.Helper()
	if err == nil {
		return
	}
	if app.Hint(err) == "" || strings.ContainsRune(err.Error(), '\n') {
		b.Errorf("error %q with advice %q: want one line, and some advice", err, app.Hint(err))
	}
	for _, secret := range b.secret {
		if strings.Contains(err.Error()+app.Hint(err), secret) {
			b.Errorf("%q shows in: %v", secret, err)
		}
	}
}

// wantTokens checks that the ledger has the tokens that X takes of a user.
func (b *connectBundle) wantTokens(account, user string) store.Token {
	b.Helper()
	stored, err := b.control.Ledger.Token(b.Context(), account)
	b.must(err)
	b.secret = append(b.secret, stored.Access.Reveal(), stored.Refresh.Reveal())
	inForce, _ := b.sim.CurrentToken(user)
	if inForce.Revoked || stored.Access.Reveal() != inForce.AccessToken || stored.Refresh.Reveal() != inForce.RefreshToken {
		b.Errorf("the tokens of %s are not those that X takes of @%s (revoked: %t)", account, user, inForce.Revoked)
	}
	if imported := stored.Scope == ""; !imported && stored.Scope != inForce.Scope || stored.ExpiresAt.Sub(inForce.ExpiresAt).Abs() > time.Minute {
		b.Errorf("%s has scope %q until %s, want %q until %s", account, stored.Scope, stored.ExpiresAt, inForce.Scope, inForce.ExpiresAt)
	}
	return stored
}

func (b *connectBundle) wantRevoked(user string, revoked bool) {
	b.Helper()
	if token, _ := b.sim.CurrentToken(user); token.Revoked != revoked {
		b.Errorf("the consent of @%s is revoked: %t, want %t", user, token.Revoked, revoked)
	}
}

func (b *connectBundle) wantNoAccount(name string) {
	b.Helper()
	if _, err := b.control.Ledger.Account(b.Context(), name); !errors.Is(err, store.ErrNotFound) {
		b.Errorf("account %s: %v, want none", name, err)
	}
}

// wantCallLog checks that nothing was done that a correct client never does.
func (b *connectBundle) wantCallLog() {
	b.Helper()
	for _, v := range b.sim.Violations() {
		b.Errorf("violation: %+v", v)
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("got error %v\nwant      %s", err, want)
	}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	b := setupConnect(t)
	connected, err := b.connect("new", "carol")
	b.must(err)
	stored := b.wantTokens("new", "carol")
	if stored.Scope == "" || connected.Result != store.AccountCreated || connected.Username != "carol" || connected.Name != "new" ||
		connected.Scope != stored.Scope || !connected.ExpiresAt.Truncate(time.Microsecond).Equal(stored.ExpiresAt) {
		t.Errorf("connected %+v", connected)
	}
	b.wantCallLog()
}

// A consent that comes while the token is exchanged, or after X refused it, is
// what counts from then on.
func TestConnectAgain(t *testing.T) {
	t.Parallel()
	b := setupConnect(t)
	claim := func() store.Token {
		before, err := b.control.Ledger.Token(t.Context(), "alice")
		b.must(err)
		token, claimed, err := b.control.Ledger.ClaimToken(t.Context(), store.TokenClaim{
			Account: "alice", UsedVersion: before.Version, Force: true, Pace: store.Pace{Lease: time.Hour}, Now: time.Now(),
		})
		if err != nil || !claimed {
			t.Fatalf("claim: %t, %v", claimed, err)
		}
		return token
	}
	b.must(b.control.Ledger.SaveTokenFailure(t.Context(), claim(), store.TokenFailure{Error: "refused", Outcome: store.ExchangeRefused, Now: time.Now()}))
	connected, err := b.connect("alice", "alice")
	b.must(err)
	if connected.Result != store.TokenReplaced || b.wantTokens("alice", "alice").RequiresReauth {
		t.Errorf("connected %+v; the account still has to be connected", connected)
	}

	late := claim()
	_, err = b.connect("alice", "alice")
	b.must(err)
	b.wantTokens("alice", "alice")
	if err := b.control.Ledger.SaveToken(t.Context(), late, late.Pair, time.Now()); !errors.Is(err, store.ErrFenced) {
		t.Errorf("the exchange that was under way could save what it brought: %v", err)
	}
	b.wantTokens("alice", "alice")
	b.wantCallLog()
}

func TestConnectMissingScopes(t *testing.T) {
	t.Parallel()
	b := setupConnect(t)
	_, err := b.connect("new", "carol", "&grant=tweet.read+users.read+media.write")
	wantError(t, err, "connect new: the consent lacks tweet.write (to post), offline.access (to renew its tokens): nothing was stored, and the consent was taken back")
	token, _ := b.sim.CurrentToken("carol")
	if calls := b.sim.Counts()[xsim.EndpointRevoke]["200"]; token.RefreshToken != "" || calls != 1 {
		t.Errorf("%d tokens were revoked, want the access token", calls)
	}
	_, err = b.connect("new", "carol", "&grant=tweet.read+users.read+tweet.write+offline.access")
	wantError(t, err, "connect new: the consent lacks media.write (to upload images): nothing was stored, and the consent was taken back")
	b.wantRevoked("carol", true)

	b.must(b.sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultStatus, Status: 401, Endpoint: xsim.EndpointRevoke}}))
	_, err = b.connect("new", "carol", "&grant=tweet.read+users.read+tweet.write+offline.access")
	wantError(t, err, "connect new: the consent lacks media.write (to upload images): nothing was stored, and X did not confirm that the consent was taken back: "+
		"app not accepted: POST /2/oauth2/revoke: 401 Unauthorized: Missing valid authorization header")
	b.wantNoAccount("new")
	b.wantCallLog()
}

// Whoever logs in as somebody else by mistake makes nobody lose anything.
func TestConnectWrongUser(t *testing.T) {
	t.Parallel()
	b := setupConnect(t)
	var wrong *app.WrongUserError

	_, err := b.connect("alice", "carol")
	wantError(t, err, "connect alice: the consent is of @carol, but alice is @alice: nothing was stored, and the consent was taken back")
	b.wantRevoked("carol", true)
	b.wantTokens("alice", "alice")

	_, err = b.connect("alice", "bob")
	wantError(t, err, "connect alice: the consent is of @bob, but alice is @alice: @bob is account bob, where the new tokens are stored")
	if !errors.As(err, &wrong) || wrong.KnownAs != "bob" {
		t.Errorf("got %+v", wrong)
	}
	b.wantTokens("alice", "alice")
	b.wantTokens("bob", "bob")

	_, err = b.connect("robert", "bob")
	wantError(t, err, "connect robert: the consent is of @bob: @bob is account bob, where the new tokens are stored")
	b.wantTokens("bob", "bob")
	b.wantNoAccount("robert")
	b.wantCallLog()
}

// Whatever X says instead of giving tokens, the account stays as it is, and the
// error says what to do.
func TestConnectRefused(t *testing.T) {
	t.Parallel()
	const spent = "connect alice: authorization code not accepted: POST /2/oauth2/token: 400 Bad Request: Value passed for the authorization code was invalid."
	for name, test := range map[string]struct {
		fault      xsim.Fault
		secret     string // of the app
		reuse      bool
		redirect   string // testRedirect where empty
		want, help string
	}{
		"app unknown": {
			secret: "another", want: "connect alice: app not accepted: POST /2/oauth2/token: 401 Unauthorized: Missing valid authorization header",
			help: "correct X_CLIENT_ID and X_CLIENT_SECRET",
		},
		"code used before": {reuse: true, want: spent, help: "a code works once, and for 30 seconds: start again with: jetpost accounts connect alice"},
		"another redirect URI": {
			redirect: "http://127.0.0.1:1/callback",
			want:     "connect alice: authorization code not accepted: POST /2/oauth2/token: 400 Bad Request: Value passed for the redirect uri did not match the uri of the authorization code.",
			help:     "register http://127.0.0.1:1/callback in X's developer console, to the letter, then start again with: jetpost accounts connect alice",
		},
		"not enrolled": {
			fault: xsim.Fault{Kind: xsim.FaultStatus, Status: 403, Variant: "client-not-enrolled", Endpoint: xsim.EndpointToken},
			want:  "connect alice: app refused (client_not_enrolled): POST /2/oauth2/token: 403 Forbidden: When authenticating requests to the Twitter API v2 endpoints, you must use keys and tokens from a Twitter developer App that is attached to a Project.",
			help:  "enrol the app in X's developer console",
		},
		"X says 503": {
			fault: xsim.Fault{Kind: xsim.FaultStatus, Status: 503, Endpoint: xsim.EndpointToken},
			want:  "connect alice: outcome unknown: POST /2/oauth2/token: 503 Service Unavailable: Service Unavailable",
			help:  "X may have ended the tokens that it had before",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupConnect(t)
			code, verifier := b.consent("alice")
			if test.reuse {
				_, err := b.c.OAuth.Exchange(t.Context(), code, verifier, testRedirect)
				b.must(err)
			}
			if test.secret != "" {
				b.sim.ClientID, b.sim.ClientSecret = "simulator", "right"
				b.c.OAuth.ClientSecret = test.secret
			}
			if test.fault.Kind != "" {
				b.must(b.sim.SetFaults([]xsim.Fault{test.fault}))
			}
			before, err := b.control.Ledger.Token(t.Context(), "alice")
			b.must(err)
			_, err = b.c.Connect(t.Context(), "alice", code, verifier, cmp.Or(test.redirect, testRedirect))
			b.hidden(err)
			wantError(t, err, test.want)
			if !strings.Contains(app.Hint(err), test.help) {
				t.Errorf("advice is %q, want %q", app.Hint(err), test.help)
			}
			if after, err := b.control.Ledger.Token(t.Context(), "alice"); err != nil || after.Version != before.Version {
				t.Errorf("version is %d after %d, %v", after.Version, before.Version, err)
			}
		})
	}
}

func TestConnectWithoutUser(t *testing.T) {
	t.Parallel()
	b := setupConnect(t)
	b.must(b.sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultStatus, Status: 503, Endpoint: xsim.EndpointMe}}))
	_, err := b.connect("new", "carol")
	wantError(t, err, "connect new: X does not say whose consent this is: nothing was stored, and the consent was taken back: "+
		"unavailable: GET /2/users/me: 503 Service Unavailable: Service Unavailable")
	b.wantRevoked("carol", true)
	b.wantNoAccount("new")

	if _, err := b.c.Connect(t.Context(), "No Name", "code", "verifier", testRedirect); err == nil || !strings.Contains(err.Error(), "No Name") {
		t.Errorf("of a name that is none: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := b.c.Connect(ended, "new", "code", "verifier", testRedirect); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	if n := b.sim.Counts()[xsim.EndpointToken]; n["200"] != 1 || len(n) != 1 {
		t.Errorf("exchanges: %v, want the first one alone", n)
	}
}

// reluctant is a ledger whose imports fail before or after they are committed.
type reluctant struct {
	store.Store
	before, after atomic.Int32
}

var errAway = errors.New("the database is away")

func (r *reluctant) ImportAccount(ctx context.Context, in store.Import) (store.ImportResult, error) {
	if r.before.Add(-1) >= 0 {
		return "", errAway
	}
	result, err := r.Store.ImportAccount(ctx, in)
	if err == nil && r.after.Add(-1) >= 0 {
		return "", errAway
	}
	return result, err
}

// From the exchange on nothing keeps the pair from the database: neither an
// interruption, nor that the database is away for a while.
func TestConnectKeepsThePair(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ before, after int32 }{
		"the answer to the commit is lost": {0, 1},
		"the database is away":             {2, 0},
		"the command is interrupted":       {0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupConnect(t)
			ledger := &reluctant{Store: b.control.Ledger}
			ledger.before.Store(test.before)
			ledger.after.Store(test.after)
			b.c.Importer.Ledger = ledger
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			b.c.OAuth.HTTPClient = &http.Client{Transport: &hook{then: interrupt, next: b.c.OAuth.HTTPClient.Transport}}
			code, verifier := b.consent("alice")
			connected, err := b.c.Connect(ctx, "alice", code, verifier, testRedirect)
			if err != nil || ctx.Err() == nil || connected.Result != store.TokenReplaced {
				t.Fatalf("connected %+v, %v; interrupted: %v", connected, err, ctx.Err())
			}
			b.wantTokens("alice", "alice")
		})
	}
}

// hook does something after each request.
type hook struct {
	then func()
	next http.RoundTripper
}

func (h *hook) RoundTrip(r *http.Request) (*http.Response, error) {
	defer h.then()
	return h.next.RoundTrip(r)
}

func TestDisconnect(t *testing.T) {
	t.Parallel()
	b := setupConnect(t)
	before := b.wantTokens("alice", "alice")
	done, err := b.disconnect("alice")
	if want := (app.Disconnected{Name: "alice", XUserID: done.XUserID, Username: "alice", Revoked: true}); err != nil || done != want {
		t.Errorf("disconnected %+v, %v", done, err)
	}
	b.wantRevoked("alice", true)
	if n := b.sim.Counts()[xsim.EndpointRevoke]["200"]; n != 2 {
		t.Errorf("%d tokens were revoked, want both", n)
	}
	after, err := b.control.Ledger.Token(t.Context(), "alice")
	if err != nil || !after.Disconnected() || !after.Access.Empty() || !after.Refresh.Empty() || after.Version == before.Version {
		t.Errorf("the token is disconnected: %t, of version %d after %d, %v", after.Disconnected(), after.Version, before.Version, err)
	}
	events, err := b.control.Conn.JS.Stream(t.Context(), b.control.Conn.Names.EventsStream())
	b.must(err)
	if _, err := events.GetLastMsgForSubject(t.Context(), "jetpost.event.account.reauth_required.alice"); err != nil {
		t.Errorf("the event of it: %v", err)
	}

	again, err := b.disconnect("alice")
	if n := b.sim.Counts()[xsim.EndpointRevoke]["200"]; err != nil || !again.Revoked || n != 2 {
		t.Errorf("once more: %+v, %v, %d tokens revoked", again, err, n)
	}
	_, err = b.connect("alice", "alice")
	b.must(err)
	if b.wantTokens("alice", "alice").RequiresReauth {
		t.Error("connected again, it still has to be connected")
	}
	if _, err := b.disconnect("nobody"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
	b.wantCallLog()
}

func TestDisconnectBusy(t *testing.T) {
	t.Parallel()
	b := setupConnect(t)
	before := b.wantTokens("alice", "alice")
	_, claimed, err := b.control.Ledger.ClaimToken(t.Context(), store.TokenClaim{
		Account: "alice", UsedVersion: before.Version, Force: true, Pace: store.Pace{Lease: time.Hour}, Now: time.Now(),
	})
	if err != nil || !claimed {
		t.Fatalf("claim: %t, %v", claimed, err)
	}
	_, err = b.disconnect("alice")
	b.hidden(err)
	wantError(t, err, "disconnect alice: the account's token is being renewed just now")
	b.wantTokens("alice", "alice")
	if n := len(b.sim.Counts()[xsim.EndpointRevoke]); n != 0 {
		t.Errorf("X was asked to revoke: %v", b.sim.Counts())
	}
}

// Where X does not confirm, nobody uses the tokens all the same, and they are
// kept for one more try.
func TestDisconnectUnconfirmed(t *testing.T) {
	t.Parallel()
	b := setupConnect(t)
	before := b.wantTokens("alice", "alice")
	b.must(b.sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultStatus, Status: 503, Endpoint: xsim.EndpointRevoke, Times: 1}}))
	done, err := b.disconnect("alice")
	b.hidden(err)
	wantError(t, err, "alice is disconnected here, but X did not confirm that its tokens were revoked: "+
		"outcome unknown: POST /2/oauth2/revoke: 503 Service Unavailable: Service Unavailable")
	if help := app.Hint(err); done.Revoked || !strings.Contains(help, "jetpost accounts disconnect alice") || !strings.Contains(help, "Connected apps") {
		t.Errorf("disconnected %+v, advice %q", done, help)
	}
	kept, err := b.control.Ledger.Token(t.Context(), "alice")
	if err != nil || !kept.Disconnected() || kept.Refresh != before.Refresh {
		t.Errorf("the token is disconnected: %t, %v; another one: %t", kept.Disconnected(), err, kept.Refresh != before.Refresh)
	}
	_, claimed, err := b.control.Ledger.ClaimToken(t.Context(), store.TokenClaim{
		Account: "alice", UsedVersion: kept.Version, Force: true, Pace: store.Pace{Lease: time.Hour}, Now: time.Now(),
	})
	if err != nil || claimed {
		t.Errorf("it may still be exchanged: %t, %v", claimed, err)
	}
	b.wantRevoked("alice", false)

	done, err = b.disconnect("alice")
	if err != nil || !done.Revoked {
		t.Errorf("once more: %+v, %v", done, err)
	}
	b.wantRevoked("alice", true)
	b.wantCallLog()
}

// The page asks for all that Connect wants.
func TestConnectorAuthorizeURL(t *testing.T) {
	t.Parallel()
	b := setupConnect(t)
	page, err := url.Parse(b.c.AuthorizeURL("s", "v", testRedirect))
	b.must(err)
	if want := "tweet.read tweet.write users.read offline.access media.write"; page.Query().Get("scope") != want || page.Query().Get("client_id") != "simulator" {
		t.Errorf("got %s", page)
	}
}

func TestReportAccount(t *testing.T) {
	t.Parallel()
	const lease = time.Hour
	claim := func(b *connectBundle, lease time.Duration) store.Token {
		b.Helper()
		token, claimed, err := b.control.Ledger.ClaimToken(b.Context(), store.TokenClaim{
			Account: "alice", UsedVersion: 1, Force: true, Pace: store.Pace{Lease: lease, Backoff: time.Hour}, Now: time.Now(),
		})
		if err != nil || !claimed {
			b.Fatalf("claim: %t, %v", claimed, err)
		}
		return token
	}
	fail := func(b *connectBundle, outcome store.ExchangeOutcome) {
		b.Helper()
		b.must(b.control.Ledger.SaveTokenFailure(b.Context(), claim(b, lease),
			store.TokenFailure{Error: "no luck", Outcome: outcome, NextAttempt: time.Now().Add(time.Minute), Now: time.Now()}))
	}
	for state, test := range map[string]struct {
		act  func(b *connectBundle)
		do   string
		next bool // there is a next attempt
	}{
		control.TokenDisconnected: {func(b *connectBundle) {
			_, err := b.disconnect("alice")
			b.must(err)
		}, "connect it again with: jetpost accounts connect alice", false},
		control.TokenFailing: {func(b *connectBundle) { fail(b, store.ExchangeNothing) }, "wait, or try now with jetpost refresh alice --force", true},
		control.TokenInDoubt: {func(b *connectBundle) { claim(b, -time.Second) }, "wait: the account goes on with its access token; near its end X is asked once more", true},
		control.TokenOK:      {func(*connectBundle) {}, "", false},
		control.TokenReauthRequired: {
			func(b *connectBundle) { fail(b, store.ExchangeRefused) }, "connect it again with: jetpost accounts connect alice", false,
		},
		control.TokenRenewing: {func(b *connectBundle) { claim(b, lease) }, "", false},
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			b := setupConnect(t)
			test.act(b)
			r, err := control.ReportAccount(t.Context(), b.control.Ledger, "alice")
			b.must(err)
			if r.State != state || r.Do != test.do || r.NextAttemptAt.IsZero() == test.next || r.Name != "alice" {
				t.Errorf("got %+v", r)
			}
			if r.InDoubtSince.IsZero() == (state == control.TokenInDoubt) {
				t.Errorf("in doubt since %s", r.InDoubtSince)
			}
		})
	}
	t.Run("a permission is missing", func(t *testing.T) {
		t.Parallel()
		b := setupConnect(t)
		_, err := b.control.Ledger.ImportAccount(t.Context(), store.Import{
			Name: "nomedia", XUserID: "77", Username: "nomedia", Now: time.Now(),
			Pair: store.Pair{Access: appsecret.New("a"), Refresh: appsecret.New("r"), ExpiresAt: time.Now().Add(time.Hour), Scope: "tweet.read tweet.write users.read offline.access"},
		})
		b.must(err)
		r, err := control.ReportAccount(t.Context(), b.control.Ledger, "nomedia")
		b.must(err)
		if len(r.Missing) != 1 || r.Missing[0] != "media.write" || !strings.Contains(r.Do, "jetpost accounts connect nomedia") {
			t.Errorf("missing %v, do %q", r.Missing, r.Do)
		}
	})
	t.Run(control.TokenUnreadable, func(t *testing.T) {
		t.Parallel()
		b := setupConnect(t)
		r, err := control.ReportAccount(t.Context(), unreadable{b.control.Ledger}, "alice")
		if err != nil || r.State != control.TokenUnreadable || !strings.Contains(r.Do, "HUB_ENCRYPTION_KEY") {
			t.Errorf("got %+v, %v", r, err)
		}
		if _, err := control.ReportAccount(t.Context(), b.control.Ledger, "nobody"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("nobody: %v", err)
		}
	})
}

// unreadable is a ledger whose tokens no configured key opens.
type unreadable struct{ store.Store }

func (unreadable) Token(context.Context, string) (store.Token, error) {
	return store.Token{}, &store.KeyError{KeyID: "another"}
}

// Whoever joins what runs must know the app's secret where that does, and uses no
// other app's where it does not.
func TestConnectorSecret(t *testing.T) {
	t.Parallel()
	up := func(secret string) string {
		dir := t.TempDir()
		h, err := app.Up(t.Context(), app.InstanceConfig{
			Config: app.Config{X: app.XConfig{ClientID: "app", ClientSecret: appsecret.New(secret)}},
			Data:   dir, NATSListen: "127.0.0.1:0", NoWorker: true,
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		return dir
	}
	connector := func(dir, secret string) (*app.Connector, error) {
		cfg, running, err := app.Config{X: app.XConfig{ClientID: "another", ClientSecret: appsecret.New(secret)}}.Running(dir)
		if err != nil || !running {
			t.Fatalf("running: %t, %v", running, err)
		}
		control, err := cfg.OpenControl(t.Context(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(control.Close)
		return control.Connector()
	}
	confidential := up("right")
	_, err := connector(confidential, "")
	wantError(t, err, "configuration: X_CLIENT_SECRET: is missing, but the jetpost that runs here has one; set it here too")
	if c, err := connector(confidential, "right"); err != nil || c.OAuth.ClientID != "app" || c.OAuth.ClientSecret != "right" {
		t.Errorf("with the secret: %+v, %v", c, err)
	}
	if c, err := connector(up(""), "another's"); err != nil || c.OAuth.ClientID != "app" || c.OAuth.ClientSecret != "" {
		t.Errorf("of a public app: %+v, %v", c, err)
	}
}

// A row that no configured key opens keeps its pair, and the person a code that
// can still be used once the key is back.
func TestConnectOverMissingKey(t *testing.T) {
	t.Parallel()
	b := setupConnect(t)
	before := b.wantTokens("alice", "alice")
	tokens := b.c.Tokens
	b.c.Tokens = lockedTokens{tokens}
	code, verifier := b.consent("alice")
	_, err := b.c.Connect(t.Context(), "alice", code, verifier, testRedirect)
	b.hidden(err)
	if missing := new(store.KeyError); !errors.As(err, &missing) || !strings.Contains(app.Hint(err), "HUB_ENCRYPTION_KEY") {
		t.Errorf("error is %v with advice %q, want a KeyError", err, app.Hint(err))
	}
	if after := b.wantTokens("alice", "alice"); after.Refresh != before.Refresh {
		t.Error("the pair was replaced")
	}
	b.c.Tokens = tokens
	_, err = b.c.Connect(t.Context(), "alice", code, verifier, testRedirect)
	b.must(err)
	b.wantTokens("alice", "alice")
	b.wantCallLog()
}

// lockedTokens are tokens whose key is missing.
type lockedTokens struct{ store.Tokens }

func (lockedTokens) Token(context.Context, string) (store.Token, error) {
	return store.Token{}, &store.KeyError{KeyID: "0a1b2c3d"}
}
