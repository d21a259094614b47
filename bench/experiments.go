package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// size is how much of everything a run does. The shape is the same in all.
type size struct {
	name       string
	rounds     int // of the first table
	few        int // of the others
	jobs       int
	accounts   int
	many       int // accounts of the second table
	single     int // jobs of one account
	threads    int // of five posts
	slowJobs   int // for each slot
	slots      []int
	workers    []int
	counted    int // jobs of the round that counts
	idle       int // jobs that meet an idle worker
	half       time.Duration
	pending    []int         // jobs scheduled for later
	due        int           // jobs of which the lateness is measured
	ahead      time.Duration // of the first of them, so that all are accepted before
	over       time.Duration // that they are spread over
	intake     time.Duration
	rows       []int // finished requests in the ledger
	tokens     int
	threadOf   int           // posts of the thread with media
	footprint  time.Duration // for which an idle process is measured
	slow       time.Duration // a call of X, where it takes time
	budget     time.Duration // after which no experiment begins
	plainPeers bool
}

func full() size {
	return size{
		name: "full", rounds: 3, few: 2, jobs: 5000, accounts: 100, many: 1000, single: 1000, threads: 500, slowJobs: 20,
		slots: []int{16, 100}, workers: []int{1, 2, 4}, counted: 1000, idle: 100, half: 8 * time.Second,
		pending: []int{10, 10_000, 100_000}, due: 200, ahead: 3 * time.Second, over: 5 * time.Second, intake: 75 * time.Second, rows: []int{0, 100_000, 1_000_000},
		tokens: 1000, threadOf: 10, footprint: 10 * time.Second, slow: 150 * time.Millisecond, budget: 32 * time.Minute, plainPeers: true,
	}
}

func quick() size {
	return size{
		name: "quick", rounds: 1, few: 1, jobs: 500, accounts: 100, many: 300, single: 200, threads: 40, slowJobs: 5,
		slots: []int{16, 100}, workers: []int{1, 2}, counted: 300, idle: 20, half: 2 * time.Second,
		pending: []int{1000}, due: 50, ahead: 2 * time.Second, over: 2 * time.Second, intake: 10 * time.Second, rows: []int{0, 50_000},
		tokens: 200, threadOf: 5, footprint: 3 * time.Second, slow: 150 * time.Millisecond, budget: 200 * time.Second,
	}
}

// tiny is one of each, for tests.
func tiny() size {
	return size{
		name: "tiny", rounds: 1, few: 1, jobs: 20, accounts: 4, many: 8, single: 4, threads: 2, slowJobs: 1,
		slots: []int{4}, workers: []int{2}, counted: 20, idle: 3, half: 300 * time.Millisecond,
		pending: []int{5}, due: 3, ahead: time.Second, over: 200 * time.Millisecond, intake: 5 * time.Second, rows: []int{200},
		tokens: 5, threadOf: 2, footprint: 300 * time.Millisecond, slow: 20 * time.Millisecond, budget: 3 * time.Minute,
	}
}

// entry is a side by its name in the tables.
type entry struct {
	name string
	make func() side
}

func (b *bench) floor() entry {
	return entry{"floor", func() side { return &floorSide{base: base{bench: b}} }}
}

// peers are those of which each does a job's two writes.
func (b *bench) peers() []entry {
	return []entry{
		{"River", func() side { return &riverSide{base: base{bench: b}} }},
		{"Asynq", func() side { return &asynqSide{base: base{bench: b}} }},
		{"DBOS", func() side { return &dbosSide{base: base{bench: b}} }},
	}
}

// plain are peers that write no ledger: what they post twice nobody knows.
func (b *bench) plain() []entry {
	return []entry{
		{"River, no ledger", func() side { return &riverSide{base: base{bench: b}, plain: true} }},
		{"Asynq, no ledger", func() side { return &asynqSide{base: base{bench: b}, plain: true} }},
	}
}

// ours are the revisions of jetpost, with PostgreSQL.
func (b *bench) ours() []entry {
	all := []entry{{"jetpost", func() side { return &jetpostSide{base: base{bench: b}, binary: b.binary} }}}
	if b.against != "" {
		all = append(all, entry{"jetpost " + b.againstName, func() side { return &jetpostSide{base: base{bench: b}, binary: b.against} }})
	}
	return all
}

// onSQLite are the same as 'jetpost up'.
func (b *bench) onSQLite() []entry {
	all := []entry{{"jetpost up, SQLite", func() side { return &jetpostSide{base: base{bench: b}, binary: b.binary, sqlite: true} }}}
	if b.against != "" {
		all = append(all, entry{"jetpost " + b.againstName + " up, SQLite", func() side {
			return &jetpostSide{base: base{bench: b}, binary: b.against, sqlite: true}
		}})
	}
	return all
}

type experiment struct {
	name string
	run  func(context.Context, size) error
}

func (b *bench) experiments() []experiment {
	return []experiment{
		{"singles", b.singles},
		{"latency", b.latency},
		{"thousand", b.thousand},
		{"one-account", b.oneAccount},
		{"threads", b.fives},
		{"slow-x", b.slowX},
		{"workers", b.scaling},
		{"publish-at", b.publishAt},
		{"refresh", b.refresh},
		{"media", b.media},
		{"growth", b.growth},
		{"footprint", b.footprint},
	}
}

// all runs every experiment. It reports one that fails, and goes on with the others.
func (b *bench) all(ctx context.Context, sz size, only *regexp.Regexp) error {
	var errs []error
	for _, e := range b.experiments() {
		if !only.MatchString(e.name) {
			continue
		}
		if time.Since(b.began) > sz.budget {
			b.report.skipped = append(b.report.skipped, e.name)
			continue
		}
		b.say("%s", e.name)
		if err := e.run(ctx, sz); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.name, err))
			b.say("%s: %v", e.name, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// rounds runs a burst of each side in turn, so that a slow phase of the machine slows
// all of them, and returns each side's samples.
func (b *bench) rounds(ctx context.Context, entries []entry, n int, w workload, jobs func(tag string) []*job) (map[string][]sample, error) {
	found := map[string][]sample{}
	for round := range n {
		for i := range entries {
			// Another side begins each round: none is always the one after the slowest.
			e := entries[(i+round)%len(entries)]
			s, err := b.burst(ctx, e.make(), w, jobs(fmt.Sprintf("r%d", round)))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.name, err)
			}
			b.say("  %-28s %s posts/s%s", e.name, number(s.rate()), s.faults())
			found[e.name] = append(found[e.name], s)
		}
	}
	return found, nil
}

// faults says what a side has done that it should not.
func (s sample) faults() (text string) {
	if s.cut {
		text += fmt.Sprintf(", cut after %s", mostTime)
	}
	if s.twice > 0 {
		text += fmt.Sprintf(", %d POSTED TWICE", s.twice)
	}
	if s.astray > 0 && s.ordered {
		text += fmt.Sprintf(", %d OUT OF ORDER", s.astray)
	}
	return text
}

const usualSlots = 16

func (b *bench) singles(ctx context.Context, sz size) error {
	entries := slices.Concat([]entry{b.floor()}, b.peers(), b.ours(), b.onSQLite())
	if sz.plainPeers {
		entries = append(entries, b.plain()...)
	}
	w := workload{accounts: sz.accounts, slots: usualSlots, workers: 1}
	names := accountNames(sz.accounts)
	found, err := b.rounds(ctx, entries, sz.rounds, w, func(tag string) []*job { return makeJobs(tag, sz.jobs, 1, names) })
	if err != nil {
		return err
	}
	w.counted = true
	counted := slices.DeleteFunc(slices.Clone(entries), func(e entry) bool {
		s, is := e.make().(*jetpostSide)
		return is && s.sqlite
	})
	counts, err := b.rounds(ctx, counted, 1, w, func(tag string) []*job { return makeJobs("c"+tag, sz.counted, 1, names) })
	if err != nil {
		return err
	}
	b.report.singles(entries, found, counts, sz)
	return nil
}

// compared runs one shape of work on the floor and on jetpost.
func (b *bench) compared(ctx context.Context, entries []entry, rounds int, w workload, jobs func(string) []*job, what string) error {
	found, err := b.rounds(ctx, entries, rounds, w, jobs)
	if err != nil {
		return err
	}
	b.report.compared(what, entries, found)
	return nil
}

// fewer leaves one round where two revisions take the time of two.
func (b *bench) fewer(sz size) int {
	if b.against != "" {
		return 1
	}
	return sz.few
}

func (b *bench) floorAndOurs() []entry {
	return slices.Concat([]entry{b.floor()}, b.ours(), b.onSQLite())
}

func (b *bench) thousand(ctx context.Context, sz size) error {
	names := accountNames(sz.many)
	w := workload{accounts: sz.many, slots: usualSlots, workers: 1}
	return b.compared(ctx, b.floorAndOurs(), b.fewer(sz), w, func(tag string) []*job { return makeJobs(tag, sz.jobs, 1, names) },
		fmt.Sprintf("%s single posts of %s accounts", thousands(int64(sz.jobs)), thousands(int64(sz.many))))
}

func (b *bench) oneAccount(ctx context.Context, sz size) error {
	w := workload{accounts: 1, slots: usualSlots, workers: 1}
	return b.compared(ctx, b.floorAndOurs(), b.fewer(sz), w, func(tag string) []*job { return makeJobs(tag, sz.single, 1, accountNames(1)) },
		fmt.Sprintf("%s single posts of one account", thousands(int64(sz.single))))
}

const fivePosts = 5

func (b *bench) fives(ctx context.Context, sz size) error {
	w := workload{accounts: sz.accounts, slots: usualSlots, workers: 1}
	return b.compared(ctx, b.floorAndOurs(), b.fewer(sz), w, func(tag string) []*job { return makeJobs(tag, sz.threads, fivePosts, accountNames(sz.accounts)) },
		fmt.Sprintf("%s threads of %d posts, of %d accounts", thousands(int64(sz.threads)), fivePosts, sz.accounts))
}

func (b *bench) slowX(ctx context.Context, sz size) error {
	for _, slots := range sz.slots {
		w := workload{accounts: max(sz.accounts, slots), slots: slots, workers: 1, delay: sz.slow}
		ideal := float64(slots) / sz.slow.Seconds()
		what := fmt.Sprintf("X takes %s for a post, %d slots (at most %s posts/s)", sz.slow, slots, number(ideal))
		jobs := func(tag string) []*job { return makeJobs(tag, sz.slowJobs*slots, 1, accountNames(w.accounts)) }
		if err := b.compared(ctx, b.floorAndOurs(), b.fewer(sz), w, jobs, what); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) scaling(ctx context.Context, sz size) error {
	lines := map[string]map[int]sample{}
	for _, e := range b.ours() {
		lines[e.name] = map[int]sample{}
		for _, n := range sz.workers {
			w := workload{accounts: sz.accounts, slots: usualSlots, workers: n}
			s, err := b.burst(ctx, e.make(), w, makeJobs("w", sz.jobs, 1, accountNames(sz.accounts)))
			if err != nil {
				return fmt.Errorf("%s with %d workers: %w", e.name, n, err)
			}
			b.say("  %-28s %d workers: %s posts/s%s", e.name, n, number(s.rate()), s.faults())
			lines[e.name][n] = s
		}
	}
	b.report.scaling(b.ours(), sz.workers, lines)
	return nil
}

// halfLoad is the part of its own best that a side is loaded with.
const halfLoad = 0.5

func (b *bench) latency(ctx context.Context, sz size) error {
	entries := slices.Concat([]entry{b.floor()}, b.peers(), b.ours(), b.onSQLite())
	rows := map[string]latencies{}
	for _, e := range entries {
		l, err := b.latencyOf(ctx, e, sz)
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		b.say("  %-28s idle p50 %s ms, half load p99 %s ms", e.name, millis(quantile(l.idle.late, half)), millis(quantile(l.half.late, hundredth)))
		rows[e.name] = l
	}
	b.report.latency(entries, rows)
	return nil
}

type latencies struct {
	idle, half sample
	rate       float64 // jobs a second, at half load
}

func (b *bench) latencyOf(ctx context.Context, e entry, sz size) (l latencies, err error) {
	names := accountNames(sz.accounts)
	w := workload{accounts: sz.accounts, slots: usualSlots, workers: 1}
	// How much it takes here decides what half of it is.
	best, known := b.report.best[e.name]
	if !known {
		s, err := b.burst(ctx, e.make(), w, makeJobs("b", max(sz.jobs/10, 1), 1, names))
		if err != nil {
			return l, err
		}
		best = s.rate()
	}
	s := e.make()
	b.x.reset(0)
	if err := s.start(ctx, w); err != nil {
		return l, errors.Join(err, s.close(ctx))
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	if l.idle, err = b.stream(ctx, s, makeJobs("idle", sz.idle, 1, names), 0); err != nil {
		return l, err
	}
	l.rate = best * halfLoad
	jobs := max(int(l.rate*sz.half.Seconds()), 1)
	l.half, err = b.stream(ctx, s, makeJobs("half", jobs, 1, names), time.Duration(float64(time.Second)/l.rate))
	return l, err
}
