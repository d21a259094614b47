package consumers

import (
	"log/slog"
	"sync"
	"time"

	"github.com/jetpost/jetpost/store"
)

// syncAfter is how long a pair waits for its commit until its file is synced. Most commits
// are faster, and then the disk is spared two syncs for each token.
const syncAfter = 100 * time.Millisecond

// lifeboat stores token pairs that the database has not stored yet.
type lifeboat interface {
	// Write stores a pair so that it outlives this process.
	Write(claim store.Token, pair store.Pair, now time.Time) error
	// Keep stores a pair so that it outlives a crash of the machine, too.
	Keep(claim store.Token, pair store.Pair, now time.Time) error
	Drop(claim store.Token) error
	Load() ([]store.Rescued, []store.Torn, error)
}

// pendingPair is a pair in the lifeboat, from X's answer to the end of its commit. Its file is
// synced with the first error of the database, or when that takes longer than syncAfter.
type pendingPair struct {
	lifeboat lifeboat
	claim    store.Token
	pair     store.Pair
	at       time.Time
	log      *slog.Logger
	late     *time.Timer
	syncs    sync.WaitGroup // of late

	mu     sync.Mutex
	synced bool
	failed bool
}

// writePair writes a pair into the lifeboat. If there is no room on the disk, the pair takes
// the lifeboat's own room at once, which only a synced file has.
func (r *refresher) writePair(log *slog.Logger, claim store.Token, pair store.Pair, at time.Time) *pendingPair {
	p := &pendingPair{lifeboat: r.Lifeboat, claim: claim, pair: pair, at: at, log: log}
	if p.lifeboat == nil {
		return p
	}
	if err := p.lifeboat.Write(claim, pair, at); err != nil {
		p.sync()
	}
	p.syncs.Add(1)
	p.late = time.AfterFunc(syncAfter, func() {
		defer p.syncs.Done()
		p.sync()
	})
	return p
}

// sync has the pair's file on disk before it returns, and reports whether that succeeded.
// If Recover has dropped the file meanwhile, because the database has the pair by now, it
// comes back, and end or the next Recover drops it again.
func (p *pendingPair) sync() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lifeboat == nil || p.synced {
		return p.synced
	}
	err := p.lifeboat.Keep(p.claim, p.pair, p.at)
	if err != nil && !p.failed { // it is tried again with each error of the database
		p.log.Error("token.not_in_lifeboat", "error", err)
		p.failed = true
	}
	p.synced = err == nil
	return p.synced
}

// end waits for a sync that is under way, so that none brings back the file, which it then
// drops if the commit is over.
func (p *pendingPair) end(over bool) {
	if p.lifeboat == nil {
		return
	}
	if p.late.Stop() {
		p.syncs.Done()
	}
	p.syncs.Wait()
	if !over {
		return
	}
	if err := p.lifeboat.Drop(p.claim); err != nil {
		p.log.Warn("token.lifeboat_not_emptied", "error", err) // Recover removes it within seconds
	}
}
