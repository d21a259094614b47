package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/store"
)

const (
	// maxPasteBytes bounds a pasted line; X's answers are far shorter.
	maxPasteBytes = 16 << 10
	// callbackHeaders bounds the headers of a browser's request.
	callbackHeaders = 10 * time.Second
	// pageTime bounds how long a browser may take to fetch its last page.
	pageTime      = 2 * time.Second
	callbackPath  = "/callback"
	consentDenied = "access_denied"
)

type accountsConnectCmd struct {
	Name         string        `arg:"" help:"Your name for the account: 1 to 63 of a-z 0-9 _ -. An existing account is connected again."`
	Callback     string        `default:"127.0.0.1:8484" placeholder:"ADDR" help:"Listening address for X's answer (${default}). Register http://ADDR/callback in X's developer console, by default http://${default}/callback."`
	NoBrowser    bool          `env:"-" help:"Do not open a browser; only print the address of X's page."`
	AuthorizeURL string        `env:"-" name:"authorize-url" placeholder:"URL" help:"URL of X's consent page. Default: https://x.com, or the value of --x-api-url."`
	Timeout      time.Duration `env:"-" default:"10m" help:"How long to wait for the consent. Exit code 5: no consent."`
	appFlags     `embed:""`
}

// check lists the mistakes of the command line.
func (c *accountsConnectCmd) check() error {
	var wrong []string
	if err := jetpost.CheckAccount(c.Name); err != nil {
		wrong = append(wrong, err.Error())
	}
	host, _, err := net.SplitHostPort(c.Callback)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		// X does not accept localhost. Any other address sends the code through a network.
		wrong = append(wrong, fmt.Sprintf("--callback: %q is not 127.0.0.1:PORT", c.Callback))
	}
	if page, err := url.Parse(c.AuthorizeURL); c.AuthorizeURL != "" && (err != nil || page.Host == "" || page.Scheme != "https" && page.Scheme != "http") {
		wrong = append(wrong, fmt.Sprintf("--authorize-url: %q is not a URL like https://x.com", c.AuthorizeURL))
	}
	if c.Timeout <= 0 {
		wrong = append(wrong, fmt.Sprintf("--timeout: %s, want a time above 0", c.Timeout))
	}
	return mistakes("cannot connect", wrong...)
}

// Run asks the account's owner for consent, and stores the tokens.
func (c *accountsConnectCmd) Run(e *env) error {
	if err := c.check(); err != nil {
		return err
	}
	connect := func(ctx context.Context, workers operations) error { return c.connect(ctx, e, workers) }
	return e.byWorkers(connect, func() error {
		return e.withControl(func(ctx context.Context, direct *app.Control) error {
			if _, err := direct.Connector(); err != nil { // which tells what is missing
				return err
			}
			return connect(ctx, direct.Control)
		})
	})
}

func (c *accountsConnectCmd) connect(ctx context.Context, e *env, workers operations) error {
	attempt, err := c.begin(ctx, workers)
	if err != nil {
		return err
	}
	defer attempt.close()
	c.invite(e, attempt)
	connected, err := attempt.wait(ctx, e.stderr, c.Timeout, pastes(e.stdin))
	if err != nil {
		return err
	}
	again := ""
	if connected.Result != string(store.AccountCreated) {
		again = " again"
	}
	return e.say(connected, "connected %s%s, which is @%s: its token ends %s, and is renewed by itself",
		connected.Name, again, connected.Username, localTime(connected.TokenExpiresAt))
}

// invite prints where to consent, and opens a browser if there is one.
func (c *accountsConnectCmd) invite(e *env, a *connectAttempt) {
	fmt.Fprintf(e.stderr, "Log in to X as the account that you want to connect as %s, and consent on this page:\n\n  %s\n\n", a.account, a.page)
	fmt.Fprintf(e.stderr, "X then sends the browser to %s, which must be registered with the app in X's developer console.\n", a.redirectURI)
	fmt.Fprintf(e.stderr, "If that page does not open, for example because the browser is on another machine, paste its whole address here.\n")
	if !c.NoBrowser && openBrowser(a.page) {
		fmt.Fprintf(e.stderr, "(The page was opened in a browser.)\n")
	}
}

// openBrowser opens a browser if there is a display. It does not wait
// for the browser, and passes it none of our secrets.
func openBrowser(page string) bool {
	program := "xdg-open"
	switch {
	case runtime.GOOS == "darwin":
		program = "open"
	case os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "":
		return false
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return false
	}
	browser := exec.CommandContext(context.Background(), path, page) // it may outlive us
	browser.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(SecretNames(), name)
	})
	browser.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must not end the browser
	if browser.Start() != nil {
		return false
	}
	go func() { _ = browser.Wait() }() // its error does not matter: the page's address is printed
	return true
}

// connectAttempt is one try to connect an account.
type connectAttempt struct {
	workers     operations
	account     string
	state       string
	browser     string // digest of a secret of this attempt
	redirectURI string
	page        string // X's consent page
	answers     chan answer
	over        chan struct{}
	server      *http.Server
}

// answer is X's answer in the redirect of the browser.
type answer struct {
	query url.Values
	// outcome receives the page for the browser that waits.
	outcome chan<- outcomePage
}

// begin starts to listen for X's answer, before the person is asked for consent.
func (c *accountsConnectCmd) begin(ctx context.Context, workers operations) (*connectAttempt, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Callback)
	if err != nil {
		return nil, &app.HintError{
			Err:  err, // it names the address
			Help: "choose another port with --callback, and register its /callback in X's developer console too",
		}
	}
	secret := sha256.Sum256([]byte(rand.Text() + rand.Text()))
	browser := sha256.Sum256(secret[:])
	a := &connectAttempt{
		workers: workers, account: c.Name, browser: hex.EncodeToString(browser[:]),
		redirectURI: "http://" + listener.Addr().String() + callbackPath,
		answers:     make(chan answer), over: make(chan struct{}),
	}
	consent, err := workers.AccountConsent(ctx, c.Name, jetpost.AccountConsent{Browser: a.browser, RedirectURI: a.redirectURI})
	if err == nil {
		a.state = consent.State
		a.page, err = c.consentPage(consent.Page)
	}
	if err != nil {
		_ = listener.Close() // nobody has called yet
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc(callbackPath, a.callback)
	a.server = &http.Server{Handler: mux, ReadHeaderTimeout: callbackHeaders, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = a.server.Serve(listener) }() // it ends with close
	return a, nil
}

// consentPage is X's page, or the one at the address that the flag names instead.
func (c *accountsConnectCmd) consentPage(page string) (string, error) {
	if c.AuthorizeURL == "" {
		return page, nil
	}
	u, err := url.Parse(page)
	if err != nil {
		return "", fmt.Errorf("read address of X's page of consent: %w", err)
	}
	return strings.TrimRight(c.AuthorizeURL, "/") + u.RequestURI(), nil
}

// close ends the attempt once the browser has its last page.
func (a *connectAttempt) close() {
	close(a.over)
	ctx, stop := context.WithTimeout(context.Background(), pageTime)
	defer stop()
	if a.server.Shutdown(ctx) != nil {
		_ = a.server.Close() // the time of the browser is over
	}
}

// wait takes the first answer, from the browser or pasted.
func (a *connectAttempt) wait(ctx context.Context, stderr io.Writer, timeout time.Duration, pasted <-chan string) (jetpost.Connected, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		select {
		case got := <-a.answers:
			connected, err := a.settle(ctx, got.query)
			got.outcome <- a.outcome(connected, err)
			return connected, err
		case text := <-pasted:
			query, ok := parsePaste(text)
			if !ok {
				fmt.Fprintln(stderr, "That is not the address of X's redirect: it must contain state=, and code= or error=.")
				continue
			}
			return a.settle(ctx, query)
		case <-timer.C:
			return jetpost.Connected{}, &exitError{code: exitWaiting, err: &app.HintError{
				Err:  fmt.Errorf("connect %s: no consent came within %s", a.account, timeout),
				Help: "if X's page said that something went wrong, check X_CLIENT_ID, and register " + a.redirectURI + " in X's developer console; then start again",
			}}
		case <-ctx.Done():
			return jetpost.Connected{}, &exitError{code: exitInterrupted, err: errors.New("interrupted: nothing has changed")}
		}
	}
}

// settle connects the account with X's answer.
func (a *connectAttempt) settle(ctx context.Context, query url.Values) (jetpost.Connected, error) {
	fail := func(help, format string, args ...any) (jetpost.Connected, error) {
		return jetpost.Connected{}, &app.HintError{Err: fmt.Errorf("connect "+a.account+": "+format, args...), Help: help}
	}
	refused := query.Get("error")
	switch {
	case subtle.ConstantTimeCompare([]byte(query.Get("state")), []byte(a.state)) != 1:
		return fail("close the pages of earlier attempts, start again, and use the page that is printed then",
			"the answer belongs to another attempt: its state is not the one that was sent")
	case refused == consentDenied:
		return fail("start again, and authorize the app: jetpost accounts connect "+a.account, "the consent was denied on X's page")
	case refused != "":
		words := strings.TrimSpace(refused + " " + query.Get("error_description"))
		return fail("check the app's settings in X's developer console, then start again", "X answered with an error: %s", excerpt(words))
	}
	code, err := jetpost.SealCode(a.state, query.Get("code"))
	if err != nil {
		return jetpost.Connected{}, err
	}
	return a.workers.AccountConnect(ctx, a.account, jetpost.AccountConnect{State: a.state, Browser: a.browser, Code: code, RedirectURI: a.redirectURI})
}

// answered tells whether query parameters are an answer of X.
func answered(query url.Values) bool {
	return query.Has("state") && (query.Get("code") != "" || query.Get("error") != "")
}

// parsePaste parses the address of X's redirect, or only its query.
func parsePaste(text string) (url.Values, bool) {
	text = strings.Trim(strings.TrimSpace(text), `'"`)
	if _, after, found := strings.Cut(text, "?"); found {
		text = after
	}
	text, _, _ = strings.Cut(text, "#")
	query, err := url.ParseQuery(text)
	return query, err == nil && answered(query)
}

// pastes sends each line of the input. The end of the input does not end the wait.
func pastes(in io.Reader) <-chan string {
	pasted := make(chan string)
	go func() {
		lines := bufio.NewScanner(in)
		lines.Buffer(nil, maxPasteBytes)
		for lines.Scan() {
			if text := strings.TrimSpace(lines.Text()); text != "" {
				pasted <- text
			}
		}
	}()
	return pasted
}

// callback handles X's redirect of the browser.
func (a *connectAttempt) callback(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if r.Method != http.MethodGet || !answered(query) {
		outcomePage{Title: "Nothing to see here", Text: "This address waits for X's answer about the account " + a.account + "."}.write(w, http.StatusBadRequest)
		return
	}
	outcome := make(chan outcomePage, 1)
	select {
	case a.answers <- answer{query: query, outcome: outcome}:
		page := <-outcome
		page.write(w, page.status)
	case <-a.over:
		outcomePage{Title: "This attempt is over", Text: "Another answer came first. See the command line for the result."}.write(w, http.StatusConflict)
	case <-r.Context().Done():
	}
}

// outcomePage is the last page that the browser shows.
type outcomePage struct {
	status int
	Title  string
	Text   string
	Do     string
}

func (a *connectAttempt) outcome(connected jetpost.Connected, err error) outcomePage {
	if err != nil {
		return outcomePage{status: http.StatusBadRequest, Title: a.account + " is not connected", Text: err.Error(), Do: app.Hint(err)}
	}
	return outcomePage{status: http.StatusOK, Title: a.account + " is connected", Text: "It is @" + connected.Username + ". You can close this window."}
}

func (p outcomePage) write(w http.ResponseWriter, status int) {
	var body bytes.Buffer
	if err := template.Must(template.New("outcome").Parse(outcomeHTML)).Execute(&body, p); err != nil {
		http.Error(w, p.Title+": "+cmp.Or(p.Text, "see the command line"), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer") // its address has the code in it
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // the command line prints the same
}

// outcomeHTML loads nothing else, and fits a phone.
const outcomeHTML = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Title}}</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 32rem; padding: 2rem 1rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.375rem; line-height: 1.3; margin: 0 0 1rem; }
</style>
</head>
<body>
<main>
<h1>{{.Title}}</h1>
<p>{{.Text}}</p>
{{- with .Do}}
<p>What to do: {{.}}</p>
{{- end}}
</main>
</body>
</html>
`
