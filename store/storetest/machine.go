package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

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

	accepted  int
	published int
	lanes     []store.Lane // every claim so far
	held      bool         // the last of them holds the lane
	rings     int64        // of its last look
	rang      bool         // since then
}

func (m *machine) worker(rt *rapid.T) store.Store {
	return m.workers[rapid.IntRange(0, len(m.workers)-1).Draw(rt, "worker")]
}

func (m *machine) lane() store.Lane { return m.lanes[len(m.lanes)-1] }

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
	m.rang = true
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
	m.look(rt)
}

func (m *machine) look(rt *rapid.T) *store.Record {
	look, err := m.worker(rt).Look(m.t.Context(), m.lane(), m.now)
	if err != nil {
		rt.Fatalf("look: %v", err)
	}
	m.rings, m.rang = look.Rings, false
	switch {
	case look.Head == nil && m.published < m.accepted:
		rt.Fatalf("nothing at the head, with %d of %d published", m.published, m.accepted)
	case look.Head != nil && look.Head.ID != fmt.Sprint(m.published):
		rt.Fatalf("%s is at the head, want %d", look.Head.ID, m.published)
	}
	return look.Head
}

func (m *machine) publish(rt *rapid.T) {
	head := m.look(rt)
	if err := m.worker(rt).Begin(m.t.Context(), m.lane(), head.ID, m.b.intent(0)); err != nil {
		rt.Fatalf("begin: %v", err)
	}
	state, err := m.worker(rt).Posted(m.t.Context(), m.lane(), head.ID, 0, m.account+"-"+head.ID, m.now)
	if err != nil || state != jetpost.StatePublished {
		rt.Fatalf("posted: %v, %v", state, err)
	}
	m.published++
}

func (m *machine) release(rt *rapid.T) {
	released, err := m.worker(rt).ReleaseLane(m.t.Context(), m.lane(), m.rings, m.now, m.b.now)
	if err != nil || released == m.rang {
		rt.Fatalf("release while rung is %t: %t, %v", m.rang, released, err)
	}
	m.held = !released
}

// stale lets an earlier holder try.
func (m *machine) stale(rt *rapid.T) {
	old := rapid.SampledFrom(slices.Clone(m.lanes[:len(m.lanes)-1])).Draw(rt, "old")
	if _, err := m.worker(rt).Look(m.t.Context(), old, m.now); err == nil {
		rt.Fatalf("fence %d may look after fence %d", old.Fence, m.lane().Fence)
	}
	if err := m.worker(rt).ExtendLane(m.t.Context(), old, longLease, m.b.now); err == nil {
		rt.Fatalf("fence %d may extend after fence %d", old.Fence, m.lane().Fence)
	}
}
