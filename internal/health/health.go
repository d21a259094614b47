package health

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// The limits by which facts are judged.
const (
	// AliveWithin is how old a heartbeat may be: two in a row may be lost.
	AliveWithin = 15 * time.Second
	// stuckAfter is how long a job or a lane may wait while nothing moves.
	stuckAfter = 20 * time.Second
	// slowAfter is how long one may wait while others move.
	slowAfter = time.Minute
	// untoldAfter is how long an event may be late. The sweeper publishes it within
	// seconds.
	untoldAfter = 30 * time.Second
	// roundWithin is how long after its time a refresh round may be completed: batches
	// begin exchanges for two minutes.
	roundWithin = 10 * time.Minute

	// DiskFull is the free space below which a disk counts as full: a database and a
	// NATS that write meanwhile need space to grow. DiskLow is the space below which
	// the verdict warns.
	DiskFull = 32 << 20  // bytes
	DiskLow  = 256 << 20 // bytes
	// storeFull is the part of its storage that NATS' account may use: a hundredth
	// stays free.
	storeFull = 100
)

// State is the verdict in one or two words.
type State string

// The states, from good to bad.
const (
	Publishing    State = "PUBLISHING"
	Degraded      State = "DEGRADED"       // posts go out; something needs a person, or soon will
	Paused        State = "PAUSED"         // somebody has paused all posts
	NotPublishing State = "NOT PUBLISHING" // posts do not go out
)

func (s State) rank() int {
	return slices.Index([]State{Publishing, Degraded, Paused, NotPublishing}, s)
}

// Cause is one thing that keeps an installation from PUBLISHING.
type Cause struct {
	State  State  `json:"state"`
	Code   string `json:"code"`   // stable, for programs
	Reason string `json:"reason"` // for people
	Do     string `json:"do,omitempty"`
}

// Verdict is the worst state, with the first of its causes, and all causes, the worst
// first.
type Verdict struct {
	State  State   `json:"state"`
	Code   string  `json:"code,omitempty"`
	Reason string  `json:"reason,omitempty"`
	Do     string  `json:"do,omitempty"`
	Causes []Cause `json:"causes,omitempty"`
}

// Sentence is the verdict in one line.
func (v Verdict) Sentence() string {
	switch {
	case v.Reason == "":
		return string(v.State)
	case v.State == Paused && strings.HasPrefix(v.Reason, "until "):
		return string(v.State) + " " + v.Reason
	}
	return string(v.State) + ": " + v.Reason
}

// Fault is something that does not answer, or not as it should.
type Fault struct {
	Reason string
	Do     string
}

// Pause is an app pause that holds.
type Pause struct {
	Target string // publish, refresh or media
	ByHand bool
	Words  string    // why
	Until  time.Time // zero: until somebody resumes, or X is found to take calls again
	// ProbeAt is when X is next asked whether its cause is over; zero if X is not
	// asked.
	ProbeAt time.Time
	Due     bool // the next post finds out whether it is over
	Do      string
}

// Worker is a worker by its last heartbeat.
type Worker struct {
	Name      string
	Host      string
	Publishes bool
	Refreshes bool
	Age       time.Duration // of the heartbeat
	StartedAt time.Time
	Faults    string
	Disks     []Disk
}

// Alive reports whether the worker is alive, by its last heartbeat.
func (w Worker) Alive() bool { return w.Age <= AliveWithin }

// Disk is the free space of a file system.
type Disk struct {
	What, Path  string
	Free, Total uint64 // bytes
}

// Jobs are those that no worker has accepted yet.
type Jobs struct {
	Waiting uint64
	// Oldest is when NATS stored the oldest one, and Account is its account, if known.
	Oldest  time.Time
	Account string
	// Full says that the stream refuses more.
	Full bool
	// TakenAt is when NATS last saw one acknowledged.
	TakenAt time.Time
}

// Facts are what is judged. All times are by one clock, that of Now. Facts that need
// something that does not answer are zero.
type Facts struct {
	Now time.Time
	// NATS and Database say why they cannot be asked, and Writes why one of them takes
	// no writes; nil if they work.
	NATS, Database *Fault
	Writes         []Fault
	// Setup is what is missing or different in NATS.
	Setup *Fault
	Disks []Disk
	// StoreUsed of StoreMax bytes are those of NATS' account; no limit where 0.
	StoreUsed, StoreMax uint64

	Pauses      []Pause
	LanesPaused bool
	// CronDiffers says that the refresh schedule in NATS is not the one that was set
	// up.
	CronDiffers bool

	Workers []Worker
	// Holders counts the accounts that each worker holds, by the ledger.
	Holders map[string]int
	// Pulling says that a pull request for jobs or wake-ups waits at NATS, and Resting
	// that one should, because a consumer has nothing in flight.
	Pulling, Resting bool

	Jobs       Jobs
	AcceptedAt time.Time
	// DueSince is since when the oldest lane has waited that is due and that no worker
	// holds.
	DueSince   time.Time
	DueAccount string
	PostedAt   time.Time
	// UntoldSince is the oldest change whose event is not published.
	UntoldSince time.Time

	Accounts int
	Reauth   int    // of the accounts: those that must be connected again
	ReauthDo string // what to do about them
	Blocked  int    // of the others: those that X refuses

	// RoundDue is when the first refresh round that is not completed was due; zero if
	// unknown.
	RoundDue time.Time
}

// Judge makes one verdict of the facts. The first cause comes first; later ones may be
// its effects.
func Judge(f Facts) Verdict {
	var causes []Cause
	for _, check := range []func(Facts) []Cause{
		reach, disks, setup, pauses, workers, accounts, intake, lanes, events, refreshes,
	} {
		causes = append(causes, check(f)...)
	}
	slices.SortStableFunc(causes, func(a, b Cause) int { return cmp.Compare(b.State.rank(), a.State.rank()) })
	v := Verdict{State: Publishing, Causes: causes}
	if len(causes) > 0 {
		v.State, v.Code, v.Reason, v.Do = causes[0].State, causes[0].Code, causes[0].Reason, causes[0].Do
	}
	return v
}

func reach(f Facts) (causes []Cause) {
	if f.NATS != nil {
		causes = append(causes, Cause{NotPublishing, "nats_unreachable", f.NATS.Reason, f.NATS.Do})
	}
	if f.Database != nil {
		causes = append(causes, Cause{NotPublishing, "database_unreachable", f.Database.Reason, f.Database.Do})
	}
	return causes
}

// disks judges those of this machine and of the workers, and the write errors of NATS
// and the database.
func disks(f Facts) (causes []Cause) {
	told := map[string]bool{}
	check := func(where string, d Disk) {
		if d.Free >= DiskLow || told[where+d.Path] {
			return
		}
		told[where+d.Path] = true
		c := Cause{
			State: Degraded, Code: "disk_low", Do: "make room, or move it to a larger disk",
			Reason: fmt.Sprintf("disk: %s of %s are free at %s (%s)%s", size(d.Free), size(d.Total), d.Path, d.What, where),
		}
		if d.Free < DiskFull {
			c.State, c.Code = NotPublishing, "disk_full"
		}
		causes = append(causes, c)
	}
	for _, d := range f.Disks {
		check("", d)
	}
	for _, w := range f.Workers {
		for _, d := range w.Disks {
			if w.Alive() && !told[d.Path] {
				check(" of worker "+w.Name, d)
			}
		}
	}
	for _, fault := range f.Writes {
		causes = append(causes, Cause{NotPublishing, "no_writes", fault.Reason, fault.Do})
	}
	if f.StoreMax > 0 && f.StoreUsed >= f.StoreMax-f.StoreMax/storeFull {
		causes = append(causes, Cause{
			NotPublishing, "nats_storage_full", fmt.Sprintf("NATS has used %s of the %s that this account may store", size(f.StoreUsed), size(f.StoreMax)),
			"raise max_file_store of nats-server, or the account's limit",
		})
	}
	return causes
}

func setup(f Facts) []Cause {
	if f.Setup == nil {
		return nil
	}
	return []Cause{{NotPublishing, "not_set_up", f.Setup.Reason, f.Setup.Do}}
}

func pausedWords(when string) string {
	switch {
	case when == "":
		return "paused"
	case strings.HasPrefix(when, "and "):
		return "paused, " + when
	default:
		return "paused " + when
	}
}

func pauses(f Facts) (causes []Cause) {
	for _, pause := range f.Pauses {
		when := ""
		switch {
		case pause.Due:
			when = "until the next post finds out whether it is over"
		case !pause.ProbeAt.IsZero():
			when = "and X is asked again at " + pause.ProbeAt.Local().Format(time.RFC3339)
		case !pause.Until.IsZero():
			when = "until " + pause.Until.Local().Format(time.RFC3339)
		}
		c := Cause{State: NotPublishing, Code: "app_paused", Reason: pausedWords(when) + ": " + pause.Words, Do: pause.Do}
		switch {
		case pause.Target != "publish":
			c.State, c.Code, c.Reason = Degraded, pause.Target+"_paused", pause.Target+" is "+c.Reason
		case pause.ByHand:
			c.State, c.Code, c.Reason = Paused, "paused", pause.Words
			if when != "" {
				c.Reason = when + ": " + pause.Words
			}
		}
		causes = append(causes, c)
	}
	if f.LanesPaused && !f.paused() {
		causes = append(causes, Cause{
			NotPublishing, "lanes_paused", "the consumer lanes is paused in NATS, and no app pause holds",
			"workers correct that within seconds; else: jetpost resume --app",
		})
	}
	return causes
}

// paused reports whether an app pause holds all posts.
func (f Facts) paused() bool {
	return slices.ContainsFunc(f.Pauses, func(p Pause) bool { return p.Target == "publish" })
}

const startOne = "start one: jetpost worker, or jetpost up"

func workers(f Facts) (causes []Cause) {
	if f.NATS != nil || f.Setup != nil {
		return nil // no worker can give a heartbeat
	}
	var publish, refresh []Worker
	var silent *Worker
	for _, w := range f.Workers {
		switch {
		case !w.Alive():
			if silent == nil || w.Age < silent.Age {
				silent = &w
			}
			continue
		case w.Publishes:
			publish = append(publish, w)
		}
		if w.Refreshes {
			refresh = append(refresh, w)
		}
	}
	switch {
	case len(f.Workers) == 0 && f.Pulling:
		// Workers of a version without heartbeats take work all the same.
		return []Cause{{Degraded, "workers_unknown", "workers take work, and give no heartbeat", "finish the upgrade of the workers"}}
	case len(publish) == 0:
		c := Cause{NotPublishing, "no_worker", "no worker is alive", startOne}
		if silent != nil {
			c.Reason += fmt.Sprintf(": %s fell silent %s ago", silent.Name, ago(silent.Age))
		}
		return []Cause{c}
	case f.Database == nil && !f.Pulling && f.Resting:
		w := publish[0]
		c := Cause{
			NotPublishing, "no_work_taken", fmt.Sprintf("no worker takes work: %s gave its last heartbeat a moment ago", w.Name),
			"see the workers' logs, or " + startOne,
		}
		if w.Faults != "" {
			c.Reason = fmt.Sprintf("no worker takes work: %s: %s", w.Name, w.Faults)
		}
		causes = append(causes, c)
	}
	if len(refresh) == 0 {
		causes = append(causes, Cause{Degraded, "no_refresh", "no worker renews tokens", "start one with the role refresh: jetpost worker"})
	}
	for _, w := range f.Workers {
		// If the database is away, that is the cause.
		if w.Alive() && w.Faults != "" && f.Database == nil {
			causes = append(causes, Cause{Degraded, "worker_fault", "worker " + w.Name + ": " + w.Faults, "see its log"})
		}
	}
	return append(causes, holders(f)...)
}

// holders are silent workers that hold accounts.
func holders(f Facts) (causes []Cause) {
	for _, name := range slices.Sorted(maps.Keys(f.Holders)) {
		since := "gives no heartbeat"
		at := slices.IndexFunc(f.Workers, func(w Worker) bool { return w.Name == name })
		if at >= 0 {
			if f.Workers[at].Alive() {
				continue
			}
			since = "fell silent " + ago(f.Workers[at].Age) + " ago"
		}
		accounts := "1 account"
		if n := f.Holders[name]; n != 1 {
			accounts = fmt.Sprintf("%d accounts", n)
		}
		causes = append(causes, Cause{
			Degraded, "worker_silent", fmt.Sprintf("worker %s %s, and holds %s", name, since, accounts),
			"wait for the end of its leases, then others take them; see jetpost workers",
		})
	}
	return causes
}

func accounts(f Facts) []Cause {
	switch {
	case f.Database != nil:
		return nil
	case f.Accounts == 0:
		return []Cause{{NotPublishing, "no_account", "no account is connected", "connect one: jetpost accounts connect NAME"}}
	case f.Reauth == f.Accounts:
		return []Cause{{NotPublishing, "all_reauth", "every account must be connected again", f.ReauthDo}}
	case f.Reauth+f.Blocked == f.Accounts:
		return []Cause{{NotPublishing, "all_blocked", "X refuses every account that is connected", "see why: jetpost accounts list"}}
	}
	return nil
}

// begun is since when a worker could have taken what waits.
func (f Facts) begun(since time.Time) time.Time {
	var first time.Time
	for _, w := range f.Workers {
		if w.Alive() && w.Publishes && (first.IsZero() || w.StartedAt.Before(first)) {
			first = w.StartedAt
		}
	}
	if first.After(since) {
		return first
	}
	return since
}

// moved reports whether that happened a moment ago.
func (f Facts) moved(at ...time.Time) bool {
	return slices.ContainsFunc(at, func(t time.Time) bool { return !t.IsZero() && f.Now.Sub(t) <= stuckAfter })
}

const seeLogs = "see the workers' logs, and jetpost workers"

func intake(f Facts) (causes []Cause) {
	if f.Jobs.Full {
		causes = append(causes, Cause{Degraded, "jobs_full", "the job stream is full: producers are refused", "see that workers accept jobs, or give the stream more room"})
	}
	wait := f.Now.Sub(f.begun(f.Jobs.Oldest))
	if f.Jobs.Waiting == 0 || f.Jobs.Oldest.IsZero() || wait <= stuckAfter {
		return causes
	}
	whose := ""
	if f.Jobs.Account != "" {
		whose = ", of " + f.Jobs.Account + ","
	}
	oldest := fmt.Sprintf("the oldest of %d jobs%s is not accepted after %s", f.Jobs.Waiting, whose, ago(f.Now.Sub(f.Jobs.Oldest)))
	if f.moved(f.Jobs.TakenAt, f.AcceptedAt) {
		if wait > slowAfter {
			causes = append(causes, Cause{Degraded, "intake_slow", oldest, seeLogs})
		}
		return causes
	}
	return append(causes, Cause{NotPublishing, "intake_stuck", oldest + ", and no other job is accepted", seeLogs})
}

func lanes(f Facts) []Cause {
	wait := f.Now.Sub(f.begun(f.DueSince))
	if f.DueSince.IsZero() || f.paused() || wait <= stuckAfter {
		return nil
	}
	due := fmt.Sprintf("%s has been due for %s, and no worker takes it", f.DueAccount, ago(f.Now.Sub(f.DueSince)))
	switch {
	case !f.moved(f.PostedAt):
		return []Cause{{NotPublishing, "lanes_stuck", due + "; nothing is posted", seeLogs}}
	case wait > slowAfter:
		return []Cause{{Degraded, "lanes_slow", due, "start more workers, or give them more --slots"}}
	}
	return nil
}

func events(f Facts) []Cause {
	if f.UntoldSince.IsZero() || f.Now.Sub(f.begun(f.UntoldSince)) <= untoldAfter {
		return nil
	}
	return []Cause{{Degraded, "events_late", "events are late: the oldest by " + ago(f.Now.Sub(f.UntoldSince)), seeLogs}}
}

func refreshes(f Facts) (causes []Cause) {
	if f.CronDiffers {
		causes = append(causes, Cause{
			Degraded, "schedule_differs", "the refresh schedule in NATS is not the one that was set up",
			"workers correct that within a minute; else: jetpost setup",
		})
	}
	if !f.RoundDue.IsZero() && f.Now.Sub(f.RoundDue) > roundWithin {
		causes = append(causes, Cause{
			Degraded, "refresh_late", "the refresh round of " + f.RoundDue.Local().Format(time.RFC3339) + " is not completed",
			"see the workers' logs; refresh what is due with: jetpost refresh",
		})
	}
	return causes
}

func ago(d time.Duration) string {
	if d < time.Minute {
		return max(d, 0).Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

func size(n uint64) string {
	const kib = 1 << 10
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if n < 10*kib || unit == "GiB" {
			return fmt.Sprintf("%d %s", n, unit)
		}
		n /= kib
	}
	return ""
}
