package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// counts do not depend on the machine.
type counts struct {
	Transactions, Syncs, WALBytes, Messages, Statements, RoundTrips int64
}

func (c counts) minus(o counts) counts {
	return counts{
		c.Transactions - o.Transactions, c.Syncs - o.Syncs, c.WALBytes - o.WALBytes,
		c.Messages - o.Messages, c.Statements - o.Statements, c.RoundTrips - o.RoundTrips,
	}
}

// sample is what one round of a side has shown.
type sample struct {
	posts   int
	wall    time.Duration
	cut     bool                     // it was ended before all jobs were done
	cpu     map[string]time.Duration // by part
	counts  counts                   // all zero where they were not taken
	late    []time.Duration          // of each post, where that is measured
	twice   int                      // posts that came more than once
	astray  int                      // posts that came before one of their account's that stands before them
	ordered bool                     // whether the side promises none of these
}

func (s sample) rate() float64 { return float64(s.posts) / s.wall.Seconds() }

// cpuMillis is the CPU time of a part for each post of the run, in milliseconds.
func (s sample) cpuMillis(part string) float64 {
	return float64(s.cpu[part].Microseconds()) / 1000 / float64(s.posts)
}

func (s sample) allCPU() (ms float64) {
	for part := range s.cpu {
		ms += s.cpuMillis(part)
	}
	return ms
}

const (
	// mostTime bounds one round: what is not done by then is not waited for.
	mostTime = 45 * time.Second
	// noProgress is how long a round may stand still, after which the side is
	// taken to have failed.
	noProgress = 30 * time.Second
)

// burst hands all jobs in at once to a side that waits for them, and measures
// until X has the last post.
func (b *bench) burst(ctx context.Context, s side, w workload, jobs []*job) (out sample, err error) {
	b.x.reset(0)
	if err := s.start(ctx, w); err != nil {
		return out, errors.Join(err, s.close(ctx))
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	b.x.reset(w.delay)
	before, err := s.counts(ctx)
	if err != nil {
		return out, err
	}
	parts := s.parts()
	used := cpuNow(parts)
	began := time.Now()
	all := b.x.expect(postsOf(jobs))
	if err := s.submit(ctx, jobs); err != nil {
		return out, err
	}
	cut, err := b.await(ctx, all, began)
	if err != nil {
		return out, err
	}
	out = b.callLog(jobs, s)
	out.cut = cut
	out.wall = lastArrival(b.x).Sub(began)
	if err := s.settle(ctx); err != nil {
		return out, err
	}
	out.cpu = cpuSince(parts, used)
	if !w.counted {
		return out, nil
	}
	if err := s.finish(); err != nil {
		return out, err
	}
	after, err := s.counts(ctx)
	out.counts = after.minus(before)
	return out, err
}

// await waits until all posts have come, or for as long as a round may take.
func (b *bench) await(ctx context.Context, all <-chan struct{}, began time.Time) (cut bool, err error) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	seen, moved := 0, time.Now()
	for {
		select {
		case <-all:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		case <-ticker.C:
			if n := b.x.posts(); n != seen {
				seen, moved = n, time.Now()
			}
			switch {
			case time.Since(began) > mostTime && seen > 0:
				return true, nil
			case time.Since(moved) > noProgress:
				return false, fmt.Errorf("no post for %s, after %d", noProgress, seen)
			}
		}
	}
}

func lastArrival(x *stubX) (last time.Time) {
	came, _, _ := x.arrivals()
	for _, at := range came {
		if at.After(last) {
			last = at
		}
	}
	return last
}

// callLog compares what X has with what was asked for.
func (b *bench) callLog(jobs []*job, s side) (out sample) {
	_, order, twice := b.x.arrivals()
	out.posts, out.twice, out.ordered = len(order), len(twice), s.ordered()
	place := map[string]int{}
	account := map[string]string{}
	for _, j := range jobs {
		for i := range j.Posts {
			place[j.text(i)] = len(place)
			account[j.text(i)] = j.Account
		}
	}
	last := map[string]int{}
	for _, text := range order {
		if n, known := last[account[text]]; known && place[text] < n {
			out.astray++
		}
		last[account[text]] = max(last[account[text]], place[text])
	}
	return out
}

func cpuNow(parts map[string][]*process) map[string]time.Duration {
	used := map[string]time.Duration{}
	for name, processes := range parts {
		for _, p := range processes {
			used[name] += p.cpu()
		}
	}
	return used
}

func cpuSince(parts map[string][]*process, before map[string]time.Duration) map[string]time.Duration {
	used := cpuNow(parts)
	for name := range used {
		used[name] -= before[name]
	}
	return used
}

// stream hands jobs in one by one, so long apart on average, and measures how long
// after that X has each. Where the gap is zero the next one waits for the last.
func (b *bench) stream(ctx context.Context, s side, jobs []*job, gap time.Duration) (out sample, err error) {
	b.x.reset(0)
	all := b.x.expect(len(jobs))
	began := time.Now()
	hand := b.oneByOne
	if gap > 0 {
		hand = b.poisson(gap)
	}
	if err := hand(ctx, s, jobs); err != nil {
		return out, err
	}
	if out.cut, err = b.await(ctx, all, time.Now()); err != nil {
		return out, err
	}
	callLog := b.callLog(jobs, s)
	callLog.cut = out.cut
	out = callLog
	out.wall = time.Since(began)
	came, _, _ := b.x.arrivals()
	for _, j := range jobs {
		if at, is := came[j.text(0)]; is {
			out.late = append(out.late, at.Sub(j.sent))
		}
	}
	return out, nil
}

// oneByOne hands each job to a worker that has nothing else to do.
func (b *bench) oneByOne(ctx context.Context, s side, jobs []*job) error {
	for i, j := range jobs {
		if err := s.submit(ctx, []*job{j}); err != nil {
			return err
		}
		if err := b.reach(ctx, i+1); err != nil {
			return err
		}
		// An idle worker is one that has put everything away.
		if err := pause(ctx, idleGap); err != nil {
			return err
		}
	}
	return nil
}

// poisson hands jobs in as many independent people would: what comes at once is
// what makes a tail.
func (b *bench) poisson(gap time.Duration) func(context.Context, side, []*job) error {
	return func(ctx context.Context, s side, jobs []*job) error {
		group, ctx := errgroup.WithContext(ctx)
		next := time.Now()
		for _, j := range jobs {
			next = next.Add(time.Duration(rand.ExpFloat64() * float64(gap)))
			if err := pause(ctx, time.Until(next)); err != nil {
				break // the group knows why
			}
			group.Go(func() error { return s.submit(ctx, []*job{j}) })
		}
		return group.Wait()
	}
}

const idleGap = 50 * time.Millisecond // between jobs that meet an idle worker

// reach waits until X has so many posts.
func (b *bench) reach(ctx context.Context, posts int) error {
	for began := time.Now(); b.x.posts() < posts; {
		if time.Since(began) > noProgress {
			return fmt.Errorf("X has %d posts after %s, want %d", b.x.posts(), noProgress, posts)
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// quantile is the smallest value that so large a part of all does not exceed.
func quantile(values []time.Duration, q float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// spread is the median of some figures, the lowest and the highest.
type spread struct{ median, low, high float64 }

func spreadOf[T any](samples []T, figure func(T) float64) spread {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = figure(s)
	}
	if len(values) == 0 {
		return spread{}
	}
	slices.Sort(values)
	mid := len(values) / 2
	median := values[mid]
	if len(values)%2 == 0 {
		median = (values[mid-1] + values[mid]) / 2
	}
	return spread{median: median, low: values[0], high: values[len(values)-1]}
}

func (s spread) String() string {
	if s.low == s.high {
		return number(s.median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.median), number(s.low), number(s.high))
}

// number prints as many digits as a measurement is worth.
func number(f float64) string {
	switch {
	case f == 0:
		return "0"
	case math.Abs(f) >= 1000:
		return thousands(int64(math.Round(f)))
	case math.Abs(f) >= 100:
		return fmt.Sprintf("%.0f", f)
	case math.Abs(f) >= 10:
		return fmt.Sprintf("%.1f", f)
	default:
		return fmt.Sprintf("%.2f", f)
	}
}

func thousands(n int64) string {
	if n < 0 {
		return "-" + thousands(-n)
	}
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

func millis(d time.Duration) string { return number(float64(d.Microseconds()) / 1000) }
