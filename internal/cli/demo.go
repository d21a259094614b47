package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// The demo shortens X's times: a window of fifteen minutes takes seconds. Nothing else
// differs from an installation.
const (
	demoLimit   = 10 * time.Minute // of the whole demo; far more than it needs
	demoActTime = 90 * time.Second // of one act, also on a busy machine
	demoLease   = 4 * time.Second
	demoMinute  = time.Second     // of the simulated X
	demoWindow  = 5 * time.Second // of X's rate limit
	demoPosts   = 5               // posts that an account may send in a window
	demoAhead   = 3 * time.Second // of the scheduled post
	demoToken   = 6 * time.Second // life of the access token that a tick renews
	demoCron    = "*/2 * * * * *" // every two seconds
	demoUpload  = 2 * time.Second // of the upload during which the worker is killed
)

// demoCmd is 'jetpost demo'.
type demoCmd struct {
	All  bool `help:"Also show a suspended account, lagging replicas, a missing permission and a post that vanishes. It takes a quarter of a minute more."`
	Keep bool `help:"Keep running afterwards, until interrupted."`
}

// Run plays the acts on a simulated X. It fails unless the simulator's call log has the
// expected posts and no violation.
func (c *demoCmd) Run(e *env) (err error) {
	ctx, cancel := context.WithTimeout(e.ctx, demoLimit)
	defer cancel()
	dir, err := os.MkdirTemp("", "jetpost-demo-")
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	d := &demo{env: e, out: e.stdout, dir: dir, keep: c.Keep, sim: &xsim.Server{}, began: time.Now()}
	defer func() {
		d.close()
		switch {
		case e.ctx.Err() != nil && err != nil: // the interrupt is the cause of any error
			err = &exitError{code: exitInterrupted, err: errors.Join(errors.New("interrupted"), os.RemoveAll(dir))}
		case err != nil:
			fmt.Fprintf(e.stderr, "the workers' logs are in %s\n", dir)
		default:
			err = os.RemoveAll(dir)
		}
	}()
	if err := d.open(ctx); err != nil {
		return err
	}
	acts := []act{
		{"a thread of five posts, with an image", d.thread},
		{"a scheduled post", d.scheduled},
		{"a rate limit, reached and waited out", d.limited},
		{"a worker killed in the middle of a thread", d.crash},
		{"a token, refreshed by the schedule", d.refreshed},
	}
	if c.All {
		acts = append(acts, d.bad()...)
	}
	for i, act := range append(acts, act{"the call log of the simulated X", d.callLog}) {
		d.say("")
		d.say("%d. %s", i+1, act.title)
		if err := d.play(ctx, act); err != nil {
			return fmt.Errorf("act %d, %s: %w", i+1, act.title, err)
		}
	}
	if c.Keep {
		d.say("\nstaying up: dashboard on %s, simulated X on %s, NATS on %s; end with Ctrl-C", d.instance.DashboardURL(), d.instance.SimURL, d.instance.Config.NATS.URL)
		<-e.ctx.Done()
	}
	return nil
}

// act is one part of the demo.
type act struct {
	title string
	play  func(context.Context) error
}

// demo is an installation whose workers are processes of their own, because one of them
// is killed.
type demo struct {
	env  *env
	out  io.Writer
	dir  string
	keep bool
	// pages serves the dashboard, where it is kept, until stopPages is called.
	pages     sync.WaitGroup
	stopPages context.CancelFunc
	sim       *xsim.Server
	instance  *app.Instance
	conn      *app.Connection
	began     time.Time

	publisher *publishers.Publisher
	worker    *exec.Cmd
	workers   int
	expected  int                // posts that X must have in the end
	events    chan jetpost.Event // all events, in order
	failure   error              // why events ended
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// play runs one act, with a timeout.
func (d *demo) play(ctx context.Context, a act) error {
	ctx, cancel := context.WithTimeout(ctx, demoActTime)
	defer cancel()
	return a.play(ctx)
}

// open starts the installation and its first worker.
func (d *demo) open(ctx context.Context) error {
	d.sim.Limits = []xsim.Limit{{
		Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: demoPosts, WindowMS: demoWindow.Milliseconds(),
	}}
	cfg := app.InstanceConfig{
		Config: app.Config{Refresh: app.RefreshConfig{Cron: demoCron}, Lease: demoLease},
		Data:   d.dir, NATSListen: "127.0.0.1:0", Sim: d.sim, SimListen: "127.0.0.1:0",
		SimAccounts: []string{"ada", "bob", "cyd"}, NoWorker: true,
	}
	if d.keep {
		cfg.Web = app.WebConfig{Listen: usualPages, AnyPort: true, Dashboard: true}
	}
	var err error
	if d.instance, err = app.Up(ctx, cfg, d.env.log); err != nil {
		return err
	}
	if d.conn, err = d.instance.Config.Connect(ctx, d.env.log, "jetpost demo"); err != nil {
		return err
	}
	d.publisher = publishers.New(d.conn.JS, d.conn.Names)
	if err := d.listen(ctx); err != nil {
		return err
	}
	if d.keep {
		tellDashboard(d.env, d.instance.DashboardURL(), false)
		pages, stop := context.WithCancel(d.env.ctx)
		d.stopPages = stop
		d.pages.Go(func() { _ = d.instance.Run(pages) }) // it ends with the demo
	}
	d.say("NATS, a database and a simulated X run in this process; accounts ada, bob and cyd are imported.")
	return d.startWorker()
}

// listen collects events, so that each act can wait for its own.
func (d *demo) listen(ctx context.Context) error {
	events, err := d.publisher.Events(ctx)
	if err != nil {
		return err
	}
	d.events = make(chan jetpost.Event)
	go func() {
		defer close(d.events)
		for event, err := range events {
			if err != nil {
				d.failure = err
				return
			}
			select {
			case d.events <- event:
			case <-ctx.Done():
				return
			}
		}
	}()
	return nil
}

// until reads events until is returns true or an error.
func (d *demo) until(ctx context.Context, what string, is func(jetpost.Event) (bool, error)) error {
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case event, ok := <-d.events:
			if !ok {
				return fmt.Errorf("wait for %s: events ended: %w", what, d.failure)
			}
			if done, err := is(event); done || err != nil {
				return err
			}
		}
	}
}

// publish sends a request and counts its posts among those that X must have.
func (d *demo) publish(ctx context.Context, r jetpost.Request) error {
	d.expected += len(r.Posts)
	_, err := d.publisher.Publish(ctx, r)
	return err
}

// published waits until all those requests of an account are published, and prints their
// progress.
func (d *demo) published(ctx context.Context, account string, ids ...string) error {
	open := slices.Clone(ids)
	return d.until(ctx, "the posts of "+account, func(e jetpost.Event) (bool, error) {
		if e.Request == nil || e.Request.Account != account || !slices.Contains(ids, e.Request.ID) {
			return false, nil
		}
		d.tell(*e.Request)
		switch e.Request.State {
		case jetpost.StatePublished:
			open = slices.DeleteFunc(open, func(id string) bool { return id == e.Request.ID })
		case jetpost.StateFailed, jetpost.StateUnknown, jetpost.StateCancelled:
			return true, fmt.Errorf("request %s is %s: %s", e.Request.ID, e.Request.State, e.Request.Reason.Detail)
		}
		return len(open) == 0, nil
	})
}

// tell prints one line about a request.
func (d *demo) tell(r jetpost.RequestStatus) {
	line := fmt.Sprintf("   %6.2fs  %s/%s  %s", time.Since(d.began).Seconds(), r.Account, r.ID, r.State)
	if r.Total > 1 && r.Posted > 0 {
		line += fmt.Sprintf(", %d of %d posted", r.Posted, r.Total)
	}
	if r.State == jetpost.StateScheduled {
		line += " for " + r.PublishAt.Local().Format("15:04:05")
	}
	if r.Reason != nil {
		line += ": " + r.Reason.Detail
		if !r.Reason.Until.IsZero() {
			line += ", until " + r.Reason.Until.Local().Format("15:04:05")
		} else if !r.NextTryAt.IsZero() {
			line += ", tried again at " + r.NextTryAt.Local().Format("15:04:05")
		}
	}
	d.say("%s", line)
}

func (d *demo) thread(ctx context.Context) error {
	img, err := demoImage()
	if err != nil {
		return err
	}
	posts := []jetpost.Post{
		{Text: "Five posts, each a reply to the one before. 1/5", Media: []jetpost.Media{{Data: img, Alt: "A gradient from blue to orange"}}},
		{Text: "The ledger is the queue; a message is a wake-up. 2/5"},
		{Text: "One lane per account: strictly in order. 3/5"},
		{Text: "Intent before effect: never a post twice. 4/5"},
		{Text: "And the end of the thread. 5/5"},
	}
	if err := d.publish(ctx, jetpost.Request{Account: "ada", ID: "thread", Posts: posts}); err != nil {
		return err
	}
	if err := d.published(ctx, "ada", "thread"); err != nil {
		return err
	}
	if err := d.chain("ada", 0, posts); err != nil {
		return err
	}
	d.say("   X has all five, in order, as a reply chain, the image on the first.")
	return nil
}

// chain checks that X has those posts of an account, from an index on, each a reply to
// the one before.
func (d *demo) chain(account string, from int, want []jetpost.Post) error {
	have := d.sim.Posts(account)
	if len(have) != from+len(want) {
		return fmt.Errorf("X has %d posts of %s, want %d", len(have), account, from+len(want))
	}
	parent := ""
	for i, post := range have[from:] {
		if post.Text != want[i].Text || post.InReplyTo != parent || len(post.MediaIDs) != len(want[i].Media) {
			return fmt.Errorf("post %d of %s at X is %+v, want %q below %q with %d media", i, account, post, want[i].Text, parent, len(want[i].Media))
		}
		parent = post.ID
	}
	return nil
}

func (d *demo) scheduled(ctx context.Context) error {
	at := time.Now().Add(demoAhead)
	err := d.publish(ctx, jetpost.Request{
		Account: "cyd", ID: "later", PublishAt: at, Posts: []jetpost.Post{{Text: "Written earlier, posted at its time."}},
	})
	if err != nil {
		return err
	}
	if err := d.published(ctx, "cyd", "later"); err != nil {
		return err
	}
	posts := d.sim.Posts("cyd")
	if len(posts) != 1 {
		return fmt.Errorf("X has %d posts of cyd, want 1", len(posts))
	}
	if early := at.Sub(posts[0].CreatedAt); early > 0 {
		return fmt.Errorf("the post came %s before its time", early)
	}
	d.say("   posted %s after its publish_at, not earlier.", posts[0].CreatedAt.Sub(at).Round(time.Millisecond))
	return nil
}

func (d *demo) limited(ctx context.Context) error {
	d.say("   a rate window of X lasts %s here, with %d posts per account. Seven are queued.", demoWindow, demoPosts)
	var ids []string
	var want []string
	for i := range 7 {
		id, text := fmt.Sprintf("single-%d", i+1), fmt.Sprintf("Single post %d of 7", i+1)
		ids, want = append(ids, id), append(want, text)
		if err := d.publish(ctx, jetpost.Request{Account: "bob", ID: id, Posts: []jetpost.Post{{Text: text}}}); err != nil {
			return err
		}
	}
	if err := d.published(ctx, "bob", ids...); err != nil {
		return err
	}
	var have []string
	posts := d.sim.Posts("bob")
	for _, post := range posts {
		have = append(have, post.Text)
	}
	if !slices.Equal(have, want) {
		return fmt.Errorf("X has %q of bob, want %q", have, want)
	}
	refused := 0
	for _, call := range d.sim.Calls() {
		if call.Status == 429 {
			refused++
		}
	}
	if wait := posts[demoPosts].CreatedAt.Sub(posts[0].CreatedAt); wait < demoWindow {
		return fmt.Errorf("post %d came %s after the first, within one window", demoPosts+1, wait)
	}
	d.say("   all seven are posted, in order. The limit was read from X's answers: %d calls met a 429.", refused)
	if refused > 0 {
		return fmt.Errorf("%d calls were sent while the window was exhausted", refused)
	}
	return nil
}

func (d *demo) crash(ctx context.Context) error {
	moving, err := demoGIF()
	if err != nil {
		return err
	}
	posts := []jetpost.Post{
		{Text: "A thread whose worker is killed before its end. 1/4"},
		{Text: "After this post it is killed with SIGKILL. 2/4"},
		{Text: "Another worker continues here. 3/4", Media: []jetpost.Media{{Data: moving}}},
		{Text: "Nothing twice, nothing missing. 4/4"},
	}
	// A GIF is uploaded while the posts before its own are sent. This upload lasts long enough
	// to kill the worker during it.
	slow := xsim.Fault{Kind: xsim.FaultLatency, Endpoint: xsim.EndpointInitialize, Account: "cyd", Times: 1, DelayMS: demoUpload.Milliseconds()}
	if err := d.sim.SetFaults([]xsim.Fault{slow}); err != nil {
		return fmt.Errorf("slow the simulator down: %w", err)
	}
	if err := d.publish(ctx, jetpost.Request{Account: "cyd", ID: "crash", Posts: posts}); err != nil {
		return err
	}
	err = d.until(ctx, "two posts of cyd", func(e jetpost.Event) (bool, error) {
		if e.Request == nil || e.Request.ID != "crash" {
			return false, nil
		}
		d.tell(*e.Request)
		return e.Request.Posted >= 2, nil
	})
	if err != nil {
		return err
	}
	if err := d.killWorker(); err != nil {
		return err
	}
	if have := len(d.sim.Posts("cyd")); have != 3 { // with the scheduled one
		return fmt.Errorf("the worker was not killed in the middle of the thread: X has %d posts of cyd", have)
	}
	if err := d.sim.SetFaults(nil); err != nil {
		return fmt.Errorf("speed the simulator up: %w", err)
	}
	if err := d.startWorker(); err != nil {
		return err
	}
	if err := d.published(ctx, "cyd", "crash"); err != nil {
		return err
	}
	if err := d.chain("cyd", 1, posts); err != nil {
		return err
	}
	d.say("   X has all four once, in order.")
	return nil
}

// refreshed waits for a refresh round that the schedule in NATS starts.
func (d *demo) refreshed(ctx context.Context) error {
	grant, err := d.sim.AddAccount(xsim.NewAccount{Handle: "dan", AccessTokenTTL: int64(demoToken / time.Second)})
	if err != nil {
		return fmt.Errorf("make account in the simulator: %w", err)
	}
	ledger, err := d.instance.Config.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = ledger.Close() }() // nothing is pending
	importer := app.Importer{Ledger: ledger, NATS: d.conn, XURL: d.instance.SimURL}
	_, err = importer.Import(ctx, app.ImportLine{
		Name: "dan", AccessToken: grant.AccessToken, RefreshToken: grant.RefreshToken, ExpiresAt: time.Now().Add(demoToken),
	})
	if err != nil {
		return err
	}
	d.say("   a fourth account, dan, is imported now. Its access token lasts %s; the schedule in JetStream ticks every two seconds (%s).", demoToken, demoCron)
	err = d.until(ctx, "a refresh round", func(e jetpost.Event) (bool, error) {
		return e.Refresh != nil && e.Refresh.Refreshed > 0, nil
	})
	if err != nil {
		return err
	}
	token, err := ledger.Token(ctx, "dan")
	if err != nil {
		return fmt.Errorf("read token of dan: %w", err)
	}
	// A later tick may exchange the token again at this moment. It is enough that X gave a
	// new pair, and that the ledger no longer has the first one.
	current, ok := d.sim.CurrentToken("dan")
	if !ok || current.RefreshToken == grant.RefreshToken || token.Refresh.Reveal() == grant.RefreshToken {
		return errors.New("dan's token was not exchanged")
	}
	d.say("   dan's tokens were exchanged (%d times so far); both new ones are stored, encrypted.", token.Version-1)
	return nil
}

// callLog compares the simulator's posts and violations with what the demo sent.
func (d *demo) callLog(context.Context) error {
	violations := d.sim.Violations()
	for _, v := range violations {
		d.say("   violation: %s of %s: %s", v.Kind, v.Account, v.Detail)
	}
	found := len(d.sim.Posts(""))
	d.say("   %d posts expected, %d posts found, %d violations. %.1fs in all.", d.expected, found, len(violations), time.Since(d.began).Seconds())
	if found != d.expected || len(violations) > 0 {
		return errors.New("the simulator's call log differs from what was expected")
	}
	return nil
}

// startWorker starts a worker as a process of its own, as in a large installation.
func (d *demo) startWorker() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	d.workers++
	name := fmt.Sprintf("worker-%d", d.workers)
	logs, err := os.Create(filepath.Join(d.dir, name+".log"))
	if err != nil {
		return fmt.Errorf("make log of %s: %w", name, err)
	}
	defer func() { _ = logs.Close() }() // the worker has its own handle
	cfg := d.instance.Config
	// The worker runs as long as the demo, not only as long as the act that starts it.
	worker := exec.CommandContext(d.env.ctx, self, "worker", "--lease", demoLease.String(), "--worker-name", name,
		"--lifeboat", filepath.Join(d.dir, "lifeboat"), "--log-level", "debug", "--log-format", "json")
	worker.Stdout, worker.Stderr = logs, logs
	worker.Env = append(WithoutSettings(os.Environ()),
		"NATS_URL="+cfg.NATS.URL, "NATS_USER="+cfg.NATS.User, "NATS_PASSWORD="+cfg.NATS.Password.Reveal(),
		"DATABASE_URL="+cfg.DatabaseURL.Reveal(), "HUB_ENCRYPTION_KEY="+cfg.Keys.Reveal(),
		"X_API_URL="+cfg.X.URL, "X_CLIENT_ID="+cfg.X.ClientID, app.SimMinuteVariable+"="+demoMinute.String())
	if err := worker.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	d.worker = worker
	d.say("   %s started, process %d.", name, worker.Process.Pid)
	return nil
}

// WithoutSettings keeps the user's own configuration away from the demo.
func WithoutSettings(environ []string) []string {
	return slices.DeleteFunc(environ, func(entry string) bool {
		for _, prefix := range []string{"JETPOST_", "NATS_", "DATABASE_URL", "HUB_ENCRYPTION_KEY", "X_CLIENT_", "X_API_URL"} {
			if strings.HasPrefix(entry, prefix) {
				return true
			}
		}
		return false
	})
}

// killWorker kills the worker with SIGKILL.
func (d *demo) killWorker() error {
	if d.worker == nil {
		return nil
	}
	if err := d.worker.Process.Kill(); err != nil {
		return fmt.Errorf("kill worker: %w", err)
	}
	_ = d.worker.Wait() // it was killed: its error says nothing more
	d.say("   process %d killed with SIGKILL.", d.worker.Process.Pid)
	d.worker = nil
	return nil
}

// close ends the worker and the installation.
func (d *demo) close() {
	if d.worker != nil {
		_ = d.worker.Process.Kill() // it may have ended by itself
		_ = d.worker.Wait()
	}
	if d.conn != nil {
		d.conn.Close()
	}
	if d.stopPages != nil {
		d.stopPages()
		d.pages.Wait()
	}
	if d.instance != nil {
		d.instance.Close()
	}
}

// demoGIF draws a small GIF of two frames.
func demoGIF() ([]byte, error) {
	const side, tenth = 64, 10 // of a second, in hundredths
	var moving gif.GIF
	for _, c := range []color.Color{color.Black, color.White} {
		frame := image.NewPaletted(image.Rect(0, 0, side, side), color.Palette{c})
		moving.Image, moving.Delay = append(moving.Image, frame), append(moving.Delay, tenth)
	}
	var out bytes.Buffer
	if err := gif.EncodeAll(&out, &moving); err != nil {
		return nil, fmt.Errorf("draw GIF: %w", err)
	}
	return out.Bytes(), nil
}

// demoImage draws a small PNG.
func demoImage() ([]byte, error) {
	const side = 64
	img := image.NewRGBA(image.Rect(0, 0, side, side))
	for y := range side {
		for x := range side {
			img.Set(x, y, color.RGBA{R: uint8(4 * x), G: 120, B: uint8(255 - 4*y), A: 255})
		}
	}
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		return nil, fmt.Errorf("draw image: %w", err)
	}
	return out.Bytes(), nil
}
