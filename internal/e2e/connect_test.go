package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/cli"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// connecting is 'jetpost accounts connect', once it waits for X's answer.
type connecting struct {
	t      testkit.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout lockedBuffer
	stderr lockedBuffer
	page   string // where X asks for consent
	done   chan struct{}
}

// connect starts one. Its port is a free one, and no browser is opened.
func (s *site) connect(t testkit.T, env []string, args ...string) *connecting {
	t.Helper()
	c := startConnect(t, env, append([]string{"--callback", "127.0.0.1:0", "--no-browser"}, args...)...)
	testkit.Eventually(t, "the address of X's page", func() bool {
		c.page = regexp.MustCompile(`http://\S+/i/oauth2/authorize\S+`).FindString(c.stderr.String())
		return c.page != ""
	})
	return c
}

func startConnect(t testkit.T, env []string, args ...string) *connecting {
	t.Helper()
	c := &connecting{t: t, done: make(chan struct{})}
	ctx, cancel := context.WithTimeout(t.Context(), harness.CommandTime)
	c.cmd = exec.CommandContext(ctx, "jetpost", append([]string{"accounts", "connect"}, args...)...)
	c.cmd.Env, c.cmd.Stdout, c.cmd.Stderr = env, &c.stdout, &c.stderr
	var err error
	c.stdin, err = c.cmd.StdinPipe()
	testkit.Must(t, err)
	testkit.Must(t, c.cmd.Start())
	go func() {
		_ = c.cmd.Wait() // the exit code tells the same
		close(c.done)
	}()
	t.Cleanup(func() {
		cancel()
		<-c.done
		if t.Failed() {
			t.Logf("%v printed:\n%s%s", c.cmd.Args, c.stdout.String(), c.stderr.String())
		}
		if text := c.stdout.String() + c.stderr.String(); strings.Contains(text, "xsim-") {
			t.Errorf("a code or a token is printed:\n%s", text)
		}
	})
	return c
}

// follow follows the page to its end, as a browser does whose user is logged in.
func (c *connecting) follow(more string) (status int, page string) {
	c.t.Helper()
	return get(c.t, c.page+more)
}

func get(t testkit.T, address string) (status int, page string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	testkit.Must(t, err)
	resp, err := http.DefaultClient.Do(req)
	testkit.Must(t, err)
	body, err := io.ReadAll(resp.Body)
	testkit.Must(t, errors.Join(err, resp.Body.Close()))
	return resp.StatusCode, html.UnescapeString(string(body))
}

// redirect returns where X leads the browser.
func (c *connecting) redirect(more string) *url.URL {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.page+more, nil)
	testkit.Must(c.t, err)
	resp, err := http.DefaultTransport.RoundTrip(req)
	testkit.Must(c.t, err)
	testkit.Must(c.t, resp.Body.Close())
	target, err := resp.Location()
	testkit.Must(c.t, err)
	return target
}

func (c *connecting) paste(text string) {
	c.t.Helper()
	_, err := io.WriteString(c.stdin, text+"\n")
	testkit.Must(c.t, err)
}

// exit waits for the end, and returns the exit code with what was printed after
// the invitation.
func (c *connecting) exit() (code int, stdout, stderr string) {
	c.t.Helper()
	testkit.Wait(c.t, "the end of "+c.cmd.String(), c.done)
	_, stderr, _ = strings.Cut(c.stderr.String(), "paste its whole address here.\n")
	return c.cmd.ProcessState.ExitCode(), c.stdout.String(), stderr
}

// lockedBuffer collects what a process prints.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// newConnectSite is a site whose X knows a confidential app, has a clock that the
// test can set forward, and has the users alice, bob and carol.
func newConnectSite(t *testing.T) (s *site, env []string, ahead *atomic.Int64) {
	t.Helper()
	s = newSite(t, harness.SiteConfig{Lease: longLease})
	ahead = &atomic.Int64{}
	s.Sim.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	s.Sim.ClientID, s.Sim.ClientSecret = s.Cfg.X.ClientID, "right"
	for _, user := range []string{"alice", "bob", "carol"} {
		_, err := s.Sim.AddAccount(xsim.NewAccount{Handle: user})
		testkit.Must(t, err)
	}
	return s, append(s.Settings(), "X_CLIENT_SECRET=right", "DISPLAY=", "WAYLAND_DISPLAY="), ahead
}

func TestConnectByBrowser(t *testing.T) {
	t.Parallel()
	s, env, _ := newConnectSite(t)
	c := s.connect(t, env, "acme")
	if status, _ := get(t, strings.Split(c.redirectURI(), "?")[0]); status != http.StatusBadRequest {
		t.Errorf("a visit without an answer: %d", status)
	}
	status, page := c.follow("&user=alice")
	if status != http.StatusOK || !strings.Contains(page, "acme is connected") || !strings.Contains(page, "@alice") || !strings.Contains(page, `name="viewport"`) {
		t.Errorf("the browser ends at %d:\n%s", status, page)
	}
	code, stdout, stderr := c.exit()
	if code != exitOK || !regexp.MustCompile(`^connected acme, which is @alice: its token ends 2\S+, and is renewed by itself\n$`).MatchString(stdout) || stderr != "" {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}

	// Once more, for a program.
	c = s.connect(t, env, "acme", "-o", "json")
	c.follow("&user=alice")
	code, stdout, _ = c.exit()
	var connected struct {
		Name, Username, Result, Scope string
		Ends                          time.Time `json:"token_expires_at"`
	}
	if err := json.Unmarshal([]byte(stdout), &connected); err != nil || code != exitOK || connected.Name != "acme" || connected.Username != "alice" ||
		connected.Result != string(store.TokenReplaced) || connected.Scope != "tweet.read tweet.write users.read offline.access media.write" || connected.Ends.IsZero() {
		t.Errorf("exit code %d, %s: %+v, %v", code, stdout, connected, err)
	}
	s.wantConnected("acme", "alice")
	s.WantCallLog(nil)
}

// redirectURI is where X is asked to lead the browser.
func (c *connecting) redirectURI() string {
	c.t.Helper()
	page, err := url.Parse(c.page)
	testkit.Must(c.t, err)
	return page.Query().Get("redirect_uri")
}

// wantConnected checks that the ledger has the tokens that X takes.
func (s *site) wantConnected(account, user string) {
	s.T.Helper()
	stored, err := s.Ledger.Token(s.T.Context(), account)
	testkit.Must(s.T, err)
	if inForce, _ := s.Sim.CurrentToken(user); inForce.Revoked || stored.Refresh.Reveal() != inForce.RefreshToken {
		s.T.Errorf("%s has not the tokens that X takes of @%s", account, user)
	}
}

// On a machine without a browser the address is pasted at which another one ends.
func TestConnectByPasting(t *testing.T) {
	t.Parallel()
	s, env, _ := newConnectSite(t)
	c := s.connect(t, env, "acme")
	c.paste("yes, I did")
	testkit.Eventually(t, "a word about what was pasted", func() bool { return strings.Contains(c.stderr.String(), "That is not the address") })
	c.paste(" '" + c.redirect("&user=alice").String() + "' ")
	if code, stdout, _ := c.exit(); code != exitOK || !strings.HasPrefix(stdout, "connected acme, which is @alice: ") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
	s.wantConnected("acme", "alice")

	// An input that ends only means that nothing is pasted.
	c = s.connect(t, env, "acme")
	testkit.Must(t, c.stdin.Close())
	c.follow("&user=alice")
	if code, stdout, _ := c.exit(); code != exitOK || !strings.HasPrefix(stdout, "connected acme again, which is @alice: ") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
	s.wantConnected("acme", "alice")
}

// Where somebody can see a browser, it is asked to open the page, and learns none
// of our secrets.
func TestConnectOpensBrowser(t *testing.T) {
	t.Parallel()
	s, env, _ := newConnectSite(t)
	testkit.Must(t, s.Sim.SetConsent(xsim.Consent{User: "alice"}))
	log := filepath.Join(t.TempDir(), "browser")
	c := startConnect(t, append(env, "DISPLAY=:7", "BROWSER_LOG="+log), "acme", "--callback", "127.0.0.1:0")
	if code, stdout, _ := c.exit(); code != exitOK || !strings.HasPrefix(stdout, "connected acme, which is @alice: ") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
	var text string
	testkit.Eventually(t, "the browser's log", func() bool {
		read, err := os.ReadFile(log)
		text = string(read)
		return err == nil
	})
	if !strings.Contains(text, "acme is connected") || !strings.Contains(text, "DISPLAY=:7") {
		t.Errorf("the browser saw:\n%s", text)
	}
	for _, name := range cli.SecretNames() {
		if strings.Contains(text, name+"=") {
			t.Errorf("the browser was given %s", name)
		}
	}
}

// connectError is what goes wrong with 'jetpost accounts connect'.
type connectError struct {
	name string
	args []string
	env  []string
	// answer is what becomes of the page; the error is of the command line where
	// it is nil.
	answer func(c *connecting)
	code   int
	want   string // %REDIRECT% stands for the redirect URI
	do     string
}

// connectSettings are of the command line and the environment.
func connectSettings(taken string) []connectError {
	return []connectError{
		{
			name: "no client id", args: []string{"carol", "--callback", taken}, env: []string{"X_CLIENT_ID="},
			code: exitUsage, want: "configuration: X_CLIENT_ID: is missing; it is the OAuth 2.0 client id of your app in X's developer console",
			do: "correct the environment or the flags; both are explained by: jetpost --help",
		},
		{
			name: "port in use", args: []string{"carol", "--callback", taken},
			code: exitFailed, want: "listen tcp " + taken + ": bind: address already in use",
			do: "choose another port with --callback, and register its /callback in X's developer console too",
		},
		{
			name: "usage", args: []string{"No Name", "--callback", "localhost:1", "--authorize-url", "x.com", "--timeout=-1s"},
			code: exitUsage, want: "cannot connect:\n  name \"No Name\": use 1 to 63 of a-z 0-9 _ -\n  --callback: \"localhost:1\" is not 127.0.0.1:PORT\n  --authorize-url: \"x.com\" is not a URL like https://x.com\n  --timeout: -1s, want a time above 0",
		},
	}
}

// connectConsents are of what the user does on X's page.
func connectConsents() []connectError {
	return []connectError{
		{
			name: "consent denied", args: []string{"carol"},
			answer: func(c *connecting) { c.wantPage("&deny=true", "carol is not connected") },
			code:   exitFailed, want: "connect carol: the consent was denied on X's page", do: "start again, and authorize the app: jetpost accounts connect carol",
		},
		{
			name: "interrupted", args: []string{"carol"},
			answer: func(c *connecting) { testkit.Must(c.t, c.cmd.Process.Signal(syscall.SIGINT)) },
			code:   exitInterrupted, want: "interrupted: nothing has changed",
		},
		{
			name: "no consent in time", args: []string{"carol", "--timeout", "1s"}, answer: func(*connecting) {},
			code: exitWaiting, want: "connect carol: no consent came within 1s",
			do: "if X's page said that something went wrong, check X_CLIENT_ID, and register %REDIRECT% in X's developer console; then start again",
		},
		{
			name: "scope missing", args: []string{"carol"},
			answer: func(c *connecting) {
				c.wantPage("&user=carol&grant=tweet.read+tweet.write+users.read", "carol is not connected")
			},
			code: exitFailed, want: "connect carol: the consent lacks offline.access (to renew its tokens), media.write (to upload images): nothing was stored, and the consent was taken back",
			do: "X may have ended the tokens that it had before: give the app the permission to read and write in X's developer console, then connect it again with: jetpost accounts connect carol",
		},
		{
			name: "user wrong", args: []string{"alice"},
			answer: func(c *connecting) { c.wantPage("&user=carol", "alice is not connected") },
			code:   exitFailed, want: "connect alice: the consent is of @carol, but alice is @alice: nothing was stored, and the consent was taken back",
			do: "log in to X as @alice, then connect it again with: jetpost accounts connect alice",
		},
	}
}

// connectAnswers are of a code or a state that is not the one that was sent for.
func connectAnswers(s *site, ahead *atomic.Int64) []connectError {
	const spent = "connect carol: authorization code not accepted: POST /2/oauth2/token: 400 Bad Request: Value passed for the authorization code was invalid."
	return []connectError{
		{
			name: "code expired", args: []string{"carol"},
			answer: func(c *connecting) {
				address := c.redirect("&user=carol")
				ahead.Add(int64(30 * time.Second))
				c.paste(address.String())
			},
			code: exitFailed, want: spent, do: "a code works once, and for 30 seconds: start again with: jetpost accounts connect carol",
		},
		{
			name: "code used before", args: []string{"carol"},
			answer: func(c *connecting) {
				address := c.redirect("&user=carol")
				s.spend(c.t, address.Query().Get("code"))
				c.paste(address.String())
			},
			code: exitFailed, want: spent, do: "a code works once, and for 30 seconds: start again with: jetpost accounts connect carol",
		},
		{
			name: "state wrong", args: []string{"carol"},
			answer: func(c *connecting) {
				status, page := get(c.t, c.redirectURI()+"?code=stolen&state=other")
				if status != http.StatusBadRequest || !strings.Contains(page, "carol is not connected") {
					c.t.Errorf("the browser ends at %d:\n%s", status, page)
				}
			},
			code: exitFailed, want: "connect carol: the answer belongs to another attempt: its state is not the one that was sent",
			do: "close the pages of earlier attempts, start again, and use the page that is printed then",
		},
	}
}

// connectRefusals are of an X that cannot be reached, fails or refuses the app.
func connectRefusals(s *site, closed string) []connectError {
	return []connectError{
		{
			name: "app's secret wrong", args: []string{"carol"}, env: []string{"X_CLIENT_SECRET=wrong"},
			answer: func(c *connecting) { c.wantPage("&user=carol", "carol is not connected") },
			code:   exitFailed, want: "connect carol: app not accepted: POST /2/oauth2/token: 401 Unauthorized: Missing valid authorization header",
			do: "correct X_CLIENT_ID and X_CLIENT_SECRET, check the app's type in X's developer console, then start again with: jetpost accounts connect carol",
		},
		{
			name: "X cannot be reached", args: []string{"carol", "--authorize-url", s.Cfg.X.URL}, env: []string{"X_API_URL=http://" + closed},
			answer: func(c *connecting) { c.wantPage("&user=carol", "carol is not connected") },
			code:   exitFailed, want: "connect carol: not sent: POST /2/oauth2/token: dial tcp " + closed + ": connect: connection refused",
			do: "nothing has changed; once X can be reached, start again with: jetpost accounts connect carol",
		},
		{
			name: "X fails", args: []string{"carol"},
			answer: func(c *connecting) {
				address := c.redirect("&user=carol")
				testkit.Must(c.t, s.Sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultOutage}}))
				c.paste(address.String())
			},
			code: exitFailed, want: "connect carol: outcome unknown: POST /2/oauth2/token: 503 Service Unavailable: Service Unavailable",
			do: "X may have ended the tokens that it had before: as soon as X answers, start again with: jetpost accounts connect carol",
		},
		{
			name: "X's page fails", args: []string{"carol"},
			answer: func(c *connecting) {
				q := c.redirect("&deny=true").Query()
				q.Set("error", "server_error")
				q.Set("error_description", "Something\nbroke.")
				get(c.t, c.redirectURI()+"?"+q.Encode())
			},
			code: exitFailed, want: "connect carol: X answered with an error: server_error Something broke.",
			do: "check the app's settings in X's developer console, then start again",
		},
	}
}

// Whatever goes wrong is one message with what to do, and an exit code.
func TestConnectErrors(t *testing.T) {
	t.Parallel()
	s, env, ahead := newConnectSite(t)
	alice := s.connect(t, env, "alice")
	alice.follow("&user=alice")
	alice.exit()
	s.wantConnected("alice", "alice")
	taken := harness.HoldPort(t).Addr().String()
	closed := testkit.ClosedAddress(t)
	for _, test := range slices.Concat(connectSettings(taken), connectConsents(), connectAnswers(s, ahead), connectRefusals(s, closed)) {
		t.Run(test.name, func(t *testing.T) { test.isTold(t, s, env) })
	}
	s.WantCallLog(nil)
}

// isTold has it go wrong, which changes nothing.
func (is connectError) isTold(t *testing.T, s *site, env []string) {
	t.Helper()
	env = append(env[:len(env):len(env)], is.env...)
	var code int
	var stdout, stderr, redirect string
	if is.answer == nil {
		code, stdout, stderr = harness.RunCommand(t, env, "jetpost", append([]string{"accounts", "connect", "--no-browser"}, is.args...)...)
	} else {
		c := s.connect(t, env, is.args...)
		redirect = c.redirectURI()
		is.answer(c)
		code, stdout, stderr = c.exit()
	}
	want := "jetpost: " + is.want + "\n"
	if is.do != "" {
		want += "  do: " + strings.ReplaceAll(is.do, "%REDIRECT%", redirect) + "\n"
	}
	if code != is.code || stdout != "" || stderr != want {
		t.Errorf("exit code %d, want %d\n%s%s\nwant\n%s", code, is.code, stdout, stderr, want)
	}
	testkit.Must(t, s.Sim.SetFaults(nil))
	if _, err := s.Ledger.Account(t.Context(), "carol"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the account was stored: %v", err)
	}
	s.wantConnected("alice", "alice")
}

// wantPage follows the page and checks what the browser shows at last.
func (c *connecting) wantPage(more, want string) {
	c.t.Helper()
	if status, page := c.follow(more); status != http.StatusBadRequest || !strings.Contains(page, want) || !strings.Contains(page, "What to do: ") {
		c.t.Errorf("the browser ends at %d:\n%s\nwant %q", status, page, want)
	}
}

// spend has somebody else try a code, which thereby is used.
func (s *site) spend(t testkit.T, code string) {
	t.Helper()
	form := url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {"http://127.0.0.1:1/"},
		"code_verifier": {"a-verifier-that-somebody-guesses-of-43-letters"},
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.Cfg.X.URL+"/2/oauth2/token", strings.NewReader(form.Encode()))
	testkit.Must(t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(s.Cfg.X.ClientID, "right")
	resp, err := http.DefaultClient.Do(req)
	testkit.Must(t, err)
	testkit.Must(t, resp.Body.Close())
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("the code was taken with another verifier: %d", resp.StatusCode)
	}
}

// An account that lost its grant holds its jobs, says why to whoever asks or
// publishes, and publishes them, in order, once it is connected again.
func TestConnectAfterLostGrant(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Lease: longLease, Accounts: []string{"alice"}})
	w := s.Worker("worker")
	s.Sim.RevokeConsent("alice")
	jobs := harness.MakeJobs(3, []string{"alice"}, func(i int) int { return i + 1 })
	s.Publish(jobs)
	testkit.Eventually(t, "every job to be held", func() bool { return s.Counts()[jetpost.StateHeld] == len(jobs) })
	for _, j := range jobs {
		if reason := s.Status("alice", j.Id).Reason; reason == nil || reason.Code != jetpost.CodeAccountReauthRequired || !reason.Until.IsZero() {
			t.Errorf("job %s is held for %+v", j.Id, reason)
		}
	}

	code, stdout, stderr := s.Run("publish", "alice", "alice, job late, post 1 of 1", "--id", "late", "-o", "json")
	var published struct {
		ID       string
		Warnings []struct{ Code, Do string }
	}
	err := json.Unmarshal([]byte(stdout), &published)
	if err != nil || code != exitOK || published.ID != "late" || len(published.Warnings) != 1 || published.Warnings[0].Code != "account_reauth_required" ||
		published.Warnings[0].Do != "connect it again with: jetpost accounts connect alice" {
		t.Errorf("publish: exit code %d, %v, %s", code, err, stdout)
	}
	if want := "warning: alice must be connected again, and its jobs wait until then: refresh token not accepted: "; !strings.HasPrefix(stderr, want) ||
		!strings.HasSuffix(stderr, "\n  do: connect it again with: jetpost accounts connect alice\n") {
		t.Errorf("publish warns:\n%s", stderr)
	}
	jobs = append(jobs, &harness.Job{Account: "alice", Id: "late", Posts: 1, Sequence: jobs[len(jobs)-1].Sequence + 1})

	c := s.connect(t, s.Settings(), "alice")
	c.follow("&user=alice")
	if code, stdout, _ := c.exit(); code != exitOK || !strings.HasPrefix(stdout, "connected alice again, which is @alice: ") {
		t.Errorf("connect: exit code %d, %q", code, stdout)
	}
	s.AllPublished(len(jobs))
	s.WantCallLog(jobs)
	events, err := s.Conn.JS.Stream(t.Context(), s.Conn.Names.EventsStream())
	testkit.Must(t, err)
	last, err := events.GetLastMsgForSubject(t.Context(), "jetpost.event.account.*.alice")
	if err != nil || last.Subject != "jetpost.event.account.recovered.alice" {
		t.Errorf("the last event of the account is %+v, %v", last, err)
	}
	if code, _, stderr := s.Run("publish", "alice", "One more", "--wait"); code != exitOK || stderr != "" {
		t.Errorf("publish, connected: exit code %d\n%s", code, stderr)
	}
	harness.Stop(w)
}
