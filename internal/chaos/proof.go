package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// The guards that a run can switch off, to prove that it sees what they keep away.
const (
	guardJournal = "journal"
	guardFence   = "fence"
)

// unexplained is the finding that an account was lost and nothing proves why.
const unexplained = "unexplained loss"

// cause is why an account was lost: each one is a thing that nobody can guard
// against, as X has no other way to its tokens.
type cause int

const (
	// answerLost: X's answer with the pair was cut, lost or spoiled on its way.
	answerLost cause = iota + 1
	// workerKilled and workerFrozen: X's answer was for a process that was killed,
	// or frozen for longer than its call may take, before it had stored the pair.
	workerKilled
	workerFrozen
	// clientGaveUp: the answer took longer than the call may take; storedLate: the
	// pair was stored, or was to be, when the lease had long ended. In both the
	// machine was too slow for times that are shrunk so far.
	clientGaveUp
	storedLate
)

// causes are the words for the causes.
var causes = [...]string{
	answerLost: "answer lost", workerKilled: "killed", workerFrozen: "frozen", clientGaveUp: "gave up", storedLate: "late",
}

// loss is an account as it was found lost.
type loss struct {
	name   string
	family int // of the consent in force
	token  store.Token
	seen   time.Time
}

// storedWithin is how long after a call has reached X an unharmed worker may take
// to store the pair, beside three leases: a restart of the database is survived.
const storedWithin = 10 * time.Second

// prove finds out by X's call log why the pair that the ledger holds is not accepted
// any more. The error says what is wrong where there is no good reason.
func (c *tokenRun) prove(lost loss) (cause, error) {
	name, token := lost.name, lost.token
	held, rotation, ok := c.Sim.Locate(token.Refresh.Reveal())
	switch {
	case !ok:
		return 0, fmt.Errorf("the ledger holds a refresh token that X never gave out, at version %d", token.Version)
	case held != lost.family:
		return 0, fmt.Errorf("the ledger holds a pair of consent %d at version %d, but the account was connected again: %d is in force", held, token.Version, lost.family)
	}
	taken, ok := c.takenBy(name, held, rotation)
	if !ok {
		return 0, fmt.Errorf("X has never exchanged the token that the ledger holds, rotation %d at version %d", rotation, token.Version)
	}
	at := tokenAt{name, token.Version - int64(rotation-taken.Rotation)}
	if l := c.fleet.of(taken.Host); taken.Rotation == rotation && l != nil && l.stored(at, lost.seen) {
		return 0, fmt.Errorf("%s stored the successor of version %d, which is gone: %s", l.Name, at.version, seenOf(taken))
	}
	return c.excuse(taken, at)
}

// takenBy finds the exchange that took the token away. Where an earlier token of
// the family was presented again, which ends the whole family at X, that is the
// one whose exchange went wrong: its pair came after all, but too late.
func (c *tokenRun) takenBy(name string, family, rotation int) (xsim.Exchange, bool) {
	seen := c.Sim.Exchanges(name)
	took := func(rotation int) (xsim.Exchange, bool) {
		i := slices.IndexFunc(seen, func(e xsim.Exchange) bool {
			return e.Effect && !e.Code && e.Family == family && e.Rotation == rotation
		})
		if i < 0 {
			return xsim.Exchange{}, false
		}
		return seen[i], true
	}
	if e, ok := took(rotation); ok {
		return e, true
	}
	for _, e := range seen {
		if e.Refused && e.Family == family && e.Rotation < rotation {
			return took(e.Rotation)
		}
	}
	return xsim.Exchange{}, false
}

// excuse says why the pair that an exchange made did not reach the ledger, or not
// in time.
func (c *tokenRun) excuse(e xsim.Exchange, at tokenAt) (cause, error) {
	l := c.fleet.of(e.Host)
	if l == nil {
		return 0, fmt.Errorf("nobody of ours made this call: %s", seenOf(e))
	}
	l.learn()
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Fault != "" && !e.Answered && !e.Open {
		return answerLost, nil
	}
	for _, h := range l.harms {
		// It was under way as the harm began, or reached X during it.
		begins, ends := h.from.Add(-storedWithin-3*c.claimFor), h.to
		if e.At.Before(begins) || !h.killed && !ends.IsZero() && e.At.After(ends) {
			continue
		}
		if h.killed {
			return workerKilled, nil
		}
		return workerFrozen, nil
	}
	if text := l.failed[at]; strings.Contains(text, "deadline exceeded") || strings.Contains(text, "timeout") {
		return clientGaveUp, nil
	}
	if stored, ok := l.saved[at]; ok && stored.at.Sub(e.At) > c.claimFor {
		return storedLate, nil
	}
	return 0, fmt.Errorf("%s was neither killed nor frozen, and got an answer to %s; it logged %q", l.Name, seenOf(e), l.failed[at])
}

// seenOf tells of an exchange in a line.
func seenOf(e xsim.Exchange) string {
	return fmt.Sprintf("[%s to %s: consent %d rotation %d, fault %q, status %d, effect %t, refused %t, answered %t, open %t]",
		e.At.Format("15:04:05.000"), e.Host, e.Family, e.Rotation, e.Fault, e.Status, e.Effect, e.Refused, e.Answered, e.Open)
}

// judge compares everything with everything.
func (c *tokenRun) judge() {
	ctx := c.T.Context()
	c.until(ctx, chaosPatience, func() bool {
		rounds, err := c.view.rounds(ctx, c.began)
		return err == nil && !slices.ContainsFunc(rounds, func(r roundRow) bool { return !r.announced })
	})
	c.endFleet()
	seen := c.judgeTokens(ctx)
	c.judgeRounds(ctx, seen)
	stuck, err := c.view.names(ctx, c.view.leased)
	testkit.Must(c.T, err)
	for _, name := range stuck {
		c.findings.add("stuck lease", "%s", name)
	}
	c.judgeSight()
}

// judgeTokens compares the ledger's pairs with X's call log, and returns all exchanges.
func (c *tokenRun) judgeTokens(ctx context.Context) (seen []xsim.Exchange) {
	journal, err := c.view.journal(ctx)
	testkit.Must(c.T, err)
	c.retries = len(journal)
	retries := map[string][]retryRow{}
	for _, r := range journal {
		retries[r.account] = append(retries[r.account], r)
	}
	for _, name := range c.people.names {
		token, err := c.Ledger.Token(ctx, name)
		testkit.Must(c.T, err)
		c.judgePair(name, token)
		exchanges := c.Sim.Exchanges(name)
		c.judgePresentations(name, token, exchanges, retries[name])
		seen = append(seen, exchanges...)
	}
	c.exchanges = len(seen)
	c.judgeLosses()
	c.judgeCallLog(seen)
	return seen
}

// judgePair wants the ledger to hold the pair that X calls current, or to know that
// it may not.
func (c *tokenRun) judgePair(name string, token store.Token) {
	current, _ := c.Sim.CurrentToken(name)
	differ := token.Refresh.Reveal() != current.RefreshToken || token.Access.Reveal() != current.AccessToken
	switch {
	case token.RequiresReauth, differ && !token.InDoubtSince.IsZero():
		c.people.lose(name, token)
	case differ:
		family, rotation, _ := c.Sim.Locate(token.Refresh.Reveal())
		c.findings.add("wrong pair", "%s: the ledger holds rotation %d of consent %d at version %d, X has rotation %d of consent %d",
			name, rotation, family, token.Version, current.Refreshes, c.people.customers[name].consents)
	case current.Revoked:
		c.people.lose(name, token)
	}
}

// judgeLosses wants a proven cause for each account that was lost. Only now do the
// logs tell everything: one that lags behind would leave a loss without its reason.
func (c *tokenRun) judgeLosses() {
	for _, lost := range c.people.losses {
		why, err := c.prove(lost)
		if err != nil {
			c.findings.add(unexplained, "%s: %v", lost.name, err)
			continue
		}
		c.lost[why]++
	}
}

// judgePresentations wants no token to be presented twice but as the journal
// says: once before the first retry, and once after each.
func (c *tokenRun) judgePresentations(name string, token store.Token, seen []xsim.Exchange, retries []retryRow) {
	base := c.people.customers[name].base
	if _, rotation, _ := c.Sim.Locate(token.Refresh.Reveal()); token.Version-int64(rotation) != base[c.people.customers[name].consents] {
		c.judgeTotals(name, seen, retries)
		return
	}
	type place struct{ family, rotation, retry int }
	last := map[place]xsim.Exchange{}
	for _, e := range seen {
		version := base[e.Family] + int64(e.Rotation)
		at := place{family: e.Family, rotation: e.Rotation}
		for _, r := range retries {
			if r.version == version && r.started <= e.At.UnixMicro() {
				at.retry++
			}
		}
		before, again := last[at]
		if again && !saysNothing(before) {
			c.findings.add("presented twice", "%s at version %d, with no retry in the journal between: %s, %s", name, version, seenOf(before), seenOf(e))
		}
		last[at] = e
	}
}

// judgeTotals is the same where versions do not tell which token is meant.
func (c *tokenRun) judgeTotals(name string, seen []xsim.Exchange, retries []retryRow) {
	tokens := map[[2]int]bool{}
	again := 0
	for i, e := range seen {
		at := [2]int{e.Family, e.Rotation}
		if tokens[at] && !saysNothing(seen[i-1]) {
			again++
		}
		tokens[at] = true
	}
	if again > len(retries) {
		c.findings.add("presented twice", "%s: %d times, with %d retries in the journal", name, again, len(retries))
	}
}

// saysNothing tells an answer after which the token is as it was, by X's own word.
func saysNothing(e xsim.Exchange) bool {
	return e.Status == 429 && e.Answered && !e.Effect
}

// judgeCallLog wants nothing in X's call log that a correct client never does, but for
// tokens that came again since a process with their successor was harmed.
func (c *tokenRun) judgeCallLog(seen []xsim.Exchange) {
	names := map[string]string{}
	for _, a := range c.Sim.Accounts() {
		names[a.ID] = a.Handle
	}
	presented := 0
	for _, n := range c.Sim.Counts()[xsim.EndpointToken] {
		presented += n
	}
	if presented != len(seen) {
		c.findings.add("unknown token", "%d calls of the token endpoint, but %d exchanges", presented, len(seen))
	}
	for _, v := range c.Sim.Violations() {
		name := names[v.Account]
		if v.Kind == xsim.ViolationRefreshTokenReused {
			if err := c.excuseReuse(name, v); err == nil {
				continue
			}
		}
		c.findings.add("X's call log", "%s of %s: %s", v.Kind, name, v.Detail)
	}
}

// excuseReuse finds the process that had the successor of a token that came again.
func (c *tokenRun) excuseReuse(name string, v xsim.Violation) error {
	seen := c.Sim.Exchanges(name)
	i := slices.IndexFunc(seen, func(e xsim.Exchange) bool { return e.Refused && e.At.Equal(v.At) })
	if i < 0 {
		return fmt.Errorf("no exchange of %s at %s", name, v.At)
	}
	again := seen[i]
	taken, ok := c.takenBy(name, again.Family, again.Rotation)
	if !ok {
		return fmt.Errorf("nothing took %s", seenOf(again))
	}
	version := c.people.customers[name].base[again.Family] + int64(again.Rotation)
	_, err := c.excuse(taken, tokenAt{name, version})
	return err
}

// judgeRounds wants each round to have made no more exchanges than it had tokens,
// one of each at most, and its summary to be told, with sums that are right.
func (c *tokenRun) judgeRounds(ctx context.Context, seen []xsim.Exchange) {
	rounds, err := c.view.rounds(ctx, c.began)
	testkit.Must(c.T, err)
	told := c.summaries(ctx)
	slices.SortFunc(seen, func(a, b xsim.Exchange) int { return a.At.Compare(b.At) })
	var g roundGroup
	for i, r := range rounds {
		if !r.opened.Before(g.end) {
			g = roundGroup{began: r.opened.Add(c.claimFor / 2), accounts: map[string]int{}}
		}
		g.rounds++
		g.total += r.total
		g.end = latestOf(g.end, r.done)
		next := time.Now()
		if i+1 < len(rounds) {
			next = rounds[i+1].opened
		}
		for len(seen) > 0 && seen[0].At.Before(next) {
			g.add(seen[0])
			seen = seen[1:]
		}
		if g.made > g.total || g.most > g.rounds {
			c.findings.add("round", "%d exchanges, %d of one token, in %d rounds of %d tokens up to %s", g.made, g.most, g.rounds, g.total, r)
		}
		c.judgeSummary(r, told[r.id])
	}
}

// roundGroup are rounds that overlap, and so are judged together: of their
// exchanges nobody can tell which was whose.
type roundGroup struct {
	began         time.Time // what was claimed before reaches X no later
	end           time.Time
	rounds, total int
	made, most    int // exchanges, and those of one account
	accounts      map[string]int
}

func (g *roundGroup) add(e xsim.Exchange) {
	if e.At.Before(g.began) || e.Code {
		return
	}
	g.made++
	g.accounts[e.Account]++
	g.most = max(g.most, g.accounts[e.Account])
}

func (c *tokenRun) judgeSummary(r roundRow, events []jetpost.RefreshSummary) {
	switch {
	case len(events) != 1:
		c.findings.add("round", "%d summaries of %s, want one", len(events), r)
	case events[0].Refreshed != r.refreshed || events[0].Failed != r.failed || events[0].Total != r.total,
		events[0].Refreshed+events[0].Failed+events[0].Skipped != r.total:
		c.findings.add("round", "the summary of %s says %+v", r, events[0])
	}
}

func latestOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// summaries are what the events tell of each round, each event once by its id.
func (c *tokenRun) summaries(ctx context.Context) map[string][]jetpost.RefreshSummary {
	told := map[string][]jetpost.RefreshSummary{}
	ids := map[string]bool{}
	for _, event := range c.events(ctx, c.Conn.Names.EventSubject(jetpost.EventRefreshCompleted, "", "")) {
		if event.Refresh == nil || ids[event.EventID] {
			continue
		}
		ids[event.EventID] = true
		told[event.Refresh.Round] = append(told[event.Refresh.Round], *event.Refresh)
	}
	return told
}

// judgeSight wants the run to have seen something.
func (c *tokenRun) judgeSight() {
	for what, n := range map[string]int{
		"kills": int(c.fleet.kills.Load()), "freezes": int(c.fleet.freezes.Load()), "doubts": len(c.people.doubts),
		"retries": c.retries, "losses": len(c.people.losses), "lost answers": c.lost[answerLost],
	} {
		if n == 0 {
			c.findings.add("blind", "the run has seen no %s", what)
		}
	}
}

// tokenView is the ledger's tokens.
type tokenView struct {
	*ledgerView
	// Conditions on the tokens, of which the first takes a time in microseconds.
	starved, reauth, doubt, young, leased, unsettled string
}

func newTokenView(v *ledgerView) *tokenView {
	now := v.now()
	return &tokenView{
		ledgerView: v,
		starved:    v.micros("refreshed_at") + " < $1",
		reauth:     "requires_reauth",
		leased:     "lease_id IS NOT NULL",
		doubt:      "NOT requires_reauth AND refresh_started_at IS NOT NULL AND (lease_until IS NULL OR lease_until <= " + now + ")",
		young:      "NOT requires_reauth AND next_attempt_at IS NULL AND due_at > " + now,
		unsettled:  "requires_reauth OR refresh_started_at IS NOT NULL OR next_attempt_at IS NOT NULL",
	}
}

// names are the accounts whose tokens fulfil a condition.
func (v *tokenView) names(ctx context.Context, condition string, args ...any) ([]string, error) {
	return rowsOf(ctx, v.db, "SELECT user_id FROM oauth_tokens WHERE "+condition+" ORDER BY user_id", func(scan scanFunc) (name string, err error) {
		return name, scan(&name)
	}, args...)
}

func (v *tokenView) count(ctx context.Context, condition string) (n int, err error) {
	err = v.db.QueryRowContext(ctx, "SELECT count(*) FROM oauth_tokens WHERE "+condition).Scan(&n)
	return n, err
}

func (v *tokenView) doubtful(ctx context.Context) ([]tokenAt, error) {
	return rowsOf(ctx, v.db, "SELECT user_id, version FROM oauth_tokens WHERE "+v.doubt+" ORDER BY user_id", func(scan scanFunc) (at tokenAt, err error) {
		return at, scan(&at.account, &at.version)
	})
}

// stragglers describes what does not settle.
func (v *tokenView) stragglers(ctx context.Context) string {
	found, err := rowsOf(ctx, v.db, "SELECT user_id || ' at version ' || version || ', next attempt ' || coalesce(CAST(next_attempt_at AS TEXT), 'none') || ', ' || metadata FROM oauth_tokens WHERE "+
		v.unsettled+" ORDER BY user_id", func(scan scanFunc) (text string, err error) { return text, scan(&text) })
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d tokens: %s", len(found), firstOf(found))
}

// retryRow is an entry of the journal.
type retryRow struct {
	account string
	version int64
	started int64 // microseconds
}

func (v *tokenView) journal(ctx context.Context) ([]retryRow, error) {
	return rowsOf(ctx, v.db, "SELECT t.user_id, j.version, "+v.micros("j.started_at")+
		" FROM refresh_journal AS j JOIN oauth_tokens AS t ON t.id = j.token_id", func(scan scanFunc) (r retryRow, err error) {
		return r, scan(&r.account, &r.version, &r.started)
	})
}

// roundRow is a round with what its batches count.
type roundRow struct {
	id                      string
	total, batches, counted int
	refreshed, failed       int
	announced               bool
	opened, done            time.Time
}

func (r roundRow) String() string {
	return fmt.Sprintf("round %s of %d tokens: %d refreshed, %d failed, %d of %d batches", r.id, r.total, r.refreshed, r.failed, r.counted, r.batches)
}

// rounds are those that were opened since, oldest first.
func (v *tokenView) rounds(ctx context.Context, since time.Time) ([]roundRow, error) {
	opened := v.micros("r.opened_at")
	return rowsOf(ctx, v.db, `
SELECT r.id, r.total, r.batches, r.announced, `+opened+`, count(b.batch), coalesce(sum(b.refreshed), 0), coalesce(sum(b.failed), 0),
       coalesce(max(`+v.micros("b.done_at")+`), 0)
FROM refresh_rounds AS r LEFT JOIN refresh_batches AS b ON b.round = r.id
WHERE `+opened+` >= $1 GROUP BY r.id, r.total, r.batches, r.announced, r.opened_at ORDER BY r.opened_at`, func(scan scanFunc) (r roundRow, err error) {
		var opened, done int64
		err = scan(&r.id, &r.total, &r.batches, &r.announced, &opened, &r.counted, &r.refreshed, &r.failed, &done)
		r.opened, r.done = time.UnixMicro(opened), time.UnixMicro(max(opened, done))
		return r, err
	}, since.UnixMicro())
}

var brokenTokenGuards = map[string][]string{
	// A claim leaves the row as if nothing had begun.
	guardJournal: {`ALTER TABLE oauth_tokens DROP CONSTRAINT oauth_tokens_check1`, `
CREATE FUNCTION break_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.lease_id IS NOT NULL AND NEW.lease_id IS DISTINCT FROM OLD.lease_id THEN
        NEW.next_attempt_at := OLD.next_attempt_at;
        NEW.refresh_started_at := NULL;
    END IF;
    RETURN NEW;
END $$`, breakOnUpdate},
	// No pair is newer than another.
	guardFence: {`
CREATE FUNCTION break_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    NEW.version := OLD.version;
    RETURN NEW;
END $$`, breakOnUpdate},
}

const breakOnUpdate = `CREATE TRIGGER break_guard BEFORE UPDATE ON oauth_tokens FOR EACH ROW EXECUTE FUNCTION break_guard()`

// events are all events that match, as the stream has them.
func (c *tokenRun) events(ctx context.Context, subject string) []jetpost.Event {
	c.T.Helper()
	stream, err := c.Conn.JS.Stream(ctx, c.Conn.Names.EventsStream())
	testkit.Must(c.T, err)
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subject))
	testkit.Must(c.T, err)
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}})
	testkit.Must(c.T, err)
	var events []jetpost.Event
	for range info.State.Subjects[subject] {
		msg, err := consumer.Next(jetstream.FetchMaxWait(testkit.Patience))
		testkit.Must(c.T, err)
		var event jetpost.Event
		testkit.Must(c.T, json.Unmarshal(msg.Data(), &event))
		events = append(events, event)
	}
	return events
}
