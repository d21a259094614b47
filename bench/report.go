package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// report is the page that a run writes. It holds nothing that was not measured.
type report struct {
	head     string
	sections []section
	plots    []plot
	best     map[string]float64 // posts a second of each side, by the first table
	skipped  []string
}

type section struct {
	title, text string
	header      []string
	rows        [][]string
}

func (r *report) add(s section, plots ...plot) {
	r.sections = append(r.sections, s)
	r.plots = append(r.plots, plots...)
}

// machine describes where and how the run was made.
func (r *report) machine(ctx context.Context, b *bench, o options) {
	ask := func(program string, args ...string) string {
		out, err := output(ctx, ".", program, args...)
		if err != nil {
			return "unknown"
		}
		return strings.Split(out, "\n")[0]
	}
	bin, _ := postgresBinaries() // it has run
	command := "./scripts/bench"
	if o.quick {
		command += " quick"
	}
	if o.against != "" {
		command += " --against " + o.against
	}
	if o.only != "" {
		command += " --only '" + o.only + "'"
	}
	lines := []string{
		"# Benchmarks", "",
		"Written by `" + command + "`; do not edit. What each figure is, and what each side does not guarantee, stands in [bench/README.md](../bench/README.md).", "",
		"| | |", "|---|---|",
		"| date | " + b.began.UTC().Format("2006-01-02 15:04 MST") + ", " + time.Since(b.began).Round(time.Second).String() + " |",
		"| machine | " + cpuModel() + ", " + fmt.Sprint(runtime.NumCPU()) + " cores, " + memory() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ", kernel " + ask("uname", "-r") + ", load as it began and ended " + b.load + " and " + loadAverage() + " |",
		"| jetpost | " + b.revision + againstText(b.againstName) + " |",
		"| servers | " + ask(filepath.Join(bin, "postgres"), "--version") + ", " + ask(b.natsProgram, "--version") + ", " + redisVersion(ask("redis-server", "--version")) + " |",
		"| libraries | " + libraries() + " |", "",
	}
	if len(r.skipped) > 0 {
		lines = append(lines, "Left out, since the run had no time left: "+strings.Join(r.skipped, ", ")+".", "")
	}
	r.head = strings.Join(lines, "\n") + "\n"
}

func againstText(name string) string {
	if name == "" {
		return ""
	}
	return ", against " + name
}

func redisVersion(text string) string {
	fields := strings.Fields(text)
	if len(fields) < 3 {
		return "Redis " + text
	}
	return "Redis " + strings.TrimPrefix(fields[2], "v=")
}

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, is := strings.Cut(line, ":"); is && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}

func memory() string {
	text, _ := os.ReadFile("/proc/meminfo")
	var kb float64
	if _, err := fmt.Sscanf(string(text), "MemTotal: %f kB", &kb); err != nil {
		return "unknown memory"
	}
	return number(kb/1e6) + " GB"
}

func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// libraries names the peers as this program was built with them.
func libraries() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	names := map[string]string{
		"github.com/riverqueue/river": "River", "github.com/hibiken/asynq": "Asynq",
		"github.com/dbos-inc/dbos-transact-golang": "DBOS Transact", "github.com/jackc/pgx/v5": "pgx", "github.com/nats-io/nats.go": "nats.go",
	}
	found := []string{runtime.Version()}
	for _, m := range info.Deps {
		if name := names[m.Path]; name != "" {
			found = append(found, name+" "+m.Version)
		}
	}
	return strings.Join(found, ", ")
}

// write prints the page, or writes it with its plots into a directory.
func (r *report) write(printed io.Writer, dir string) error {
	if dir == "" {
		_, err := io.WriteString(printed, r.page())
		return err
	}
	plots := filepath.Join(dir, plotDir)
	if err := os.MkdirAll(plots, 0o755); err != nil { //nolint:gosec // they are to be read
		return err
	}
	for _, p := range r.plots {
		if err := os.WriteFile(filepath.Join(plots, p.file), []byte(p.svg), 0o644); err != nil { //nolint:gosec // as above
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "BENCHMARKS.md"), []byte(r.page()), 0o644) //nolint:gosec // as above
}

const plotDir = "benchmarks"

func (r *report) page() string {
	var out strings.Builder
	out.WriteString(r.head)
	for _, p := range r.plots {
		fmt.Fprintf(&out, "![%s](%s/%s)\n\n", p.title, plotDir, p.file)
	}
	for _, s := range r.sections {
		fmt.Fprintf(&out, "## %s\n\n", s.title)
		if s.text != "" {
			fmt.Fprintf(&out, "%s\n\n", s.text)
		}
		fmt.Fprintf(&out, "| %s |\n|%s\n", strings.Join(s.header, " | "), strings.Repeat("---|", len(s.header)))
		for _, row := range s.rows {
			fmt.Fprintf(&out, "| %s |\n", strings.Join(row, " | "))
		}
		out.WriteString("\n")
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

// ratio is a figure in parts of another, "" where there is none.
func ratio(of, to float64) string {
	if to == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", of/to)
}

func rateOf(samples []sample) spread { return spreadOf(samples, sample.rate) }

const notTaken = "-"

func (r *report) singles(entries []entry, found, counted map[string][]sample, sz size) {
	r.best = map[string]float64{}
	s := section{
		title: fmt.Sprintf("%s single posts of %d accounts", thousands(int64(sz.jobs)), sz.accounts),
		text: fmt.Sprintf("All jobs are handed in at once to one worker with %d slots, and X answers at once. Median of %d rounds, the sides in turn (lowest–highest). "+
			"CPU is that of all rounds; the counts are those of another round of %s jobs, in which PostgreSQL is reached through a proxy that counts.",
			usualSlots, sz.rounds, thousands(int64(sz.counted))),
		header: []string{"side", "posts/s", "to the floor", "CPU ms a post", "of these", "transactions", "synced commits", "WAL bytes", "statements", "round trips", "NATS messages", "faults"},
	}
	bars := []bar{}
	floor := rateOf(found[entries[0].name]).median
	for _, e := range entries {
		samples := found[e.name]
		rate := rateOf(samples)
		r.best[e.name] = rate.median
		row := []string{e.name, rate.String(), ratio(rate.median, floor), spreadOf(samples, sample.allCPU).String(), cpuParts(samples)}
		row = append(row, countCells(counted[e.name])...)
		s.rows = append(s.rows, append(row, faultsOf(samples, counted[e.name])))
		bars = append(bars, bar{e.name, rate})
	}
	r.add(s, barPlot("singles.svg", s.title+", posts/s", bars))
}

// cpuParts divides the CPU of a post among the processes, in a fixed order.
func cpuParts(samples []sample) string {
	var cells []string
	for _, part := range []string{"worker", "PostgreSQL", "NATS", "Redis"} {
		if _, is := samples[0].cpu[part]; is {
			cells = append(cells, part+" "+number(spreadOf(samples, func(s sample) float64 { return s.cpuMillis(part) }).median))
		}
	}
	return strings.Join(cells, ", ")
}

func countCells(samples []sample) []string {
	if len(samples) == 0 {
		return []string{notTaken, notTaken, notTaken, notTaken, notTaken, notTaken}
	}
	s := samples[0]
	each := func(n int64) string { return number(float64(n) / float64(s.posts)) }
	messages := notTaken
	if s.counts.Messages > 0 {
		messages = each(s.counts.Messages)
	}
	return []string{each(s.counts.Transactions), each(s.counts.Syncs), each(s.counts.WALBytes), each(s.counts.Statements), each(s.counts.RoundTrips), messages}
}

func faultsOf(lists ...[]sample) string {
	var all sample
	for _, samples := range lists {
		for _, s := range samples {
			all.twice += s.twice
			all.astray += s.astray
			all.cut = all.cut || s.cut
			all.ordered = s.ordered
		}
	}
	if text := all.faults(); text != "" {
		return strings.TrimPrefix(text, ", ")
	}
	if !all.ordered {
		return "order not kept"
	}
	return "none"
}

func (r *report) compared(what string, entries []entry, found map[string][]sample) {
	s := section{title: what, header: []string{"side", "posts/s", "to the floor", "CPU ms a post", "of these", "faults"}}
	floor := rateOf(found[entries[0].name]).median
	for _, e := range entries {
		samples := found[e.name]
		rate := rateOf(samples)
		s.rows = append(s.rows, []string{e.name, rate.String(), ratio(rate.median, floor), spreadOf(samples, sample.allCPU).String(), cpuParts(samples), faultsOf(samples)})
	}
	r.add(s)
}

func (r *report) scaling(entries []entry, workers []int, found map[string]map[int]sample) {
	s := section{title: "More workers", text: "The first table's jobs, with so many worker processes on this one machine.", header: []string{"side", "workers", "posts/s", "to one", "CPU ms a post"}}
	var lines []line
	for _, e := range entries {
		l := line{name: e.name}
		for _, n := range workers {
			got := found[e.name][n]
			s.rows = append(s.rows, []string{e.name, fmt.Sprint(n), number(got.rate()), ratio(got.rate(), found[e.name][workers[0]].rate()), number(got.allCPU())})
			l.points = append(l.points, point{float64(n), got.rate()})
		}
		lines = append(lines, l)
	}
	r.add(s, linePlot("workers.svg", "Posts/s by workers", "workers", lines))
}

func (r *report) latency(entries []entry, found map[string]latencies) {
	s := section{
		title:  "From handing a job in to X, in ms",
		text:   "Idle: each job meets a worker that has nothing to do. Half load: jobs come at random, half as many a second as the side did in the first table.",
		header: []string{"side", "idle p50", "idle p99", "half load, jobs/s", "p50", "p99"},
	}
	var bars []bar
	for _, e := range entries {
		l := found[e.name]
		idle := quantile(l.idle.late, half)
		s.rows = append(s.rows, []string{
			e.name, millis(idle), millis(quantile(l.idle.late, hundredth)), number(l.rate),
			millis(quantile(l.half.late, half)), millis(quantile(l.half.late, hundredth)),
		})
		at := float64(idle.Microseconds()) / 1000
		bars = append(bars, bar{e.name, spread{at, at, float64(quantile(l.idle.late, hundredth).Microseconds()) / 1000}})
	}
	r.add(s, barPlot("latency.svg", "From a job to its call at X, idle, ms (p50; whisker to p99)", bars))
}

func (r *report) publishAt(entries []entry, found map[string][]lateness) {
	s := section{
		title:  "publish_at: how late, in ms",
		text:   "With so many jobs accepted that are due in a month. Where fewer are pending than were meant, no more were accepted in the time that a run has.",
		header: []string{"side", "pending", "accepted in", "p50", "p99", "early", "worker's memory, MB"},
	}
	var lines []line
	for _, e := range entries {
		l := line{name: e.name}
		for _, got := range found[e.name] {
			s.rows = append(s.rows, []string{
				e.name, thousands(int64(got.pending)), got.accepted.Round(100 * time.Millisecond).String(), millis(quantile(got.late, half)),
				millis(quantile(got.late, hundredth)), fmt.Sprint(got.early), number(float64(got.rss) / 1e6),
			})
			l.points = append(l.points, point{float64(got.pending), float64(quantile(got.late, hundredth).Microseconds()) / 1000})
		}
		lines = append(lines, l)
	}
	r.add(s, linePlot("publish-at.svg", "Lateness by jobs pending, p99 in ms", "pending", lines))
}

func (r *report) refresh(entries []entry, sz size, found map[string]map[int]float64, exchange time.Duration) {
	naive := 1 / exchange.Seconds()
	s := section{
		title: "Tokens refreshed",
		text: fmt.Sprintf("A round of %s tokens that are all due; X takes %s for an exchange. One exchange after another, as a loop would, is at most %s tokens/s.",
			thousands(int64(sz.tokens)), exchange, number(naive)),
		header: []string{"side", "workers", "tokens/s", "to one"},
	}
	for _, e := range entries {
		for _, n := range sz.workers {
			rate := found[e.name][n]
			s.rows = append(s.rows, []string{e.name, fmt.Sprint(n), number(rate), ratio(rate, found[e.name][sz.workers[0]])})
		}
	}
	r.add(s)
}

func (r *report) media(entries []entry, found map[string][2][]time.Duration, sz size) {
	text := time.Duration(sz.threadOf) * sz.slow
	images := text + sz.slow
	s := section{
		title: fmt.Sprintf("A thread of %d posts against its limit", sz.threadOf),
		text: fmt.Sprintf("Each call of X takes %s. The limit is the calls that can only follow each other: %d posts, %s; with %d images each, the first upload before them, %s.",
			sz.slow, sz.threadOf, text, fourImages, images),
		header: []string{"side", "text, s", "to the limit", fmt.Sprintf("%d images each, s", fourImages), "to the limit"},
	}
	for _, e := range entries {
		plain, with := spreadOf(found[e.name][0], time.Duration.Seconds), spreadOf(found[e.name][1], time.Duration.Seconds)
		s.rows = append(s.rows, []string{e.name, plain.String(), ratio(plain.median, text.Seconds()), with.String(), ratio(with.median, images.Seconds())})
	}
	r.add(s)
}

func (r *report) growth(entries []entry, rows []int, found map[string]map[int]sample) {
	s := section{title: "A ledger that has grown", text: "Bursts beside so many requests that are finished.", header: []string{"side", "finished requests", "posts/s", "to the first", "CPU ms a post", "of these"}}
	var lines []line
	for _, e := range entries {
		l := line{name: e.name}
		for _, n := range rows {
			got := found[e.name][n]
			s.rows = append(s.rows, []string{e.name, thousands(int64(n)), number(got.rate()), ratio(got.rate(), found[e.name][rows[0]].rate()), number(got.allCPU()), cpuParts([]sample{got})})
			l.points = append(l.points, point{float64(n), got.rate()})
		}
		lines = append(lines, l)
	}
	r.add(s, linePlot("growth.svg", "Posts/s by finished requests in the ledger", "requests", lines))
}

func (r *report) footprint(entries []entry, found map[string]feet, sz size) {
	s := section{
		title:  "An idle process",
		text:   fmt.Sprintf("With %d accounts and nothing to do, over %s; PostgreSQL and nats-server beside a worker are not in it.", sz.accounts, sz.footprint),
		header: []string{"side", "memory, MB", "% of a core"},
	}
	for _, e := range entries {
		f := found[e.name]
		s.rows = append(s.rows, []string{e.name, number(float64(f.rss) / 1e6), number(f.cpu * 100)})
	}
	r.add(s)
}
