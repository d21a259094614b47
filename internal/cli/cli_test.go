package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// The scripts run the commands as processes of their own, as people do.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"jetpost": func() { os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"open":    testkit.Browser, "xdg-open": testkit.Browser,
	})
}

func TestScript(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Values[instanceKey{}] = &instance{}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"doubt":    withInstance((*instance).doubt),
			"exits":    exits,
			"grant":    withInstance((*instance).grant),
			"instance": withInstance((*instance).start),
			"keys":     withInstance((*instance).keys),
			"late":     withInstance((*instance).late),
			"old":      withInstance((*instance).old),
			"media":    withInstance((*instance).media),
			"mp4":      writeMP4,
			"png":      writePNG,
			"posts":    withInstance((*instance).posts),
			"reader":   withInstance((*instance).reader),
			"refuse":   withInstance((*instance).refuse),
			"accept":   withInstance((*instance).accept),
			"alone":    withInstance((*instance).alone),
			"whole":    withInstance((*instance).whole),
			"answer":   withInstance((*instance).answer),
			"consent":  withInstance((*instance).consent),
			"lose":     withInstance((*instance).lose),
			"revoke":   withInstance((*instance).revoke),
			"told":     withInstance((*instance).told),
			"halt":     withInstance((*instance).halt),
		},
	})
}

// exits runs a command and wants that very exit code: exits CODE COMMAND...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("run %s: %v", args[1], err)
		}
		code = exit.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// writePNG writes a picture of noise, which does not compress: png FILE WIDTH
func writePNG(ts *testscript.TestScript, _ bool, args []string) {
	width, err := strconv.Atoi(args[1])
	ts.Check(err)
	random := rand.New(rand.NewPCG(1, uint64(width)))
	picture := image.NewRGBA(image.Rect(0, 0, width, width))
	for x := range width {
		for y := range width {
			v := random.Uint32()
			picture.Set(x, y, color.RGBA{R: uint8(v), G: uint8(v >> 8), B: uint8(v >> 16), A: 255})
		}
	}
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(errors.Join(png.Encode(f, picture), f.Close()))
}

// writeMP4 writes what looks like a video, for all that anybody looks at: mp4 FILE BYTES
func writeMP4(ts *testscript.TestScript, _ bool, args []string) {
	size, err := strconv.Atoi(args[1])
	ts.Check(err)
	video := make([]byte, size)
	copy(video, "\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp41")
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), video, 0o600))
}

type instanceKey struct{}

// instance is an installation with a simulated X, inside the test's process.
type instance struct {
	sim xsim.Server
	cfg app.Config
	// fresh is an encryption key beside that of the instance.
	fresh secret.String
}

// withInstance gives a script command its script's instance.
func withInstance(run func(h *instance, ts *testscript.TestScript, args []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("this command cannot be negated")
		}
		run(ts.Value(instanceKey{}).(*instance), ts, args)
	}
}

// start opens the instance, with the accounts alice and bob: instance [idle] [web]
// [enterprise] [distinct] [slow] [whole]. Commands reach it with NATS_URL alone, unless it is
// idle or whole. An idle one has no worker; with web it has pages for people; X knows an enterprise one as such; a distinct one refuses a text that
// another account has; a slow one posts a request an hour for an account. $INSTANCE_NATS,
// $INSTANCE_PORT and $INSTANCE_PASSWORD are of its NATS. At the end of the script the
// simulator's call log must show nothing that a correct client never does.
func (h *instance) start(ts *testscript.TestScript, args []string) {
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	data := ts.MkAbs("data")
	var cfg app.Config
	if slices.Contains(args, "web") {
		cfg.Web = app.WebConfig{Listen: "127.0.0.1:0", ReturnHosts: []string{"app.example"}}
	}
	if slices.Contains(args, "enterprise") {
		cfg.Rules.Enterprise, h.sim.AllowQuotes = true, true
	}
	if slices.Contains(args, "distinct") {
		cfg.Rules.SameText = consumers.SameTextRefuse
	}
	if slices.Contains(args, "slow") {
		cfg.PostingLimits.MinInterval = time.Hour
	}
	up, err := app.Up(ctx, app.InstanceConfig{
		Config: cfg,
		Data:   data, NATSListen: "127.0.0.1:0", Sim: &h.sim, SimListen: "127.0.0.1:0", SimAccounts: []string{"alice", "bob"},
		NoWorker: slices.Contains(args, "idle"),
	}, log)
	if err != nil {
		cancel()
		ts.Fatalf("open instance: %v", err)
	}
	h.cfg = up.Config
	var running sync.WaitGroup
	running.Go(func() {
		if err := up.Run(ctx); err != nil {
			ts.Logf("run instance: %v", err)
		}
	})
	ts.Defer(func() {
		cancel()
		running.Wait()
		up.Close()
		if violations := h.sim.Violations(); len(violations) > 0 {
			ts.Fatalf("violations: %v", violations)
		}
	})
	h.whole(ts, nil)
	address, err := url.Parse(up.Config.NATS.URL)
	ts.Check(err)
	ts.Setenv("INSTANCE_NATS", up.Config.NATS.URL)
	ts.Setenv("INSTANCE_PORT", address.Port())
	ts.Setenv("INSTANCE_PASSWORD", up.Config.NATS.Password.Reveal())
	if !slices.Contains(args, "idle") && !slices.Contains(args, "whole") {
		h.alone(ts, nil)
	}
}

// alone has commands reach the instance with NATS_URL alone from here on, with neither its
// database nor its keys: alone
func (h *instance) alone(ts *testscript.TestScript, _ []string) {
	for name, value := range map[string]string{
		"JETPOST_DATA": ts.MkAbs("nothing"), "NATS_URL": h.cfg.NATS.URL, "NATS_USER": "worker", "NATS_PASSWORD": h.cfg.NATS.Password.Reveal(),
	} {
		ts.Setenv(name, value)
	}
}

// whole has commands find the instance on this machine from here on, with all that it has:
// whole
func (*instance) whole(ts *testscript.TestScript, _ []string) {
	for _, name := range []string{"NATS_URL", "NATS_USER", "NATS_PASSWORD"} {
		ts.Setenv(name, "")
	}
	ts.Setenv("JETPOST_DATA", ts.MkAbs("data"))
}

// TestCommandsNeedNATSAlone: each command is in a script that runs with NATS_URL alone, but
// for those that are listed here.
func TestCommandsNeedNATSAlone(t *testing.T) {
	t.Parallel()
	listed := map[string]bool{}
	for _, command := range []string{
		"setup", "keys generate", "keys status", "keys rotate", "accounts import", "worker", "web", "up", "sim", "demo", // of the machine that has the database, or of none
		"nats config", "config show", "version", "completion", "health", // which ask no installation
	} {
		listed[command] = true
	}
	paths, err := filepath.Glob("testdata/script/*.txtar")
	testkit.Must(t, err)
	var alone strings.Builder // what scripts run so
	for _, path := range paths {
		text, err := os.ReadFile(path)
		testkit.Must(t, err)
		is := false
		for line := range strings.SplitSeq(string(text), "\n") {
			switch words := strings.Fields(line); {
			case len(words) == 0:
			case words[0] == "instance":
				is = !slices.Contains(words, "idle") && !slices.Contains(words, "whole")
			case words[0] == "alone":
				is = true
			case words[0] == "whole":
				is = false
			case is:
				alone.WriteString(line + "\n")
			}
		}
	}
	parser, err := kong.New(&cli{}, kong.Vars{"data": "", "simdata": "", "states": "", "codes": "", "version": ""})
	testkit.Must(t, err)
	for _, leaf := range parser.Model.Leaves(false) {
		command := strings.Join(commandWords(leaf), " ")
		runs := regexp.MustCompile(`(?m)^(exits \d )?jetpost ` + command + `( |$)`).MatchString(alone.String())
		if !runs && !listed[command] {
			t.Errorf("no script runs jetpost %s with NATS_URL alone", command)
		}
	}
}

// commandWords are those that name a command.
func commandWords(node *kong.Node) (words []string) {
	for ; node != nil && node.Type == kong.CommandNode; node = node.Parent {
		words = append([]string{node.Name}, words...)
	}
	return words
}

// accept waits until a worker has accepted a request: accept ACCOUNT ID
func (h *instance) accept(ts *testscript.TestScript, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ledger, err := h.cfg.OpenStore(ctx)
	ts.Check(err)
	defer func() { ts.Check(ledger.Close()) }()
	for err = store.ErrNotFound; errors.Is(err, store.ErrNotFound); {
		_, err = ledger.Request(ctx, store.Key{Account: args[0], ID: args[1]})
	}
	ts.Check(err)
}

// answer has X answer every post, or every call to another endpoint, with that
// status: answer [STATUS [ENDPOINT]]. Without one X is itself again.
func (h *instance) answer(ts *testscript.TestScript, args []string) {
	var faults []xsim.Fault
	if len(args) > 0 {
		status, err := strconv.Atoi(args[0])
		ts.Check(err)
		fault := xsim.Fault{Kind: xsim.FaultStatus, Status: status, Endpoint: xsim.EndpointCreatePost}
		if len(args) > 1 {
			fault.Endpoint = args[1]
		}
		faults = append(faults, fault)
	}
	ts.Check(h.sim.SetFaults(faults))
}

// consent has a user sit before the browser who lets the app in; a new one is
// made: consent USER
func (h *instance) consent(ts *testscript.TestScript, args []string) {
	known := slices.ContainsFunc(h.sim.Accounts(), func(a xsim.Account) bool { return a.Handle == args[0] })
	if !known {
		_, err := h.sim.AddAccount(xsim.NewAccount{Handle: args[0]})
		ts.Check(err)
	}
	ts.Check(h.sim.SetConsent(xsim.Consent{User: args[0]}))
}

// reader waits until somebody reads events of a subject that ends so: reader END
func (h *instance) reader(ts *testscript.TestScript, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := h.cfg.Connect(ctx, slog.New(slog.DiscardHandler), "test")
	ts.Check(err)
	defer conn.Close()
	stream, err := conn.JS.Stream(ctx, conn.Names.EventsStream())
	ts.Check(err)
	for {
		consumers := stream.ListConsumers(ctx)
		for info := range consumers.Info() {
			for _, subject := range append(info.Config.FilterSubjects, info.Config.FilterSubject) {
				if strings.HasSuffix(subject, args[0]) {
					return
				}
			}
		}
		ts.Check(consumers.Err())
	}
}

// refuse has X refuse every post that contains a text, until it is called
// without: refuse [TEXT WORDS]
func (h *instance) refuse(ts *testscript.TestScript, args []string) {
	var faults []xsim.Fault
	if len(args) > 0 {
		faults = []xsim.Fault{{Kind: xsim.FaultRefuseText, Text: args[0], Detail: args[1]}}
	}
	ts.Check(h.sim.SetFaults(faults))
}

// keys configures keys from here on, the one that seals first: keys NAME...,
// where instance is its own one and fresh another one.
func (h *instance) keys(ts *testscript.TestScript, args []string) {
	if h.fresh.Empty() {
		h.fresh = store.GenerateKey()
	}
	keys := make([]string, len(args))
	for i, name := range args {
		keys[i] = map[string]secret.String{"instance": h.cfg.Keys, "fresh": h.fresh}[name].Reveal()
	}
	ts.Setenv("HUB_ENCRYPTION_KEY", strings.Join(keys, ","))
}

// lose has the answer to the user's next exchange of a token be lost: lose USER
func (h *instance) lose(ts *testscript.TestScript, args []string) {
	ts.Check(h.sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultCut, After: true, Endpoint: xsim.EndpointToken, Account: args[0], Times: 1}}))
}

// revoke has the user withdraw consent: revoke USER
func (h *instance) revoke(ts *testscript.TestScript, args []string) {
	if !h.sim.RevokeConsent(args[0]) {
		ts.Fatalf("no user %s", args[0])
	}
}

// grant has a user consent and writes a line to import: grant USER FILE
func (h *instance) grant(ts *testscript.TestScript, args []string) {
	grant, err := h.sim.AddAccount(xsim.NewAccount{Handle: args[0]})
	ts.Check(err)
	line, err := json.Marshal(app.ImportLine{
		Name: args[0], AccessToken: grant.AccessToken, RefreshToken: grant.RefreshToken,
		ExpiresAt: time.Now().Add(time.Duration(grant.ExpiresIn) * time.Second),
	})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), append(line, '\n'), 0o600))
	ts.Setenv("SECRET", grant.AccessToken)
}

// posts wants that very list of posts on X: posts USER [TEXT...]
func (h *instance) posts(ts *testscript.TestScript, args []string) {
	var texts []string
	for _, p := range h.sim.Posts(args[0]) {
		texts = append(texts, p.Text)
	}
	if !slices.Equal(texts, args[1:]) {
		ts.Fatalf("posts of %s: %q, want %q", args[0], texts, args[1:])
	}
}

// media wants a user's posts to have media with these descriptions, in this order:
// media USER ALT...
func (h *instance) media(ts *testscript.TestScript, args []string) {
	described := map[string]string{}
	for _, m := range h.sim.Media(args[0]) {
		described[m.ID] = m.AltText
	}
	var alts []string
	for _, post := range h.sim.Posts(args[0]) {
		for _, id := range post.MediaIDs {
			alts = append(alts, described[id])
		}
	}
	if !slices.Equal(alts, args[1:]) {
		ts.Fatalf("media of %s: %q, want %q", args[0], alts, args[1:])
	}
}

// halt stops publishing for all accounts: halt CODE DURATION WORDS
func (h *instance) halt(ts *testscript.TestScript, args []string) {
	d, err := time.ParseDuration(args[1])
	ts.Check(err)
	ctx := context.Background()
	conn, err := h.cfg.Connect(ctx, slog.New(slog.DiscardHandler), "test")
	ts.Check(err)
	defer conn.Close()
	ledger, err := h.cfg.OpenStore(ctx)
	ts.Check(err)
	defer func() { ts.Check(ledger.Close()) }()
	signer, err := consumers.LedgerSigner(ctx, ledger)
	ts.Check(err)
	_, _, err = publishers.NewAppPauses(conn.JS, conn.Names).Signed(signer).Set(ctx, publishers.Pause{
		Target: publishers.TargetPublish, Since: time.Now(),
		Reason: jetpost.Reason{Code: jetpost.Code(args[0]), Detail: args[2], Until: time.Now().Add(d)},
	})
	ts.Check(err)
}

// oneAgo is a request of one post, its id, and the moment that lies the time back which
// the arguments ACCOUNT ID AGO name, with the ledger to accept it.
func (h *instance) oneAgo(ts *testscript.TestScript, args []string) (store.Store, store.Acceptance, time.Time) {
	ago, err := time.ParseDuration(args[2])
	ts.Check(err)
	ledger, err := h.cfg.OpenStore(context.Background())
	ts.Check(err)
	body := fmt.Appendf(nil, `{"id":%q,"posts":[{"text":%q}]}`, args[1], args[1])
	request, err := jetpost.Decode(args[0], body)
	ts.Check(err)
	then := time.Now().Add(-ago)
	return ledger, store.Acceptance{Request: request, Body: body, Digest: request.Digest(), Now: then}, then
}

// late has a request of one post, its id, wait since some time ago: late ACCOUNT ID AGO
func (h *instance) late(ts *testscript.TestScript, args []string) {
	ledger, in, then := h.oneAgo(ts, args)
	defer func() { ts.Check(ledger.Close()) }()
	in.Request.PublishAt = then // so that later requests of the queue are not due before it
	in.Now = then.Add(-time.Minute)
	_, err := ledger.Accept(context.Background(), in)
	ts.Check(err)
}

// old has a request of one post, its id, that failed some time ago: old ACCOUNT ID AGO
func (h *instance) old(ts *testscript.TestScript, args []string) {
	ledger, in, then := h.oneAgo(ts, args)
	defer func() { ts.Check(ledger.Close()) }()
	ctx, key := context.Background(), in.Key()
	// Its account is paused until the request has failed, so that no worker posts it.
	ts.Check(ledger.PauseAccount(ctx, key.Account, jetpost.AccountPause(time.Now(), time.Time{}, "")))
	_, err := ledger.Accept(ctx, in)
	ts.Check(err)
	_, err = ledger.ExpireLate(ctx, key.Account, then.Add(time.Minute), 1, then)
	ts.Check(err)
	record, err := ledger.Request(ctx, key)
	ts.Check(err)
	_, err = ledger.MarkDelivered(ctx, key, record.Status.Revision)
	ts.Check(err)
	_, err = ledger.ResumeAccount(ctx, key.Account, time.Now())
	ts.Check(err)
}

// told wants the last event of a type and an account to say so: told TYPE ACCOUNT PATTERN
func (h *instance) told(ts *testscript.TestScript, args []string) {
	ctx := context.Background()
	conn, err := h.cfg.Connect(ctx, slog.New(slog.DiscardHandler), "test")
	ts.Check(err)
	defer conn.Close()
	stream, err := conn.JS.Stream(ctx, conn.Names.EventsStream())
	ts.Check(err)
	msg, err := stream.GetLastMsgForSubject(ctx, conn.Names.EventSubject(jetpost.EventType(args[0]), args[1], ""))
	ts.Check(err)
	if !regexp.MustCompile(args[2]).Match(msg.Data) {
		ts.Fatalf("the event is %s", msg.Data)
	}
}

// doubt puts a thread of two into the ledger whose first post may be live:
// doubt ACCOUNT ID
func (h *instance) doubt(ts *testscript.TestScript, args []string) {
	ctx, now := context.Background(), time.Now()
	ledger, err := h.cfg.OpenStore(ctx)
	ts.Check(err)
	defer func() { ts.Check(ledger.Close()) }()
	body := fmt.Appendf(nil, `{"id":%q,"posts":[{"text":"one"},{"text":"two"}]}`, args[1])
	request, err := jetpost.Decode(args[0], body)
	ts.Check(err)
	_, err = ledger.Accept(ctx, store.Acceptance{Request: request, Body: body, Digest: request.Digest(), Now: now})
	ts.Check(err)
	lane, claimed, err := ledger.ClaimLane(ctx, args[0], "test", time.Minute, now)
	ts.Check(err)
	if !claimed {
		ts.Fatalf("lane of %s is busy", args[0])
	}
	ts.Check(ledger.Begin(ctx, lane, args[1], store.Intent{Post: 0, TextHash: []byte("hash"), NotAfter: now, Now: now, Lease: time.Minute}))
	ts.Check(ledger.Conclude(ctx, lane, args[1], store.Outcome{
		State: jetpost.StateUnknown, Reason: jetpost.Reason{Code: jetpost.CodeOutcomeUnknown, Detail: "the answer was lost"},
		Post: 0, PostState: jetpost.PostSending, Now: now,
	}))
	look, err := ledger.Snapshot(ctx, lane, now)
	ts.Check(err)
	_, err = ledger.ReleaseLane(ctx, lane, look.Generation, time.Time{}, now)
	ts.Check(err)
}

// Nobody notices a token in an error until it is in a log.
func TestDecodeImportRepeatsNoValue(t *testing.T) {
	t.Parallel()
	const token = "t0ken-that-must-stay-secret"
	for name, line := range map[string]string{
		"array":           `["` + token + `"]`,
		"no JSON":         token,
		"second value":    `{"name":"acme"} "` + token + `"`,
		"token as field":  `{"` + token + `":1}`,
		"token as time":   `{"name":"acme","expires_at":"` + token + `"}`,
		"truncated":       `{"name":"acme","access_token":"` + token,
		"wrong kind":      `{"name":{"` + token + `":1}}`,
		"number for time": `{"expires_at":1764579600,"access_token":"` + token + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := decodeImport([]byte(line))
			if err == nil {
				t.Fatal("was taken")
			}
			if strings.Contains(err.Error(), token) {
				t.Errorf("error repeats the token: %v", err)
			}
		})
	}
}

// What runs without a terminal mostly reads from the null device, which looks
// like one.
func TestNobodyIsNoTerminal(t *testing.T) {
	t.Parallel()
	nobody, err := os.Open(os.DevNull)
	testkit.Must(t, err)
	defer nobody.Close()
	if isTerminal(nobody) || isTerminal(strings.NewReader("y\n")) {
		t.Error("it is taken for a person")
	}
}

func TestExcerptIsOneHarmlessLine(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"two\nlines\tand a tab":    "two lines and a tab",
		"\x1b[2Jgone":              "[2Jgone",
		strings.Repeat("é", 101):   strings.Repeat("é", 100) + "…",
		strings.Repeat("long", 25): strings.Repeat("long", 25),
	} {
		if got := excerpt(text); got != want {
			t.Errorf("excerpt(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestStatusTextCountsWhatItDoesNotName(t *testing.T) {
	t.Parallel()
	blocked := app.Blocked{Account: "alice", ID: "a1", State: jetpost.StateUnknown, Waiting: 3, Do: "look"}
	text := statusText(app.Status{Summary: "PUBLISHING", Blocked: []app.Blocked{blocked}, BlockedTotal: 3})
	if want := "PUBLISHING\nblocked: alice by unknown request a1, and 2 more behind it: look\nblocked: and 2 more accounts\n"; text != want {
		t.Errorf("text = %q, want %q", text, want)
	}
}

func TestResumeTextSaysWhatGoesOut(t *testing.T) {
	t.Parallel()
	c := resumeCmd{whomFlags: whomFlags{App: true}, ExpireOlderThan: 6 * time.Hour}
	want := "0 requests, due more than 6h0m0s ago, failed as expired\n2 requests, as late, had begun: left alone\nnothing was paused\n"
	if text := c.text(app.Resumed{Begun: 2}); text != want {
		t.Errorf("text = %q, want %q", text, want)
	}
}

func TestMoment(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		text string
		past bool
		want time.Time
	}{
		{"", false, time.Time{}},
		{"+10m", false, now.Add(10 * time.Minute)},
		{"10m", false, now.Add(10 * time.Minute)},
		{"24h", true, now.Add(-24 * time.Hour)},
		{"-24h", true, now.Add(-24 * time.Hour)},
		{"2026-12-01T12:00:00+01:00", true, now.Add(2 * time.Hour)},
		{"+1d2h", false, now.Add(26 * time.Hour)},
		{"1d", true, now.Add(-24 * time.Hour)},
		{"-2d30m", false, now.Add(-48*time.Hour - 30*time.Minute)},
		{"2026-12-01 09:00", false, now},
		{"2026-12-01 9:00", false, now},
		{"tomorrow 9:00 Asia/Tokyo", false, now.Add(15 * time.Hour)},
		{"2026-12-01T09:00:30", false, now.Add(30 * time.Second)},
		{"2026-12-01 11:00 Europe/Berlin", false, now.Add(time.Hour)},
		{"2026-12-01T11:00 Europe/Berlin", false, now.Add(time.Hour)},
		{"today 10:00", false, now.Add(time.Hour)},
		{"tomorrow 09:00", false, now.Add(24 * time.Hour)},
		{"tomorrow 09:00 Asia/Tokyo", false, now.Add(15 * time.Hour)},
	} {
		got, err := moment(test.text, test.past, now)
		if err != nil || !got.Equal(test.want) {
			t.Errorf("moment(%q, %t) = %v, %v, want %v", test.text, test.past, got, err, test.want)
		}
	}
	for _, wrong := range []string{
		"tomorrow", "2026-12-01 25:00", "2026-12-01 09:00 Europe/Nowhere", "1d-2h", "2026-03-29 02:30 Europe/Berlin", "09:00",
	} {
		if got, err := moment(wrong, false, now); err == nil {
			t.Errorf("moment(%s) = %v, want an error", wrong, got)
		}
	}
}

func TestLimitsTextTellsOfAnOutage(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	text := limitsText(app.Limits{
		Now: at, X: app.Breaker{State: "unreachable", Since: at, AskedAgain: at.Add(time.Minute)},
		Pauses: []app.LimitPause{{Target: "publish", Code: jetpost.CodeXOutage, Since: at, AskedAgain: at.Add(time.Minute), WaitSeconds: 60}},
	}, "")
	since, again := localTime(at), localTime(at.Add(time.Minute))
	want := "X: unreachable since " + since + ", asked again at " + again + "\n" +
		"publish paused since " + since + ", asked again at " + again + ", after a wait of 1m0s: x_outage\n" +
		"no rate window is known: X reported none in the last hour\n"
	if text != want {
		t.Errorf("text = %q, want %q", text, want)
	}
}

func TestForecastTextListsTheLast(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	f := app.Forecast{Now: at, Posts: 2000, Windows: 12, DoneAt: at, AtEarliest: true, Accounts: make([]app.AccountForecast, 30)}
	text := forecastText(f, 20)
	if want := "2,000 posts of 30 accounts are out by " + localTime(at) + " at the earliest, after 12 windows\n"; !strings.HasPrefix(text, want) {
		t.Errorf("text = %q, want %q first", text, want)
	}
	if lines := strings.Count(text, "\n"); lines != 23 || !strings.HasSuffix(text, "and 10 accounts that finish earlier; list them with --all\n") {
		t.Errorf("%d lines, want the sentence, a header, 20 accounts and how to see the rest:\n%s", lines, text)
	}
}

// What env files and shells leave around a value does no harm, and what nobody can
// know is asked back.
func TestTidyEnvironment(t *testing.T) {
	t.Parallel()
	got := map[string]string{}
	set := func(name, value string) error { got[name] = value; return nil }
	err := tidyEnvironment([]string{
		`X_CLIENT_ID="abc"`, "X_CLIENT_SECRET= 'se\"cret' \r\n", "DATABASE_URL=\"postgres://x\"\r", "NATS_URL=nats://host:4222", `JETPOST_PREFIX='one'`,
		`HUB_ENCRYPTION_KEY_FILE="/run/key"`, `HOME="mine"`, `NATS_CA="/run/ca.pem"`, `X_API_URL="`, "NATS_PASSWORD=pass'\n",
	}, set)
	if err != nil {
		t.Error(err)
	}
	want := map[string]string{
		"X_CLIENT_ID": "abc", "X_CLIENT_SECRET": `se"cret`, "DATABASE_URL": "postgres://x", "JETPOST_PREFIX": "one",
		"HUB_ENCRYPTION_KEY_FILE": "/run/key", "NATS_CA": "/run/ca.pem", "NATS_PASSWORD": "pass'",
	}
	if !maps.Equal(got, want) {
		t.Errorf("set %q, want %q", got, want)
	}
	if err := tidyEnvironment([]string{`NATS_PASSWORD="pass"`}, set); err == nil || !strings.Contains(err.Error(), "NATS_PASSWORD_FILE") || strings.Contains(err.Error(), "pass\"") {
		t.Errorf("a password in quotes: %v", err)
	}
}

// A text may come from standard input, and from any system.
func TestPublishTextFromInput(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"one\n": "one", "\uFEFFone\r\ntwo\r\n": "one\ntwo", "one\rtwo": "one\ntwo", "one\n\n": "one\n", "\n": "",
	} {
		c := publishCmd{Account: "acme", Text: "-"}
		r, err := c.request(strings.NewReader(text), time.Now(), consumers.Rules{})
		if len(r.Posts) != 1 || r.Posts[0].Text != want || (err == nil) != (want != "") {
			t.Errorf("of %q came %+v, %v, want %q", text, r.Posts, err, want)
		}
	}
	c := publishCmd{Account: "acme", Text: "one\r\ntwo"}
	if r, err := c.request(nil, time.Now(), consumers.Rules{}); err != nil || r.Posts[0].Text != "one\ntwo" {
		t.Errorf("of an argument came %+v, %v", r.Posts, err)
	}
	c = publishCmd{Account: "acme", File: "-"}
	if r, err := c.request(strings.NewReader("\uFEFF{\"posts\": [{\"text\": \"a\\r\\nb\"}]}\r\n"), time.Now(), consumers.Rules{}); err != nil || r.Posts[0].Text != "a\nb" {
		t.Errorf("of a file came %+v, %v", r.Posts, err)
	}
}

// A time that has passed is a slip until somebody says otherwise.
func TestPublishTimePassed(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		at  time.Time
		opt string
		ok  bool
	}{
		{time.Time{}, "", true},
		{now.Add(time.Hour), "+1h", true},
		{now.Add(-late), "", true},
		{now.Add(-late - time.Second), "", false},
		{now.Add(-time.Hour), "now", true},
	} {
		var stderr strings.Builder
		c := publishCmd{At: test.opt}
		err := c.confirm(&env{stdin: strings.NewReader("yes\n"), stderr: &stderr}, test.at, now)
		if (err == nil) != test.ok {
			t.Errorf("at %s: %v", test.at, err)
		}
		if said := strings.Contains(stderr.String(), test.at.UTC().Format(time.RFC3339)+", here "); said != (!test.at.IsZero() && test.opt != "now") {
			t.Errorf("at %s it said %q", test.at, stderr.String())
		}
	}
	c := publishCmd{Account: "acme", Text: "hello", At: "now"}
	if r, err := c.request(nil, now, consumers.Rules{}); err != nil || !r.PublishAt.Equal(now) {
		t.Errorf("--at now: %v, %v", r.PublishAt, err)
	}
}

func TestImportSkipsByteOrderMark(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	e := &env{ctx: t.Context(), cli: &cli{}, stdout: &out}
	done, failed, err := importLines(e, &app.Importer{}, strings.NewReader("\uFEFF{\"name\": \"No Name\"}\r\n"))
	if done != 1 || failed != 1 || err != nil || !strings.Contains(out.String(), "name: use 1 to 63") {
		t.Errorf("%d done, %d failed, %v: %s", done, failed, err, out.String())
	}
}

// TestDatabasePassword: it is put into a URL that names none, whatever is in it.
func TestDatabasePassword(t *testing.T) {
	t.Parallel()
	const password = "p@ss:/?#%"
	for address, want := range map[string]string{
		"postgres://jetpost@host/db":     password,
		"postgres://jetpost:own@host/db": "own",
		"sqlite:/data/jetpost.db":        "",
		"":                               "",
	} {
		got := withPassword(secret.New(address), secret.New(password)).Reveal()
		u, err := url.Parse(got)
		testkit.Must(t, err)
		found, _ := u.User.Password()
		testkit.Equal(t, address, found, want)
		if want != password {
			testkit.Equal(t, "address", got, address)
		}
	}
}
