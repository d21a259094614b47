package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// TestNoTokenInClear uses everything there is, while X repeats in its errors
// whatever it was sent, and then searches all that was written or said for every
// token, code and key.
//
// Whoever adds a command, a page or a table adds its use to one of the functions
// below; tables, streams and files are found by themselves.
func TestNoTokenInClear(t *testing.T) {
	t.Parallel()
	t.Run("many machines", func(t *testing.T) {
		t.Parallel()
		s := newLeakSite(t)
		s.connectAccounts()
		s.work()
		s.loseTheDatabase()
		s.changeKeys()
		s.collect()
		s.search.judge(t, s.Sim)
	})
	t.Run("one machine", func(t *testing.T) {
		t.Parallel()
		leaksOnOneMachine(t)
	})
}

// search is what was produced, and what must not be in it.
type search struct {
	mu      sync.Mutex
	places  []place
	secrets map[string]string // by what it is
}

// place is something that was written or said. What is in it for all to see
// shows that the search can read it.
type place struct {
	name string
	text []byte
	sees string
}

func (s *search) add(name string, text []byte, sees string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places = append(s.places, place{name: name, text: text, sees: sees})
}

// files adds every file of a directory, as one place, but those of the names that
// are left out: they are where a secret belongs.
func (s *search) files(t testkit.T, name, dir, sees string, but ...string) {
	t.Helper()
	var all bytes.Buffer
	testkit.Must(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || slices.Contains(but, entry.Name()) {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(&all, "\n%s\n%s", path, text)
		return err
	}))
	s.add(name, all.Bytes(), sees)
}

// judge looks for each secret in each place.
func (s *search) judge(t *testing.T, sim *xsim.Server) {
	t.Helper()
	tokens := sim.IssuedTokens()
	if len(tokens) < 10 {
		t.Errorf("X gave out %d tokens and codes, want many", len(tokens))
	}
	for _, token := range tokens {
		// What stands before the last hyphen is no secret.
		last := strings.LastIndexByte(token, '-')
		s.secrets["token "+token[:last]+" ("+token[len(token)-4:]+")"] = token[last+1:]
	}
	hidden := needles{}
	for what, value := range s.secrets {
		hidden.add(what, value)
	}
	size := 0
	for _, p := range s.places {
		size += len(p.text)
		if !bytes.Contains(p.text, []byte(p.sees)) {
			t.Errorf("%s: has no %q, so that nothing proves that it is searched:\n%.2000s", p.name, p.sees, p.text)
		}
		if at, what := hidden.find(p.text); what != "" {
			t.Errorf("%s: has %s: ...%q...", p.name, what, p.text[max(0, at-200):min(len(p.text), at+100)])
		}
	}
	t.Logf("searched %d places, %d KB, for %d secrets", len(s.places), size>>10, len(s.secrets))
}

// needles are either half of each secret of hexadecimal digits, in every form in
// which such a thing may be written, by their first bytes.
type needles map[[needleKey]byte][]needle

// needleKey is no longer than the shortest form.
const needleKey = 8 // bytes

type needle struct{ text, what string }

func (n needles) add(what, value string) {
	half := len(value) / 2
	for _, part := range []string{value[:half], value[half:]} {
		for form, written := range formsOf(part) {
			key := [needleKey]byte([]byte(written[:needleKey]))
			n[key] = append(n[key], needle{written, what + " in " + form})
		}
	}
}

// find returns the first secret of a text, or "".
func (n needles) find(text []byte) (at int, what string) {
	for at := range max(0, len(text)-needleKey+1) {
		for _, one := range n[[needleKey]byte(text[at:at+needleKey])] {
			if bytes.HasPrefix(text[at:], []byte(one.text)) {
				return at, one.what
			}
		}
	}
	return 0, ""
}

func formsOf(part string) map[string]string {
	forms := map[string]string{
		"clear": part, "capitals": strings.ToUpper(part),
		"hex": hex.EncodeToString([]byte(part)), "hex in capitals": strings.ToUpper(hex.EncodeToString([]byte(part))),
		"URL escapes": escapeAll(part),
	}
	if raw, err := hex.DecodeString(part); err == nil {
		forms["bytes"] = string(raw)
		addBase64(forms, "base64 of its bytes", raw)
	}
	addBase64(forms, "base64", []byte(part))
	return forms
}

// escapeAll escapes each byte, as a careful program may.
func escapeAll(part string) string {
	var escaped strings.Builder
	for i := range len(part) {
		fmt.Fprintf(&escaped, "%%%02X", part[i])
	}
	return escaped.String()
}

// addBase64 adds what stands in the base64 of any text with the value in it: it
// depends on how many bytes stand before. The characters at its ends that others
// have a part in are left out.
func addBase64(forms map[string]string, name string, value []byte) {
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			written := encoding.EncodeToString(append(make([]byte, before), value...))
			written = written[(before*8+5)/6:]
			if (before+len(value))%3 > 0 {
				written = written[:len(written)-1]
			}
			forms[fmt.Sprintf("%s, %d bytes behind, %s", name, before, encoding.EncodeToString([]byte{0xff}))] = written
		}
	}
}

// The search itself is proved here, form by form.
func TestLeakSearchFindsEveryForm(t *testing.T) {
	t.Parallel()
	const value = "0123456789abcdef0f1e2d3c4b5a6978"
	hidden := needles{}
	hidden.add("it", value)
	raw, err := hex.DecodeString(value)
	testkit.Must(t, err)
	for before := range 5 {
		filling := strings.Repeat("z", before)
		text := filling + value + "zz"
		for form, written := range map[string]string{
			"clear": text, "first half": filling + value[:16], "second half": filling + value[16:],
			"hex": hex.EncodeToString([]byte(text)), "hex in capitals": fmt.Sprintf("%X", text), "capitals": strings.ToUpper(text),
			"bytes": filling + string(raw), "URL": filling + escapeAll(value),
			"base64": base64.StdEncoding.EncodeToString([]byte(text)), "base64 for URLs": base64.RawURLEncoding.EncodeToString([]byte(text)),
			"base64 of bytes": base64.StdEncoding.EncodeToString([]byte(filling + string(raw))),
			"base64 of half":  base64.StdEncoding.EncodeToString([]byte(filling + value[16:])),
		} {
			if _, found := hidden.find([]byte("something " + written + " else")); found == "" {
				t.Errorf("%s behind %d bytes is not found", form, before)
			}
		}
	}
	if at, found := hidden.find([]byte("fedcba9876543210 " + base64.StdEncoding.EncodeToString([]byte("nothing of it is here")))); found != "" {
		t.Errorf("found at %d: %s, which is not there", at, found)
	}
}

// parrot is X, which repeats in every refusal what it was sent.
type parrot struct {
	x http.Handler
	// halve cuts the next pair in the middle of its second token.
	halve atomic.Bool
}

func (p *parrot) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the caller is dead
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	answer := httptest.NewRecorder()
	p.x.ServeHTTP(answer, r)
	said := answer.Body.Bytes()
	switch {
	case answer.Code >= http.StatusBadRequest:
		said = repeat(said, sent(r, body))
	case r.URL.Path == "/2/oauth2/token" && p.halve.CompareAndSwap(true, false):
		said = said[:bytes.Index(said, []byte(`"scope"`))-10]
	}
	maps.Copy(w.Header(), answer.Header())
	w.Header().Del("Content-Length")
	w.WriteHeader(answer.Code)
	_, _ = w.Write(said) // the caller may be dead by now
}

// sent are the secrets of a call.
func sent(r *http.Request, body []byte) string {
	words := []string{r.Header.Get("Authorization")}
	if _, password, ok := r.BasicAuth(); ok {
		words = append(words, password)
	}
	if form, err := url.ParseQuery(string(body)); err == nil {
		for _, name := range []string{"refresh_token", "code", "code_verifier", "token"} {
			words = append(words, form.Get(name))
		}
	}
	return strings.TrimSpace(strings.Join(words, " "))
}

// repeat adds words to every text of an object, or behind what is none.
func repeat(said []byte, words string) []byte {
	var object map[string]any
	if json.Unmarshal(said, &object) != nil {
		return append(said, words...)
	}
	for name, value := range object {
		if text, ok := value.(string); ok && name != "error" && name != "type" {
			object[name] = text + " You sent " + words
		}
	}
	said, err := json.Marshal(object)
	if err != nil {
		return []byte(words)
	}
	return said
}

// leakSite is a site on PostgreSQL and NATS servers of its own, whose X is a
// parrot and knows a confidential app.
type leakSite struct {
	*site
	parrot  *parrot
	search  *search
	cluster *pgtest.Cluster
	nats    *harness.Process
	natsDir string
	boat    string // the lifeboat's directory
	env     []string
	workers []*harness.Process
}

func newLeakSite(t *testing.T) *leakSite {
	t.Helper()
	s := &leakSite{search: &search{secrets: map[string]string{}}, cluster: pgtest.Start(t), natsDir: t.TempDir(), boat: t.TempDir()}
	address := testkit.ClosedAddress(t)
	s.nats = harness.StartNATS(t, s.natsDir, address)
	s.site = newSite(t, harness.SiteConfig{NATS: "nats://" + address, Database: s.cluster.URL(), Lease: longLease})
	s.parrot = &parrot{x: s.site}
	x := httptest.NewServer(s.parrot)
	t.Cleanup(x.Close)
	clientSecret := store.GenerateKey().Reveal()
	s.Cfg.X.URL, s.Sim.ClientID, s.Sim.ClientSecret = x.URL, s.Cfg.X.ClientID, clientSecret
	s.search.secrets["client secret"], s.search.secrets["encryption key"] = clientSecret, s.Cfg.Keys.Reveal()
	s.env = append(s.Settings(), "X_CLIENT_SECRET="+clientSecret, "DISPLAY=", "WAYLAND_DISPLAY=", "JETPOST_LIFEBOAT="+s.boat,
		"JETPOST_LOG_LEVEL=debug", "JETPOST_LOG_FORMAT=json")
	return s
}

// command runs a command with an input, in both forms, and keeps what it said.
func (s *leakSite) command(sees, input string, args ...string) {
	s.T.Helper()
	for _, output := range []string{"text", "json"} {
		said := s.said(s.env, input, append([]string{"-o", output}, args...)...)
		s.search.add("jetpost -o "+output+" "+strings.Join(args, " "), said, sees)
	}
}

func (s *leakSite) said(env []string, input string, args ...string) []byte {
	s.T.Helper()
	path := filepath.Join(s.T.TempDir(), "input")
	testkit.Must(s.T, os.WriteFile(path, []byte(input), 0o600))
	_, stdout, stderr := harness.RunCommand(s.T, env, "sh", append([]string{"-c", `exec jetpost "$@" <` + path, "sh"}, args...)...)
	return []byte(stdout + stderr)
}

// line is an account to import, whose token is due at once.
func line(grant xsim.Grant, name string) string {
	text, _ := json.Marshal(app.ImportLine{Name: name, AccessToken: grant.AccessToken, RefreshToken: grant.RefreshToken, ExpiresAt: time.Now().Add(time.Second)})
	return string(text) + "\n"
}

// leakUsers are imported, each for another fate of its token.
var leakUsers = []string{"amber", "basil", "coral", "daisy", "ebony", "fern"}

// connectAccounts brings accounts in by every way, and fails in every way.
func (s *leakSite) connectAccounts() {
	grants := map[string]xsim.Grant{}
	var good strings.Builder
	for _, user := range append(leakUsers, "gone") {
		grant, err := s.Sim.AddAccount(xsim.NewAccount{Handle: user})
		testkit.Must(s.T, err)
		grants[user] = grant
		if user != "gone" {
			good.WriteString(line(grant, user))
		}
	}
	s.command("amber", good.String(), "accounts", "import")
	s.Sim.RevokeConsent("gone")
	bad := []string{
		line(grants["gone"], "gone"), // X takes the token no more
		line(grants["amber"], grants["amber"].AccessToken),
		fmt.Sprintf(`{"name":"amber","acces_token":%q}`, grants["amber"].AccessToken),
		fmt.Sprintf(`{"name":"amber","access_token":[%q]}`, grants["amber"].AccessToken),
		fmt.Sprintf(`{"name":"amber","access_token":%q,"refresh_token":%q,"expires_at":%q}`, grants["amber"].AccessToken, grants["amber"].RefreshToken, grants["amber"].RefreshToken),
		fmt.Sprintf(`{"name":"amber","access_token":%q`, grants["amber"].AccessToken),
		grants["amber"].RefreshToken,
		line(grants["amber"], "basil"), // another user's
	}
	s.command("401 Unauthorized", strings.Join(bad, "\n")+"\n", "accounts", "import")
	s.consent("heath", "&user=heath", "heath")
	s.consent("amber", "&user=basil", "@basil is account basil")
	s.consent("ivory", "&user=ivory&grant=tweet.read+users.read", "lacks")
	c := s.connect(s.T, s.env, "jade", "-o", "json")
	address := c.redirect("&user=heath")
	s.spendCode(address.Query().Get("code"))
	c.paste(address.String())
	c.exit()
	s.search.add("jetpost accounts connect, of a spent code", []byte(c.stdout.String()+c.stderr.String()), "jade")
}

// consent connects an account as a person does, whose user X has or not yet.
func (s *leakSite) consent(account, answer, sees string) {
	s.T.Helper()
	for _, user := range []string{"heath", "ivory"} {
		if _, known := s.Sim.CurrentToken(user); !known {
			_, err := s.Sim.AddAccount(xsim.NewAccount{Handle: user})
			testkit.Must(s.T, err)
		}
	}
	for _, output := range []string{"text", "json"} {
		c := s.connect(s.T, s.env, account, "-o", output)
		_, page := c.follow(answer)
		s.search.add("page of jetpost accounts connect "+account, []byte(page), account)
		c.exit()
		s.search.add("jetpost -o "+output+" accounts connect "+account, []byte(c.stdout.String()+c.stderr.String()), sees)
	}
}

// spendCode presents a code in vain, which spends it.
func (s *leakSite) spendCode(code string) {
	s.T.Helper()
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}}
	req, err := http.NewRequestWithContext(s.T.Context(), http.MethodPost, s.Cfg.X.URL+"/2/oauth2/token", strings.NewReader(form.Encode()))
	testkit.Must(s.T, err)
	req.SetBasicAuth(s.Sim.ClientID, s.Sim.ClientSecret)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	testkit.Must(s.T, err)
	testkit.Must(s.T, resp.Body.Close())
}

// start starts a process that stays, and notes what it logs.
func (s *leakSite) start(name, until string, args ...string) *harness.Process {
	s.T.Helper()
	p := harness.Start(s.T, name, s.env, "jetpost", args...)
	s.workers = append(s.workers, p)
	p.Until(until)
	return p
}

// work has workers refresh and publish, while X refuses in every way.
func (s *leakSite) work() {
	t := s.T
	health, pages := testkit.ClosedAddress(t), testkit.ClosedAddress(t)
	s.env = append(s.env, "JETPOST_PUBLIC_URL=http://"+pages)
	s.start("worker-1", "worker.started", "worker", "--worker-name", "worker-1", "--lease", s.Lease.String(), "--health-listen", health)
	s.start("web", "web.started", "web", "--listen", pages)
	s.links()

	fault := func(endpoint, account string, f xsim.Fault) xsim.Fault {
		f.Endpoint, f.Account, f.Times = endpoint, account, 1
		return f
	}
	s.Sim.RevokeConsent("basil")
	testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{
		fault(xsim.EndpointToken, "coral", xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusServiceUnavailable}),
		fault(xsim.EndpointToken, "daisy", xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusTooManyRequests}),
		fault(xsim.EndpointToken, "ebony", xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusBadGateway}),
	}))
	testkit.Eventually(t, "the tokens to be due", func() bool {
		token, err := s.Ledger.Token(t.Context(), "fern")
		return err == nil && time.Now().After(token.ExpiresAt)
	})
	s.command("", "", "refresh", "--wait")
	s.parrot.halve.Store(true)
	s.command("fern", "", "refresh", "fern", "--force", "--wait", "--timeout", "2s") // its pair is cut in two
	s.command("amber", "", "refresh", "amber", "--force", "--wait")
	s.command("daisy", "", "refresh", "daisy", "--force", "--wait", "--timeout", "2s")
	testkit.Must(t, s.Sim.SetFaults(nil))

	s.posts(fault)
	for path, sees := range map[string]string{"/healthz": "ok", "/readyz": "status"} {
		_, answer := get(t, "http://"+health+path)
		s.search.add("GET "+path, []byte(answer), sees)
	}
	s.command("ready", "", "health", "--url", "http://"+health+"/readyz")

	// X does not know the app: that becomes an app pause, with X's own words.
	testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultStatus, Status: http.StatusUnauthorized, Endpoint: xsim.EndpointToken}}))
	s.said(s.env, "", "refresh", "daisy", "--force", "--wait", "--timeout", "2s")
	testkit.Eventually(t, "refreshes to be stopped", func() bool {
		_, there, err := publishers.NewAppPauses(s.Conn.JS, s.Conn.Names).Get(t.Context(), publishers.TargetRefresh)
		return err == nil && there
	})
	s.natsMessages("while the app is stopped")
	s.look()
	testkit.Must(t, s.Sim.SetFaults(nil))
	s.command("", "", "resume", "--app")
	s.command("heath", "", "accounts", "disconnect", "heath", "--yes")
}

// posts publishes what X takes, and what it refuses in every way.
func (s *leakSite) posts(fault func(endpoint, account string, f xsim.Fault) xsim.Fault) {
	t := s.T
	jobs := []*harness.Job{
		{Account: "amber", Id: "plain", Posts: 2, Picture: 1}, {Account: "amber", Id: "spell", Posts: 1},
		{Account: "fern", Id: "refused", Posts: 1}, {Account: "fern", Id: "outage", Posts: 1}, {Account: "basil", Id: "reauth", Posts: 1},
	}
	testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{
		{Kind: xsim.FaultStatus, Status: http.StatusUnauthorized, Text: jobs[1].Text(0), Endpoint: xsim.EndpointCreatePost, Times: 2},
		{Kind: xsim.FaultRefuseText, Text: jobs[2].Text(0), Detail: "Not this one."},
		{Kind: xsim.FaultStatus, Status: http.StatusServiceUnavailable, Text: jobs[3].Text(0), Endpoint: xsim.EndpointCreatePost, Times: 1},
		fault(xsim.EndpointUpload, "amber", xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusUnauthorized}),
	}))
	s.Publish(jobs)
	testkit.Eventually(t, "every job to have met X", func() bool {
		n := s.Counts()
		return n["failed"] == 1 && n["published"]+n["failed"]+n["held"]+n["unknown"] == len(jobs)
	})
	for _, j := range jobs {
		s.command(j.Id, "", "requests", "show", j.Id, "--account", j.Account)
	}
	s.command("refused", "", "replay", "refused", "--dry-run")
	s.command("never", "", "publish", "amber", "not a job", "--at", "never")
}

// look asks every command that only looks.
func (s *leakSite) look() {
	s.command("amber", "", "accounts", "list")
	for _, name := range append(leakUsers, "heath") {
		s.command(name, "", "accounts", "show", name)
	}
	s.command("amber", "", "requests", "list")
	s.command("", "", "status")
	s.command("key", "", "keys", "status", "--verify")
	s.command("", "", "keys", "generate")
	s.command("unchanged", "", "setup")
}

// links has customers connect by links, in vain and not.
func (s *leakSite) links() {
	t := s.T
	for answer, sees := range map[string]string{
		"&user=heath": "heath is now connected", "&user=ivory&grant=tweet.read+users.read": "allow all of it", "&deny=true": "kale",
	} {
		account := map[bool]string{true: "heath", false: "kale"}[answer == "&user=heath"]
		text := string(s.said(s.env, "", "accounts", "link", account))
		link := strings.Split(text, "\n")[0]
		// The link's own secret is printed here, and nowhere else.
		s.search.secrets["link of "+account+answer] = hex.EncodeToString([]byte(link[strings.LastIndexByte(link, '/')+1:]))
		c := s.visitor()
		_, before := c.ask(http.MethodGet, link)
		s.search.add("page of a link", []byte(strings.ReplaceAll(before, link[strings.LastIndexByte(link, '/')+1:], "LINK")), account)
		_, after := c.ask(http.MethodGet, c.press(link)+answer)
		s.search.add("page after a consent by a link", []byte(after), sees)
	}
	_, health := get(t, s.env[len(s.env)-1][len("JETPOST_PUBLIC_URL="):]+"/healthz")
	s.search.add("GET /healthz of the pages", []byte(health), "ok")
}

// loseTheDatabase stops PostgreSQL while X answers an exchange, so that the pair
// goes into the lifeboat; kills the worker; and has the next one bring it in.
func (s *leakSite) loseTheDatabase() {
	t := s.T
	made, stopped := make(chan struct{}), make(chan struct{})
	answered := s.AtCall("POST", "/2/oauth2/token", 1, true, func() {
		close(made)
		select {
		case <-stopped:
		case <-t.Context().Done():
		}
	})
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, _, _ = harness.RunCommand(t, s.env, "jetpost", "refresh", "amber", "--force")
	}()
	testkit.Wait(t, "an exchange", made)
	s.cluster.Stop(t)
	close(stopped)
	testkit.Wait(t, "X to answer", answered)
	w := s.workers[0]
	w.Until("token.in_lifeboat")
	s.search.files(t, "lifeboat", s.boat, "amber")
	w.Kill()
	testkit.Wait(t, "the command to end", asked)
	s.cluster.Restart(t)
	s.start("worker-2", "token.rescued", "worker", "--worker-name", "worker-2", "--lease", s.Lease.String())
	s.wantConnected("amber", "amber")
}

// changeKeys has everything sealed with a new key.
func (s *leakSite) changeKeys() {
	fresh := store.GenerateKey().Reveal()
	s.search.secrets["new encryption key"] = fresh
	s.env = append(s.env, "HUB_ENCRYPTION_KEY="+fresh+","+s.Cfg.Keys.Reveal())
	s.command("", "", "keys", "rotate")
	s.command("key", "", "keys", "status", "--verify")
	s.env = append(s.env, "HUB_ENCRYPTION_KEY="+s.Cfg.Keys.Reveal())
	s.command("key", "", "accounts", "show", "amber") // whose key is missing now
	s.env = append(s.env, "HUB_ENCRYPTION_KEY="+fresh)
}

// collect takes everything that lies about.
func (s *leakSite) collect() {
	t := s.T
	s.natsMessages("at the end")
	for _, p := range s.workers {
		select {
		case <-p.Done:
		default:
			harness.Stop(p)
		}
		s.search.add("log of "+p.Name, []byte(p.Output()), "started")
	}
	s.nats.Signal(syscall.SIGTERM)
	s.nats.Exit()
	s.search.files(t, "files of NATS", s.natsDir, "amber")
	s.search.files(t, "lifeboat at the end", s.boat, "")
	s.search.add("dump of PostgreSQL", dump(t, s.cluster.URL()), "amber")
	address, err := url.Parse(s.cluster.URL())
	testkit.Must(t, err)
	s.search.files(t, "files and log of PostgreSQL", address.Query().Get("host"), "amber")
}

// natsMessages takes every message of every stream: those of buckets and objects
// are streams, too.
func (s *leakSite) natsMessages(when string) {
	t, ctx := s.T, s.T.Context()
	for info := range s.Conn.JS.ListStreams(ctx).Info() {
		stream, err := s.Conn.JS.Stream(ctx, info.Config.Name)
		testkit.Must(t, err)
		var all bytes.Buffer
		fmt.Fprintf(&all, "%+v\n", info.Config)
		for sequence := info.State.FirstSeq; sequence > 0 && sequence <= info.State.LastSeq; sequence++ {
			msg, err := stream.GetMsg(ctx, sequence)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
			testkit.Must(t, err)
			fmt.Fprintf(&all, "%s %v\n%s\n", msg.Subject, msg.Header, msg.Data)
		}
		sees := map[string]string{
			s.Conn.Names.EventsStream(): "amber", s.Conn.Names.FailedStream(): "basil",
		}[info.Config.Name]
		if strings.HasSuffix(info.Config.Name, "LIMITS") && strings.HasPrefix(when, "while") {
			sees = "app_misconfigured"
		}
		s.search.add("messages of "+info.Config.Name+" "+when, all.Bytes(), sees)
	}
}

// dump is the whole content of a PostgreSQL database, table by table.
func dump(t testkit.T, address string) []byte {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	testkit.Must(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	rows, err := conn.Query(t.Context(), "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
	testkit.Must(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	testkit.Must(t, err)
	var all bytes.Buffer
	for _, table := range tables {
		_, err := conn.PgConn().CopyTo(t.Context(), &all, "COPY "+pgx.Identifier{table}.Sanitize()+" TO STDOUT")
		testkit.Must(t, err)
	}
	return all.Bytes()
}

// leaksOnOneMachine is 'jetpost up --sim' inside the test, so that all that its X
// gives out is known: SQLite, an embedded NATS, and X's own log.
func leaksOnOneMachine(t *testing.T) {
	t.Helper()
	s := &search{secrets: map[string]string{}}
	var log lockedBuffer
	logger := slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	sim := &xsim.Server{Logger: logger}
	data := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	instance, err := app.Up(ctx, app.InstanceConfig{
		Data: data, NATSListen: "127.0.0.1:0", Sim: sim, SimListen: "127.0.0.1:0", SimAccounts: []string{"alice", "bob"},
	}, logger)
	testkit.Must(t, err)
	var running sync.WaitGroup
	running.Go(func() { testkit.Must(t, instance.Run(ctx)) })
	s.secrets["encryption key"] = instance.Config.Keys.Reveal()
	env := harness.Environment(t, map[string]string{"JETPOST_DATA": data, "JETPOST_LOG_LEVEL": "debug"})
	command := func(sees string, args ...string) {
		for _, output := range []string{"text", "json"} {
			_, stdout, stderr := harness.RunCommand(t, env, "jetpost", append([]string{"-o", output}, args...)...)
			s.add("jetpost -o "+output+" "+strings.Join(args, " "), []byte(stdout+stderr), sees)
		}
	}
	command("published", "publish", "alice", "Hello", "--id", "hello", "--wait")
	for range 3 {
		command("alice", "refresh", "alice", "--force", "--wait")
	}
	sim.RevokeConsent("bob")
	command("bob", "refresh", "bob", "--force", "--wait")
	command("account_reauth_required", "publish", "bob", "Hello", "--id", "hello", "--wait", "--timeout", "3s")
	command("alice", "accounts", "list")
	command("bob", "accounts", "show", "bob")
	command("", "status")
	command("key", "keys", "status", "--verify")
	cancel()
	running.Wait()
	instance.Close()
	s.add("log", []byte(log.String()), "alice")
	s.add("log of X", []byte(log.String()), "xsim.call")
	s.files(t, "SQLite", data, "alice", "encryption.key", "nats", "x.jsonl") // the last one is X's own memory
	s.files(t, "files of NATS", filepath.Join(data, "nats"), "alice")
	s.judge(t, sim)
}
