package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// A random history has this many steps. Each costs some synced commits, and
// what two workers can do wrong with one lane takes only a few.
const minSteps, maxSteps = 6, 14

// lanes runs random histories of two workers on one account, and compares the
// lane with a model of it: one holder at most, every request published once,
// immediate ones in the order of acceptance.
func lanes(t *testing.T, b *bundle) {
	workers := []store.Store{b.st, b.open(t, b.keys)}
	account := 0
	rapid.Check(t, func(rt *rapid.T) {
		account++
		name := fmt.Sprintf("lane-%d", account)
		b.add(t, name)
		m := &machine{t: t, b: b, account: name, workers: workers, now: b.now}
		for range rapid.IntRange(minSteps, maxSteps).Draw(rt, "steps") {
			m.step(rt)
		}
	})
}

type machine struct {
	t       *testing.T
	b       *bundle
	account string
	workers []store.Store
	now     time.Time // moves by the steps of the test alone

	accepted   int
	published  int
	lanes      []store.Claim // every claim so far
	held       bool          // the last of them holds the lane
	generation int64         // of its last snapshot
	woken      bool          // a wake-up came since then
}

func (m *machine) worker(rt *rapid.T) store.Store {
	return m.workers[rapid.IntRange(0, len(m.workers)-1).Draw(rt, "worker")]
}

func (m *machine) lane() store.Claim { return m.lanes[len(m.lanes)-1] }

// step does one of the things that are possible now.
func (m *machine) step(rt *rapid.T) {
	steps := map[string]func(*rapid.T){
		"accept": m.accept, "claim": m.claim, "publish": m.publish, "release": m.release, "stale": m.stale,
	}
	possible := []string{"accept", "claim"}
	if m.held && m.published < m.accepted {
		possible = append(possible, "publish")
	}
	if m.held {
		possible = append(possible, "release")
	}
	if len(m.lanes) > 1 {
		possible = append(possible, "stale")
	}
	steps[rapid.SampledFrom(possible).Draw(rt, "step")](rt)
}

// accept takes a request, by a clock that may be behind.
func (m *machine) accept(rt *rapid.T) {
	m.now = m.now.Add(time.Millisecond)
	in := m.b.acceptance(fmt.Sprint(m.accepted), 1)
	in.Request.Account = m.account
	in.Now = m.now.Add(-time.Duration(rapid.IntRange(0, 5).Draw(rt, "behind")) * time.Millisecond)
	decision, err := m.worker(rt).Accept(m.t.Context(), in)
	if err != nil || decision != store.Accepted {
		rt.Fatalf("accept: %v, %v", decision, err)
	}
	m.accepted++
	m.woken = true
}

func (m *machine) claim(rt *rapid.T) {
	lane, ok, err := m.worker(rt).ClaimLane(m.t.Context(), m.account, "worker", longLease, m.b.now)
	if err != nil || ok == m.held {
		rt.Fatalf("claim while held is %t: %t, %v", m.held, ok, err)
	}
	if !ok {
		return
	}
	if len(m.lanes) > 0 && lane.Fence <= m.lane().Fence {
		rt.Fatalf("fence %d follows %d", lane.Fence, m.lane().Fence)
	}
	m.lanes = append(m.lanes, lane)
	m.held = true
	m.snapshot(rt)
}

func (m *machine) snapshot(rt *rapid.T) *store.Record {
	snapshot, err := m.worker(rt).Snapshot(m.t.Context(), m.lane(), m.now)
	if err != nil {
		rt.Fatalf("snapshot: %v", err)
	}
	m.generation, m.woken = snapshot.Generation, false
	switch {
	case snapshot.Head == nil && m.published < m.accepted:
		rt.Fatalf("nothing at the head, with %d of %d published", m.published, m.accepted)
	case snapshot.Head != nil && snapshot.Head.ID != fmt.Sprint(m.published):
		rt.Fatalf("%s is at the head, want %d", snapshot.Head.ID, m.published)
	}
	return snapshot.Head
}

func (m *machine) publish(rt *rapid.T) {
	head := m.snapshot(rt)
	intent := m.b.intent(0)
	intent.Now = m.now
	if err := m.worker(rt).Begin(m.t.Context(), m.lane(), head.ID, intent); err != nil {
		rt.Fatalf("begin: %v", err)
	}
	state, err := m.worker(rt).Posted(m.t.Context(), m.lane(), head.ID, store.LivePost{PostID: m.account + "-" + head.ID, Now: m.now})
	if err != nil || state != jetpost.StatePublished {
		rt.Fatalf("posted: %v, %v", state, err)
	}
	m.published++
}

func (m *machine) release(rt *rapid.T) {
	released, err := m.worker(rt).ReleaseLane(m.t.Context(), m.lane(), m.generation, m.now, m.b.now)
	if err != nil || released == m.woken {
		rt.Fatalf("release while woken is %t: %t, %v", m.woken, released, err)
	}
	m.held = !released
}

// stale lets an earlier holder try.
func (m *machine) stale(rt *rapid.T) {
	old := rapid.SampledFrom(slices.Clone(m.lanes[:len(m.lanes)-1])).Draw(rt, "old")
	if _, err := m.worker(rt).Snapshot(m.t.Context(), old, m.now); err == nil {
		rt.Fatalf("fence %d may read a snapshot after fence %d", old.Fence, m.lane().Fence)
	}
	if err := m.worker(rt).ExtendLane(m.t.Context(), old, longLease, m.b.now); err == nil {
		rt.Fatalf("fence %d may extend after fence %d", old.Fence, m.lane().Fence)
	}
}

// rounds runs random histories of rounds, with workers that die, answers that are lost,
// exchanges outside of any round and accounts that come meanwhile. A round of n tokens
// makes at most n exchanges. No token is claimed twice in a round or while a live lease
// holds it. Each claim that follows one in doubt is in the journal.
func rounds(t *testing.T, b *bundle) {
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		// Every history has tokens of its own: earlier ones are removed.
		b.ledger.Exec(t, "DELETE FROM refresh_journal")
		b.ledger.Exec(t, "DELETE FROM oauth_tokens")
		run++
		c := &care{t: t, b: b, run: run, now: b.now.Add(time.Minute), exchanges: map[string]int{}, took: map[string]map[string]bool{}, doubt: map[string]bool{}}
		for range rapid.IntRange(1, 5).Draw(rt, "accounts") {
			c.account(rt)
		}
		for range rapid.IntRange(minSteps, 2*maxSteps).Draw(rt, "steps") {
			rapid.SampledFrom([]func(*rapid.T){c.account, c.open, c.open, c.claim, c.claim, c.claim, c.one, c.end, c.end, c.pass, c.pass}).Draw(rt, "step")(rt)
		}
		c.check(rt)
	})
}

// care is the state of one such history.
type care struct {
	t   *testing.T
	b   *bundle
	run int
	now time.Time // moves by the steps of the test alone

	names     []string
	rounds    []store.Round
	exchanges map[string]int             // by round
	took      map[string]map[string]bool // accounts by round
	claims    []store.Token              // claims whose end is still to come
	doubt     map[string]bool            // accounts whose last exchange has no known end
	retries   int
}

// account imports one whose token may be due, or not for a while.
func (c *care) account(rt *rapid.T) {
	name := fmt.Sprintf("care-%d-%d", c.run, len(c.names))
	left := time.Duration(rapid.IntRange(-5, 60).Draw(rt, "minutes left")) * time.Minute
	c.b.addToken(c.t, name, c.now, c.now.Add(left))
	c.names = append(c.names, name)
}

func (c *care) open(rt *rapid.T) {
	round, err := c.b.st.OpenRound(c.t.Context(), uuid.NewString(), window, rapid.IntRange(1, 3).Draw(rt, "batch"), c.now)
	if err != nil {
		rt.Fatalf("open round: %v", err)
	}
	c.rounds = append(c.rounds, round)
	c.took[round.Round] = map[string]bool{}
}

// claim takes tokens for any round, for a late batch of an old one or for a repeated
// one.
func (c *care) claim(rt *rapid.T) {
	if len(c.rounds) == 0 {
		return
	}
	round := rapid.SampledFrom(c.rounds).Draw(rt, "round").Round
	tokens, err := c.b.st.ClaimDue(c.t.Context(), store.DueClaim{
		Round: round, Limit: rapid.IntRange(1, 3).Draw(rt, "limit"), Pace: pace(c.lease(rt)), Now: c.now,
	})
	if err != nil {
		rt.Fatalf("claim: %v", err)
	}
	for _, token := range tokens {
		if c.took[round][token.Account] {
			rt.Fatalf("%s is claimed twice in a round", token.Account)
		}
		c.took[round][token.Account] = true
		c.exchanges[round]++
		c.claimed(rt, token)
	}
}

// one claims a token for a lane or a person.
func (c *care) one(rt *rapid.T) {
	name := rapid.SampledFrom(c.names).Draw(rt, "account")
	token, ok, err := c.b.st.ClaimToken(c.t.Context(), store.TokenClaim{
		Account: name, UsedVersion: c.b.token(c.t, name).Version, Force: rapid.Bool().Draw(rt, "force"), Refused: rapid.Bool().Draw(rt, "refused"),
		Pace: pace(c.lease(rt)), Now: c.now,
	})
	if err != nil {
		rt.Fatalf("claim one: %v", err)
	}
	if ok {
		c.claimed(rt, token)
	}
}

// lease returns a lease that outlives the history, or one that is over at once, as if
// its worker died.
func (c *care) lease(rt *rapid.T) time.Duration {
	return rapid.SampledFrom([]time.Duration{longLease, shortLease}).Draw(rt, "lease")
}

func (c *care) claimed(rt *rapid.T, token store.Token) {
	for _, other := range c.claims {
		if other.Account == token.Account && other.Version == token.Version && other.LeaseUntil.Sub(other.StartedAt) > time.Hour {
			rt.Fatalf("%s is claimed while another holds it", token.Account)
		}
	}
	if token.InDoubtSince.IsZero() == c.doubt[token.Account] {
		rt.Fatalf("%s is claimed in doubt since %v, but that it is in doubt is %t", token.Account, token.InDoubtSince, c.doubt[token.Account])
	}
	if c.doubt[token.Account] {
		c.retries++
	}
	c.doubt[token.Account] = true // until its end is reported
	c.claims = append(c.claims, token)
}

// end decides how a claim ended, or that nobody will know.
func (c *care) end(rt *rapid.T) {
	if len(c.claims) == 0 {
		return
	}
	i := rapid.IntRange(0, len(c.claims)-1).Draw(rt, "claim")
	claim := c.claims[i]
	c.claims = slices.Delete(c.claims, i, i+1)
	var err error
	switch rapid.SampledFrom([]string{"success", "nothing", "unknown"}).Draw(rt, "end") {
	case "success":
		if err = c.b.st.SaveToken(c.t.Context(), claim, pair("next", c.now.Add(time.Hour)), c.now); err == nil {
			c.doubt[claim.Account] = false
		}
	case "nothing":
		err = c.b.st.SaveTokenFailure(c.t.Context(), claim, store.TokenFailure{Error: "x", NextAttempt: c.now, Now: c.now})
		if err == nil {
			c.doubt[claim.Account] = !claim.InDoubtSince.IsZero()
		}
	case "unknown":
		err = c.b.st.SaveTokenFailure(c.t.Context(), claim, store.TokenFailure{Error: "x", Outcome: store.ExchangeUnknown, Now: c.now})
	}
	if err != nil && !errors.Is(err, store.ErrFenced) {
		rt.Fatalf("end claim of %s: %v", claim.Account, err)
	}
}

func (c *care) pass(rt *rapid.T) {
	c.now = c.now.Add(time.Duration(rapid.IntRange(1, 30).Draw(rt, "minutes")) * time.Minute)
}

func (c *care) check(rt *rapid.T) {
	for _, round := range c.rounds {
		if n := c.exchanges[round.Round]; n > round.Total {
			rt.Fatalf("a round of %d tokens made %d exchanges", round.Total, n)
		}
	}
	journalled := 0
	for _, name := range c.names {
		list, err := c.b.st.Retries(c.t.Context(), name)
		if err != nil {
			rt.Fatalf("read journal: %v", err)
		}
		journalled += len(list)
	}
	if journalled != c.retries {
		rt.Fatalf("the journal has %d retries, there were %d", journalled, c.retries)
	}
}
