package app

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// serveWeb serves the pages as the user web, without a database and without keys.
func (s *served) serveWeb(log *slog.Logger) *Web {
	s.t.Helper()
	w, err := NewWeb(s.t.Context(), Config{
		NATS: NATSConfig{URL: s.server.ClientURL(), User: webUser, Password: secret.New(testPassword)},
		Web:  WebConfig{Listen: "127.0.0.1:0"},
	}, log)
	testkit.Must(s.t, err)
	ctx, cancel := context.WithCancel(s.t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx); err != nil {
			s.t.Errorf("web: %v", err)
		}
	})
	s.t.Cleanup(func() { cancel(); running.Wait(); w.Close() })
	return w
}

// visit asks for a page, and returns its status and its text.
func visit(t *testing.T, browser *http.Client, method, address string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, nil)
	testkit.Must(t, err)
	resp, err := browser.Do(req)
	testkit.Must(t, err)
	text, err := io.ReadAll(resp.Body)
	testkit.Must(t, errors.Join(err, resp.Body.Close()))
	return resp, string(text)
}

// TestWebAlone: the pages need neither the database nor keys; a worker exchanges the code,
// which passes through NATS sealed, once.
func TestWebAlone(t *testing.T) {
	t.Parallel()
	s := serve(t, Walls{Web: true}, "acme")
	var log bytes.Buffer
	w := s.serveWeb(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	_, err := s.sim.AddAccount(xsim.NewAccount{Handle: "carol"})
	testkit.Must(t, err)
	seen := s.eavesdrop()

	jar, err := cookiejar.New(nil)
	testkit.Must(t, err)
	browser := &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if resp, text := visit(t, browser, http.MethodGet, w.Site.Public.String()+"/connect/"+strings.Repeat("x", 43)); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(text, "fault is ours") {
		t.Errorf("without a worker: %d\n%s", resp.StatusCode, text)
	}
	s.work()
	link, err := s.as(operatorUser).AccountLink(t.Context(), "carol", jetpost.AccountLink{PublicURL: w.Site.Public.String()})
	testkit.Must(t, err)
	if resp, text := visit(t, browser, http.MethodGet, link.URL); resp.StatusCode != http.StatusOK || !strings.Contains(text, "Continue to X") {
		t.Fatalf("the link: %d\n%s", resp.StatusCode, text)
	}
	begun, _ := visit(t, browser, http.MethodPost, link.URL)
	consented, _ := visit(t, browser, http.MethodGet, begun.Header.Get("Location")+"&user=carol")
	back, err := consented.Location()
	testkit.Must(t, err)
	if resp, text := visit(t, browser, http.MethodGet, back.String()); resp.StatusCode != http.StatusOK || !strings.Contains(text, "@carol is now connected under the name carol") {
		t.Fatalf("the way back: %d\n%s", resp.StatusCode, text)
	}
	token, err := s.ledger.Token(t.Context(), "carol")
	testkit.Must(t, err)
	if inForce, _ := s.sim.CurrentToken("carol"); token.Refresh.Reveal() != inForce.RefreshToken {
		t.Error("the tokens are not those that X takes")
	}
	browserSecret := jar.Cookies(w.Site.Public)[0].Value
	hidden := map[string]string{
		"code": back.Query().Get("code"), "link": link.URL[strings.LastIndex(link.URL, "/")+1:], "browser": browserSecret,
		"access token": token.Access.Reveal(), "refresh token": token.Refresh.Reveal(),
	}
	told := seen()
	if !strings.Contains(told, `"code":"`) {
		t.Error("no call was overheard")
	}
	for what, value := range hidden {
		if strings.Contains(told, value) || strings.Contains(log.String(), value) {
			t.Errorf("the %s travels or is logged in the clear", what)
		}
	}
}

// eavesdrop hears the calls of the pages, until its result is asked for.
func (s *served) eavesdrop() (heard func() string) {
	s.t.Helper()
	nc := s.connect(workerUser)
	calls, err := nc.SubscribeSync(jetpost.Names{}.AllAPI())
	testkit.Must(s.t, err)
	answers, err := nc.SubscribeSync(webInbox + ".>")
	testkit.Must(s.t, err)
	testkit.Must(s.t, nc.Flush())
	return func() string {
		testkit.Must(s.t, nc.Flush())
		var all strings.Builder
		for _, sub := range []*nats.Subscription{calls, answers} {
			pending, _, err := sub.Pending()
			testkit.Must(s.t, err)
			for range pending {
				msg, err := sub.NextMsg(testkit.Patience)
				testkit.Must(s.t, err)
				all.Write(msg.Data)
			}
		}
		return all.String()
	}
}

// TestWebLogin: the user of the pages calls operations, but none that makes API tokens,
// hears nobody else's answers, and reaches no stream.
func TestWebLogin(t *testing.T) {
	t.Parallel()
	s := serve(t, Walls{Web: true}, "acme")
	s.work()
	violations := make(chan error, 1)
	nc, err := nats.Connect(s.server.ClientURL(), nats.UserInfo(webUser, testPassword), nats.CustomInboxPrefix(webInbox),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { violations <- err }))
	testkit.Must(t, err)
	t.Cleanup(nc.Close)
	refused := func(what string, try func() error) {
		t.Helper()
		testkit.Must(t, errors.Join(try(), nc.Flush()))
		select {
		case err := <-violations:
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("%s: %v", what, err)
			}
		case <-t.Context().Done():
			t.Errorf("%s is allowed", what)
		}
	}
	secretOperations := map[jetpost.Operation]bool{jetpost.OpTokenCreate: true, jetpost.OpTokenList: true, jetpost.OpTokenRevoke: true}
	for _, o := range jetpost.Operations() {
		account := ""
		if o.Account == jetpost.OfOne {
			account = "acme"
		}
		subject := jetpost.Names{}.API(o.Operation, account)
		if secretOperations[o.Operation] {
			refused(string(o.Operation), func() error { return nc.Publish(subject, nil) })
		} else if _, err := nc.Request(subject, []byte(`{"none":0}`), testkit.Patience); err != nil {
			t.Errorf("%s: %v", o.Operation, err)
		}
	}
	for _, subject := range []string{
		jetpost.Names{}.PublishRequest("acme"), "publish.wake.acme", "$JS.API.STREAM.NAMES", "$JS.API.INFO", "$SRV.PING.jetpost", jetpost.Names{}.RefreshRequest(),
		"$KV." + jetpost.Names{}.LimitsBucket() + ".pause.publish", "_INBOX.other.1",
	} {
		refused(subject, func() error { return nc.Publish(subject, nil) })
	}
	for _, subject := range []string{">", "_INBOX.>", jetpost.Names{}.AllAPI(), jetpost.Names{}.AllEvents()} {
		refused("hearing "+subject, func() error { _, err := nc.SubscribeSync(subject); return err })
	}
}
