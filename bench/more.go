package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// The experiments that only jetpost can be put to.

const (
	half      = 0.5
	hundredth = 0.99
	// farAway is when jobs that only wait are due.
	farAway    = 30 * 24 * time.Hour
	dueTag     = "due"
	pendingTag = "later"
)

// lateness is what publish_at was worth with so many jobs waiting for theirs.
type lateness struct {
	pending  int // that were really accepted
	accepted time.Duration
	late     []time.Duration
	early    int
	rss      int64 // of the worker
}

func (b *bench) publishAt(ctx context.Context, sz size) error {
	entries := append(b.ours(), b.onSQLite()[0])
	rows := map[string][]lateness{}
	for _, e := range entries {
		for _, n := range sz.pending {
			if n == slices.Max(sz.pending) && n > mostPendingSQLite && strings.Contains(e.name, "SQLite") {
				continue
			}
			l, err := b.lateness(ctx, e.make(), sz, n)
			if err != nil {
				return fmt.Errorf("%s with %d pending: %w", e.name, n, err)
			}
			b.say("  %-28s %d pending (%s): p50 %s ms, p99 %s ms, %d early", e.name, l.pending, l.accepted.Round(time.Second/10), millis(quantile(l.late, half)), millis(quantile(l.late, hundredth)), l.early)
			rows[e.name] = append(rows[e.name], l)
			if l.accepted > sz.intake/2 {
				break // ten times as many would not be accepted in the time that there is
			}
		}
	}
	b.report.publishAt(entries, rows)
	return nil
}

const mostPendingSQLite = 10_000

// lateness has n jobs accepted for much later, and then measures those that are
// due soon.
func (b *bench) lateness(ctx context.Context, s side, sz size, n int) (l lateness, err error) {
	b.x.reset(0)
	w := workload{accounts: sz.accounts, slots: usualSlots, workers: 1}
	if err := s.start(ctx, w); err != nil {
		return l, errors.Join(err, s.close(ctx))
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	if l.pending, l.accepted, err = b.fill(ctx, s, sz, n); err != nil {
		return l, err
	}
	jobs := makeJobs(dueTag, sz.due, 1, accountNames(sz.accounts))
	first := time.Now().Add(sz.ahead)
	for i, j := range jobs {
		j.At = first.Add(sz.over * time.Duration(i) / time.Duration(len(jobs)))
	}
	all := b.x.expect(len(jobs) + b.x.posts())
	if err := s.submit(ctx, jobs); err != nil {
		return l, err
	}
	if _, err := b.await(ctx, all, time.Now()); err != nil {
		return l, err
	}
	for _, p := range s.parts()["worker"] {
		l.rss += p.rss()
	}
	came, _, _ := b.x.arrivals()
	for _, j := range jobs {
		late := came[j.text(0)].Sub(j.At)
		if late < 0 {
			l.early++
		}
		l.late = append(l.late, late)
	}
	return l, nil
}

// fillBatch is how many jobs are handed in before the time is checked again: a part of
// all, so that there are few marks among them.
func fillBatch(n int) int { return max(1000, n/20) }

// fill hands in n jobs for much later, or as many as are accepted in the time that
// there is. A job for now on each account, behind them, shows when they are.
func (b *bench) fill(ctx context.Context, s side, sz size, n int) (filled int, took time.Duration, err error) {
	names := accountNames(sz.accounts)
	jobs := makeJobs(pendingTag, n, 1, names)
	at := time.Now().Add(farAway)
	for _, j := range jobs {
		j.At = at
	}
	began := time.Now()
	for filled < n && time.Since(began) < sz.intake {
		batch := jobs[filled:min(filled+fillBatch(n), n)]
		if err := s.submit(ctx, batch); err != nil {
			return filled, 0, err
		}
		filled += len(batch)
		mark := makeJobs(fmt.Sprintf("mark%d", filled), len(names), 1, names)
		all := b.x.expect(b.x.posts() + len(mark))
		if err := s.submit(ctx, mark); err != nil {
			return filled, 0, err
		}
		select {
		case <-all:
		case <-time.After(fillTime):
			return filled, 0, fmt.Errorf("%d jobs were not accepted within %s", len(batch), fillTime)
		case <-ctx.Done():
			return filled, 0, ctx.Err()
		}
	}
	return filled, time.Since(began), nil
}

const fillTime = 3 * time.Minute // that a batch may take until it is accepted

// refresh measures rounds of tokens that are all due, against one exchange after
// another.
func (b *bench) refresh(ctx context.Context, sz size) error {
	rows := map[string]map[int]float64{}
	for _, e := range b.ours() {
		rows[e.name] = map[int]float64{}
		for _, n := range sz.workers {
			rate, err := b.tokens(ctx, e.make().(*jetpostSide), sz, n)
			if err != nil {
				return fmt.Errorf("%s with %d workers: %w", e.name, n, err)
			}
			b.say("  %-28s %d workers: %s tokens/s", e.name, n, number(rate))
			rows[e.name][n] = rate
		}
	}
	b.report.refresh(b.ours(), sz, rows, exchangeTime)
	return nil
}

const (
	exchangeTime = 100 * time.Millisecond // that X takes for an exchange
	// shortLife makes a token due half of it after the import.
	shortLife = 2 * time.Second
	untilDue  = shortLife
)

func (b *bench) tokens(ctx context.Context, s *jetpostSide, sz size, workers int) (rate float64, err error) {
	b.x.reset(exchangeTime)
	w := workload{accounts: sz.tokens, slots: usualSlots, workers: workers, life: shortLife, roles: "refresh"}
	if err := s.start(ctx, w); err != nil {
		return 0, errors.Join(err, s.close(ctx))
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	if err := pause(ctx, untilDue); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := s.prod.tick(ctx); err != nil {
		return 0, err
	}
	for b.x.exchanges.Load() < int64(sz.tokens) {
		if time.Since(began) > mostTime {
			break
		}
		if err := pause(ctx, askAgain); err != nil {
			return 0, err
		}
	}
	took := time.Unix(0, b.x.lastToken.Load()).Sub(began)
	return float64(b.x.exchanges.Load()) / took.Seconds(), s.settle(ctx)
}

const fourImages = 4

// media measures threads whose every call takes time, against the sum of those that
// cannot run beside each other: one upload, then post after post.
func (b *bench) media(ctx context.Context, sz size) error {
	entries := slices.Concat(b.ours(), b.onSQLite())
	rows := map[string][2][]time.Duration{}
	for round := range b.fewer(sz) {
		for _, e := range entries {
			var both [2]time.Duration
			for i, images := range []int{0, fourImages} {
				jobs := makeJobs(fmt.Sprintf("m%d", round), 1, sz.threadOf, accountNames(1))
				jobs[0].Images = images
				s, err := b.burst(ctx, e.make(), workload{accounts: 1, slots: usualSlots, workers: 1, delay: sz.slow}, jobs)
				if err != nil {
					return fmt.Errorf("%s: %w", e.name, err)
				}
				// X notes a post as it comes; its answer is a call later.
				both[i] = s.wall + sz.slow
			}
			b.say("  %-28s text %s, with %d images each %s", e.name, both[0].Round(time.Millisecond), fourImages, both[1].Round(time.Millisecond))
			row := rows[e.name]
			row[0], row[1] = append(row[0], both[0]), append(row[1], both[1])
			rows[e.name] = row
		}
	}
	b.report.media(entries, rows, sz)
	return nil
}

// growth has the ledger hold ever more finished requests, and measures bursts.
func (b *bench) growth(ctx context.Context, sz size) error {
	entries := b.ours()[:1]
	lines := map[string]map[int]sample{}
	for _, e := range entries {
		lines[e.name] = map[int]sample{}
		for _, rows := range sz.rows {
			s := &grown{jetpostSide: e.make().(*jetpostSide), rows: rows}
			w := workload{accounts: sz.accounts, slots: usualSlots, workers: 1}
			found, err := b.burst(ctx, s, w, makeJobs("g", max(sz.jobs/2, 1), 1, accountNames(sz.accounts)))
			if err != nil {
				return fmt.Errorf("%s with %d rows: %w", e.name, rows, err)
			}
			b.say("  %-28s %d finished requests: %s posts/s%s", e.name, rows, number(found.rate()), found.faults())
			lines[e.name][rows] = found
		}
	}
	b.report.growth(entries, sz.rows, lines)
	return nil
}

// grown is a jetpost whose ledger holds finished requests from before.
type grown struct {
	*jetpostSide
	rows int
}

// start has some requests published, and copies them until there are enough.
func (g *grown) start(ctx context.Context, w workload) error {
	if err := g.jetpostSide.start(ctx, w); err != nil || g.rows == 0 {
		return err
	}
	seeds := makeJobs("seed", min((g.rows+1)/2, growSeeds), 1, accountNames(w.accounts))
	all := g.bench.x.expect(len(seeds))
	if err := g.submit(ctx, seeds); err != nil {
		return err
	}
	if _, err := g.bench.await(ctx, all, time.Now()); err != nil {
		return err
	}
	if err := g.settle(ctx); err != nil {
		return err
	}
	return grow(ctx, g.directURL(), g.rows/len(seeds)-1)
}

const growSeeds = 1000

// grow copies the finished requests that many times. It knows the names of the columns
// that identify a request, and copies all others as they are, so that it works with any
// other columns of the ledger.
func grow(ctx context.Context, url string, copies int) error {
	if copies < 1 {
		return nil
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // the statements' errors say it
	// A request before what belongs to it.
	for _, table := range []string{"requests", "posts"} {
		columns, err := columnsOf(ctx, conn, table)
		if err != nil {
			return err
		}
		from := make([]string, len(columns))
		for i, c := range columns {
			from[i] = c
			switch c {
			case "id", "request_id", "post_id":
				from[i] = c + " || '-' || g"
			case "seq":
				// Behind every seq that the lanes give meanwhile.
				from[i] = "seq + g::bigint * 1000000000"
			case "text_hash":
				from[i] = "sha256(text_hash || g::text::bytea)"
			}
		}
		sql := fmt.Sprintf("INSERT INTO %s (%s) SELECT %s FROM %s, generate_series(1, %d) AS g", table, strings.Join(columns, ", "), strings.Join(from, ", "), table, copies)
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("copy %s: %w", table, err)
		}
	}
	_, err = conn.Exec(ctx, "VACUUM ANALYZE")
	if err == nil {
		_, err = conn.Exec(ctx, "CHECKPOINT")
	}
	return err
}

func columnsOf(ctx context.Context, conn *pgx.Conn, table string) ([]string, error) {
	rows, err := conn.Query(ctx, `SELECT column_name FROM information_schema.columns
WHERE table_schema = 'public' AND table_name = $1 AND is_generated = 'NEVER' AND is_identity = 'NO' ORDER BY ordinal_position`, table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// feet is what an idle process takes.
type feet struct {
	rss int64
	cpu float64 // of a core
}

func (b *bench) footprint(ctx context.Context, sz size) error {
	entries := slices.Concat(b.ours(), b.onSQLite())
	rows := map[string]feet{}
	for _, e := range entries {
		f, err := b.idle(ctx, e.make(), sz)
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		b.say("  %-28s %s MB, %s %% of a core", e.name, number(float64(f.rss)/1e6), number(f.cpu*100))
		rows[e.name] = f
	}
	b.report.footprint(entries, rows, sz)
	return nil
}

func (b *bench) idle(ctx context.Context, s side, sz size) (f feet, err error) {
	b.x.reset(0)
	if err := s.start(ctx, workload{accounts: sz.accounts, slots: usualSlots, workers: 1}); err != nil {
		return f, errors.Join(err, s.close(ctx))
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	parts := map[string][]*process{"worker": s.parts()["worker"]}
	before := cpuNow(parts)
	if err := pause(ctx, sz.footprint); err != nil {
		return f, err
	}
	f.cpu = float64(cpuSince(parts, before)["worker"]) / float64(sz.footprint)
	f.rss = parts["worker"][0].rss()
	return f, nil
}
