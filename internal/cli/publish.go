package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/tweettext"
)

// maxRequestBytes bounds a request that is read from a file.
const maxRequestBytes = 8 << 20

// publishCmd is 'jetpost publish'. Its flags are read only from the command line: with an
// id from the environment all requests are the same.
type publishCmd struct {
	Account string `arg:"" optional:"" help:"Name of the account."`
	Text    string `arg:"" optional:"" help:"Text of the first post; - reads it from standard input."`

	Then       []string      `env:"-" sep:"none" placeholder:"TEXT" help:"Text of the next post of the thread. May be repeated."`
	Split      bool          `env:"-" help:"Split texts of more than 280 characters, as X counts, into the posts of a thread. Without it they are published as they are, which X allows for some accounts."`
	Media      []string      `env:"-" sep:"none" placeholder:"PATH" help:"Media of the first post, a file or an https:// URL that a worker fetches: images (JPEG, PNG, WebP, up to 5 MiB; repeat the flag for up to 4), or one GIF (15 MiB), or one video (MP4, QuickTime, WebM, 1000 MiB)."`
	Alt        []string      `env:"-" sep:"none" placeholder:"TEXT" help:"Description of a medium, one for each --media, in the same order."`
	File       string        `env:"-" short:"f" placeholder:"PATH" help:"Read the whole request as JSON from this file; - is standard input."`
	ID         string        `env:"-" name:"id" placeholder:"ID" help:"Id of the request. Requests with the same id are published once. Default: a generated id."`
	At         string        `env:"-" placeholder:"TIME" help:"Publish at this time: 2026-12-01T09:00:00Z, '2026-12-01 09:00 Europe/Berlin', 'tomorrow 09:00', +1d2h from now, or now. Without a zone it is local time."`
	SkipIfLate string        `env:"-" placeholder:"DURATION" help:"Fail the request if it has not started this long after --at, or after its acceptance: 15m."`
	Expires    string        `env:"-" placeholder:"TIME" help:"Fail the request if its first post has not started by this time. Formats as for --at."`
	DryRun     bool          `env:"-" help:"Send nothing. Check the request and show its cost and when it will be published."`
	Wait       bool          `env:"-" help:"Show progress until the request is settled. Exit code 4: failed or refused, 5: still waiting, 6: unknown whether a post is live."`
	Timeout    time.Duration `env:"-" default:"2m" help:"Timeout of --wait."`
	natsFlags  `embed:""`
	tierFlag   `embed:""`
}

// AfterApply passes both kinds of flags on.
func (c *publishCmd) AfterApply(chosen *connectFlags) error {
	chosen.natsFlags, chosen.tierFlag = c.natsFlags, c.tierFlag
	return nil
}

// Run publishes, and prints the account and the id.
func (c *publishCmd) Run(e *env) error {
	cfg, missing := e.natsConfig()
	request, err := c.request(e.stdin, time.Now(), cfg.Rules)
	if err != nil {
		return err
	}
	if c.DryRun {
		return c.dryRun(e, cfg, missing, request)
	}
	if missing != nil {
		return missing
	}
	if err := c.confirm(e, request.PublishAt, time.Now()); err != nil {
		return err
	}
	conn, err := cfg.Connect(e.ctx, e.log, "jetpost publish")
	if err != nil {
		return err
	}
	defer conn.Close()
	c.tellSplit(e, len(request.Posts))
	tellLong(e, request)
	publisher := publishers.New(conn.JS, conn.Names)
	workers, err := client.New(conn.Conn, client.WithPrefix(cfg.NATS.Prefix))
	if err == nil {
		err = c.attach(e, publisher, workers, &request)
	}
	if err != nil {
		return err
	}
	warnings := warn(e, request.Account, cfg.ReauthRequired(e.ctx, conn, request.Account))
	if c.Wait {
		return c.wait(e, conn, request, warnings)
	}
	receipt, err := publisher.Publish(e.ctx, request)
	if err != nil {
		return sendAgain(receipt, err)
	}
	return e.say(with(warnings, &receipt), "%s  %s\nstored; follow it with: jetpost requests show %s", receipt.Account, receipt.ID, receipt.ID)
}

// late is how far in the past --at may be without a confirmation.
const late = 5 * time.Minute

// confirm prints the time to publish, and asks for confirmation if it has passed: the
// date or the zone may be a mistake, and the request goes out at once.
func (c *publishCmd) confirm(e *env, at, now time.Time) error {
	if at.IsZero() || c.At == "now" {
		return nil
	}
	fmt.Fprintf(e.stderr, "publish at %s, here %s\n", at.UTC().Format(time.RFC3339), at.Local().Format("2006-01-02 15:04:05 MST"))
	if now.Sub(at) <= late {
		return nil
	}
	if !isTerminal(e.stdin) {
		return mistakes("the time to publish at has passed", fmt.Sprintf("it was %s ago: use --at now to publish at once", now.Sub(at).Round(time.Second)))
	}
	fmt.Fprintf(e.stderr, "That was %s ago. Publish at once? [y/N] ", now.Sub(at).Round(time.Second))
	return confirmed(e.stdin)
}

// warning says why an accepted request has to wait.
type warning struct {
	jetpost.Reason
	Do string `json:"do,omitempty"`
}

// warn prints at once that the account must be connected again.
func warn(e *env, account string, reason *jetpost.Reason) []warning {
	if reason == nil {
		return nil
	}
	w := warning{Reason: *reason, Do: app.AdviceFor(reason.Code, account, "")}
	fmt.Fprintf(e.stderr, "warning: %s must be connected again, and its jobs wait until then: %s\n  do: %s\n", account, reason.Detail, w.Do)
	return []warning{w}
}

// with adds warnings to what is printed as JSON.
func with(warnings []warning, value any) any {
	if len(warnings) == 0 {
		return value
	}
	switch v := value.(type) {
	case *publishers.Receipt:
		return struct {
			*publishers.Receipt
			Warnings []warning `json:"warnings"`
		}{v, warnings}
	case *jetpost.RequestStatus:
		return struct {
			*jetpost.RequestStatus
			Warnings []warning `json:"warnings"`
		}{v, warnings}
	default:
		return value // a refusal
	}
}

// sendAgain adds the id with which a request that may be stored can safely be published
// again.
func sendAgain(receipt publishers.Receipt, err error) error {
	stored, noAnswer := receipt.Sequence > 0, errors.As(err, new(*publishers.NoAnswerError))
	if receipt.ID == "" || stored || (app.Hint(err) != "" && !noAnswer) {
		return err
	}
	return &app.HintError{Err: err, Help: "it may be stored or not: send it again with --id " + receipt.ID}
}

// request builds the request without its media, and lists every mistake.
func (c *publishCmd) request(stdin io.Reader, now time.Time, rules consumers.Rules) (jetpost.Request, error) {
	if c.File == "" && (c.Account == "" || (c.Text == "" && len(c.Media) == 0)) {
		return jetpost.Request{}, c.missing()
	}
	var wrong []string
	note := func(prefix string, err error) {
		if invalid := new(jetpost.InvalidError); errors.As(err, &invalid) {
			wrong = append(wrong, problems(invalid.Problems)...)
		} else if err != nil {
			wrong = append(wrong, prefix+err.Error())
		}
	}
	var r jetpost.Request
	var err error
	if c.File != "" {
		r, err = c.fromFile(stdin)
		note("--file: ", err)
	} else {
		var notSplit error // the texts are whole then, and can still be checked
		note("TEXT: ", c.readText(stdin))
		r, notSplit = c.fromFlags()
		note("", notSplit)
		note("", c.checkMedia())
	}
	readFile := err == nil
	if c.ID != "" {
		r.ID = c.ID
	}
	if c.At != "" {
		if r.PublishAt = now; c.At != "now" {
			r.PublishAt, err = moment(c.At, false, now)
		}
		note("--at: ", err)
	}
	if c.Expires != "" {
		r.ExpiresAt, err = moment(c.Expires, false, now)
		note("--expires: ", err)
	}
	if c.SkipIfLate != "" {
		r.SkipIfLate = c.SkipIfLate
	}
	if readFile { // otherwise the mistakes in the file are already listed
		note("", c.withStandIns(r).Validate())
		note("", rules.Check(r))
	}
	if c.DryRun && c.Wait {
		wrong = append(wrong, "--dry-run: sends nothing to --wait for")
	}
	return r, mistakes("the request is not valid", wrong...)
}

// missing says which arguments are missing.
func (c *publishCmd) missing() error {
	what := "say what to publish: the text is missing"
	if c.Account == "" && c.Text == "" {
		what = "say for which account, and what: both are missing"
	}
	return &exitError{code: exitUsage, err: &app.HintError{
		Err: errors.New(what), Help: "jetpost publish ACCOUNT TEXT, jetpost publish ACCOUNT - for standard input, or --file PATH; accounts: jetpost accounts list",
	}}
}

// readText reads the first text from standard input if it is "-".
func (c *publishCmd) readText(stdin io.Reader) error {
	if c.Text != "-" {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(stdin, maxRequestBytes+1))
	if err == nil && len(text) > maxRequestBytes {
		err = fmt.Errorf("is larger than %d bytes", maxRequestBytes)
	}
	// The last line end belongs to the shell, not to the text.
	c.Text = strings.TrimSuffix(jetpost.LineFeeds(strings.TrimPrefix(string(text), jetpost.ByteOrderMark)), "\n")
	return err
}

// fromFlags makes a request of the texts. It is complete even if a text
// cannot be split.
func (c *publishCmd) fromFlags() (jetpost.Request, error) {
	r := jetpost.Request{Account: c.Account}
	var wrong error
	for _, text := range append([]string{c.Text}, c.Then...) {
		text = jetpost.LineFeeds(text)
		parts := []string{text}
		if c.Split {
			cut, err := tweettext.Split(text, tweettext.MaxWeight)
			wrong = errors.Join(wrong, err)
			if len(cut) > 0 { // an empty text has its own message
				parts = cut
			}
		}
		for _, part := range parts {
			r.Posts = append(r.Posts, jetpost.Post{Text: part})
		}
	}
	return r, wrong
}

// tellSplit prints the number of posts on standard error.
func (c *publishCmd) tellSplit(e *env, posts int) {
	switch given := 1 + len(c.Then); {
	case !c.Split:
	case posts == given:
		fmt.Fprintln(e.stderr, "nothing is cut: each text fits into one post")
	default:
		fmt.Fprintf(e.stderr, "cut into %d posts\n", posts)
	}
}

// tellLong warns of texts that X accepts only from accounts with a subscription.
func tellLong(e *env, r jetpost.Request) {
	for i, post := range r.Posts {
		if weight := tweettext.Measure(post.Text).Weight; weight > tweettext.MaxWeight {
			fmt.Fprintf(e.stderr, "warning: post %d weighs %d of %d: X accepts it only from an account with a subscription; --split makes it a thread\n",
				i+1, weight, tweettext.MaxWeight)
		}
	}
}

// withStandIns lets a request be checked before its media are uploaded.
func (c *publishCmd) withStandIns(r jetpost.Request) jetpost.Request {
	if len(c.Media) == 0 || c.File != "" {
		return r
	}
	first := r.Posts[0]
	for i, from := range c.Media {
		media := jetpost.Media{Alt: c.alt(i)}
		if isURL(from) {
			media.URL = from
		} else {
			media.Object = "file"
		}
		first.Media = append(first.Media, media)
	}
	r.Posts = append([]jetpost.Post{first}, r.Posts[1:]...)
	return r
}

// isURL tells whether a --media is a URL, which a worker fetches, and not a file. The
// contract says which URLs are valid.
func isURL(media string) bool { return strings.Contains(media, "://") }

func (c *publishCmd) alt(i int) string {
	if i < len(c.Alt) {
		return c.Alt[i]
	}
	return ""
}

// checkMedia finds what is wrong with the media before anything is uploaded.
func (c *publishCmd) checkMedia() error {
	var errs []string
	if len(c.Alt) > 0 && len(c.Alt) != len(c.Media) {
		errs = append(errs, fmt.Sprintf("--alt: there are %d for %d --media; give one for each, --alt '' for none", len(c.Alt), len(c.Media)))
	}
	for _, path := range c.Media {
		if isURL(path) {
			continue
		}
		kind, err := checkFile(path)
		switch {
		case err != nil:
			errs = append(errs, "--media: "+err.Error())
		case len(c.Media) > 1 && !xapi.IsImage(kind):
			errs = append(errs, fmt.Sprintf("--media: %s is %s, which X takes alone: up to %d images, or one GIF, or one video", path, kind, jetpost.MaxImages))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return errors.New(strings.Join(errs, "\n  "))
}

// checkFile checks that X accepts the type and the size of a file.
func checkFile(path string) (kind string, err error) {
	info, err := os.Stat(path) // before opening, which blocks on a pipe
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return "", fmt.Errorf("%s is empty or not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read from
	head, err := io.ReadAll(io.LimitReader(f, xapi.SniffBytes))
	if err != nil {
		return "", err
	}
	kind = xapi.MediaType(head)
	switch limit := xapi.MediaLimit(kind); {
	case limit == 0:
		return "", fmt.Errorf("%s is %s; X takes %s", path, kind, xapi.MediaKinds)
	case info.Size() > limit:
		return "", fmt.Errorf("%s has %d bytes, more than the %d that X takes of %s", path, info.Size(), limit, kind)
	}
	return kind, nil
}

func (c *publishCmd) fromFile(stdin io.Reader) (jetpost.Request, error) {
	if c.Text != "" || c.Split || len(c.Then)+len(c.Media)+len(c.Alt) > 0 {
		return jetpost.Request{}, errors.New("the file has the whole request: leave out TEXT, --then, --split, --media and --alt")
	}
	from := stdin
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return jetpost.Request{}, err
		}
		defer func() { _ = f.Close() }() // only read from
		from = f
	}
	body, err := io.ReadAll(io.LimitReader(from, maxRequestBytes+1))
	if err != nil {
		return jetpost.Request{}, err
	}
	if len(body) > maxRequestBytes {
		return jetpost.Request{}, fmt.Errorf("is larger than %d bytes", maxRequestBytes)
	}
	return jetpost.Decode(c.Account, body)
}

// attach adds the media files to the first post: small ones inside the message, whose
// limit is little more than one of the largest inline media, others through the object
// store.
func (c *publishCmd) attach(e *env, publisher *publishers.Publisher, workers *client.Client, r *jetpost.Request) error {
	inline := 0
	for i, path := range c.Media {
		media := jetpost.Media{Alt: c.alt(i)}
		if isURL(path) {
			media.URL = path
			r.Posts[0].Media = append(r.Posts[0].Media, media)
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("read media: %w", err)
		}
		if inline+int(info.Size()) <= jetpost.MaxDataBytes {
			media.Data, err = os.ReadFile(path)
			inline += len(media.Data)
		} else {
			media.Object, err = putFile(e, publisher, workers, r.Account, path)
		}
		if err != nil {
			return fmt.Errorf("read media: %w", err)
		}
		r.Posts[0].Media = append(r.Posts[0].Media, media)
	}
	return nil
}

// putFile puts a file into the object store or, as a customer who has none, has a worker do
// so.
func putFile(e *env, publisher *publishers.Publisher, workers *client.Client, account, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read from
	object, err := publisher.PutMedia(e.ctx, f)
	if !errors.As(err, new(*publishers.NoJetStreamError)) {
		return object, err
	}
	stored, err := workers.MediaPut(e.ctx, account, f)
	return stored.Object, err
}

// wait publishes and follows the request until it is settled.
func (c *publishCmd) wait(e *env, conn *app.Connection, request jetpost.Request, warnings []warning) error {
	p := &progress{out: e.stdout}
	if e.asJSON() {
		p.out = io.Discard
	}
	w, err := conn.PublishAndWait(e.ctx, request, c.Timeout, p.see)
	if w.Receipt.Sequence > 0 && e.ctx.Err() != nil {
		return &exitError{code: exitInterrupted, err: &app.HintError{
			Err:  fmt.Errorf("interrupted while waiting: request %s of account %s goes on", w.Receipt.ID, w.Receipt.Account),
			Help: fmt.Sprintf("follow it with: jetpost requests watch %s --account %s; cancel it with: jetpost requests cancel %s --account %s", w.Receipt.ID, w.Receipt.Account, w.Receipt.ID, w.Receipt.Account),
		}}
	}
	if err != nil {
		return sendAgain(w.Receipt, err)
	}
	if e.asJSON() {
		if err := e.show(with(warnings, outcome(w)), ""); err != nil {
			return err
		}
	}
	if w.Repeat && w.Refusal == nil {
		p.say("this id was sent before: nothing is published twice")
	}
	return verdict(w, c.Timeout)
}

// outcome is the refusal, the request's last status or, without either, the receipt.
func outcome(w app.Waited) any {
	switch {
	case w.Refusal != nil:
		return w.Refusal
	case w.Request != nil:
		return w.Request
	default:
		return &w.Receipt
	}
}

// verdict is the error and the exit code for the outcome of a request.
func verdict(w app.Waited, timeout time.Duration) error {
	name := "request " + w.Receipt.ID
	if w.Receipt.Account != "" {
		name += " of account " + w.Receipt.Account
	}
	fail := func(code int, advice, format string, args ...any) error {
		return &exitError{code: code, err: &app.HintError{Err: fmt.Errorf(format, args...), Help: advice}}
	}
	switch {
	case w.Refusal != nil:
		return fail(exitRequest, app.AdviceFor(w.Refusal.Code, w.Receipt.Account, w.Receipt.ID), "%s was refused: %s: %s",
			name, w.Refusal.Code, strings.Join(problems(w.Refusal.Problems), "; "))
	case w.Request == nil:
		return fail(exitWaiting, "check the workers with: jetpost status, and the request with: jetpost requests show "+w.Receipt.ID, "%s: no worker reported on it within %s", name, timeout)
	}
	var code jetpost.Code
	if w.Request.Reason != nil {
		code = w.Request.Reason.Code
	}
	state := strings.TrimSuffix(fmt.Sprintf("%s is %s: %s", name, w.Request.State, reasonText(w.Request.Reason)), ": ")
	switch w.Request.State {
	case jetpost.StatePublished:
		return nil
	case jetpost.StateFailed, jetpost.StateCancelled:
		return fail(exitRequest, app.AdviceFor(code, w.Receipt.Account, w.Receipt.ID), "%s", state)
	case jetpost.StateUnknown:
		return fail(exitUnknown, app.AdviceFor(code, w.Receipt.Account, w.Receipt.ID), "%s", state)
	default:
		return fail(exitWaiting, app.AdviceFor(code, w.Receipt.Account, w.Receipt.ID), "%s, after waiting %s", state, timeout)
	}
}

// progress prints each step of a request once. Events may be
// left out or come twice, so it prints the posts that are live, not the events.
type progress struct {
	out   io.Writer
	name  string // begins each line if several requests are watched
	begun bool
	live  int // posts printed
}

// say prints a line. A closed standard output does not stop a publication.
func (p *progress) say(format string, args ...any) {
	_, _ = fmt.Fprintf(p.out, p.name+format+"\n", args...)
}

func (p *progress) see(event jetpost.Event) {
	r := event.Request
	if r == nil { // a refusal, which verdict reports
		return
	}
	if !p.begun {
		p.begun = true
		if p.name == "" {
			p.say("%s  %s", r.Account, r.ID)
		}
		p.say("accepted")
	}
	for ; p.live < len(r.Posts) && r.Posts[p.live].State == jetpost.PostPosted; p.live++ {
		p.say("posted %d/%d  %s", p.live+1, r.Total, r.Posts[p.live].URL)
	}
	if r.Unpublish != nil {
		p.say("unpublish: %s", unpublishText(*r, false))
		return
	}
	switch r.State {
	case jetpost.StateScheduled:
		p.say("scheduled for %s", localTime(r.PublishAt))
	case jetpost.StateHeld:
		p.waits("held", r)
	case jetpost.StateFailed, jetpost.StateUnknown:
		if p.name != "" { // otherwise verdict reports it
			p.waits(string(r.State), r)
		}
	case jetpost.StatePublished, jetpost.StateCancelled:
		p.say("%s", r.State)
	}
}

// waits prints why a request does not go on, until when, and what to do.
func (p *progress) waits(state string, r *jetpost.RequestStatus) {
	reason, when := r.Reason, ""
	if reason == nil {
		p.say("%s", state)
		return
	}
	switch {
	case !reason.Until.IsZero():
		when = " until " + localTime(reason.Until)
	case !r.NextTryAt.IsZero():
		when = ", tried again at " + localTime(r.NextTryAt)
	}
	p.say("%s%s: %s", state, when, reasonText(reason))
	if advice := app.AdviceFor(reason.Code, r.Account, r.ID); advice != "" {
		p.say("  do: %s", advice)
	}
}

// dryRun shows what will happen to the request, and sends nothing. missing is
// why neither the ledger nor NATS can be asked.
func (c *publishCmd) dryRun(e *env, cfg app.Config, missing error, request jetpost.Request) error {
	request = c.withStandIns(request)
	var f app.DryRun
	switch wrong := new(app.ConfigError); {
	case errors.As(missing, &wrong):
		return missing
	case missing != nil:
		f = control.NewCheck(request)
		f.NotAsked = []string{"the account's queue, and whether the app is paused: " + missing.Error()}
	default:
		f = cfg.DryRun(e.ctx, e.log, request)
	}
	if err := e.show(f, dryRunText(f)); err != nil {
		return err
	}
	if f.Queue != nil && f.Queue.State == "" {
		return &app.HintError{Err: fmt.Errorf("account %s: %w", f.Account, store.ErrNotFound), Help: f.Queue.Do}
	}
	return nil
}

func dryRunText(f app.DryRun) string {
	var rows []string
	line := func(name, format string, args ...any) { rows = append(rows, name+":\t"+fmt.Sprintf(format, args...)) }
	for _, p := range f.Posts {
		words := []string{fmt.Sprintf("weighs %d of %d", p.Weight, tweettext.MaxWeight)}
		if p.Weight > tweettext.MaxWeight {
			words[0] += ", which only an account with a subscription may post"
		}
		if p.URLs > 0 {
			words = append(words, counted(p.URLs, "link", "links"))
		}
		if p.Media > 0 {
			words = append(words, counted(p.Media, "medium", "media"))
		}
		line(fmt.Sprintf("post %d", p.Index+1), "%s", strings.Join(append(words, dollars(p.CostEstimateUSD)), ", "))
	}
	line("cost", "about %s", dollars(f.CostEstimateUSD))
	line("when", "%s", whenText(f))
	if q := f.Queue; q != nil && q.State != "" {
		line("account", "%s, its token: %s", f.Account, q.State)
		if !q.Pause.Since.IsZero() {
			line("paused", "%s", pauseText(q.Pause))
		}
		if missing := missingText(q.Missing); missing != "" {
			line("missing", "%s", missing)
		}
		if q.Do != "" {
			line("do", "%s", q.Do)
		}
		line("before it", "%s", counted(q.Before, "request", "requests"))
		if q.Request != "" {
			line("id", "%s is %s: the same request again changes nothing, and another body is refused", f.ID, q.Request)
		}
		if q.SameText != nil {
			line("same text", "request %s of account %s has it within a day, which X forbids", q.SameText.ID, q.SameText.Account)
		}
	}
	if f.Pause != nil {
		line("app", "paused: %s", reasonText(&f.Pause.Reason))
	}
	for _, what := range f.NotAsked {
		line("not asked", "%s", what)
	}
	return align(rows) + "nothing was sent\n"
}

func whenText(f app.DryRun) string {
	when := "now"
	if f.PublishAt.After(time.Now()) {
		when = localTime(f.PublishAt)
	}
	if !f.ExpiresAt.IsZero() {
		when += ", or never after " + localTime(f.ExpiresAt)
	}
	return when
}

// counted is a number of things.
func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
