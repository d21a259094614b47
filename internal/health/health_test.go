package health_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost/internal/health"
)

var now = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func before(d time.Duration) time.Time { return now.Add(-d) }

// well is an installation in which everything moves.
func well() health.Facts {
	return health.Facts{
		Now: now, Pulling: true, Resting: false, Accounts: 3, PostedAt: before(time.Second), AcceptedAt: before(time.Second),
		Disks: []health.Disk{{What: "database", Path: "/data", Free: 1 << 40, Total: 1 << 41}},
		Workers: []health.Worker{
			{Name: "w1", Publishes: true, Refreshes: true, Age: 4 * time.Second, StartedAt: before(time.Hour)},
			{Name: "w2", Publishes: true, Refreshes: true, Age: time.Second, StartedAt: before(2 * time.Hour)},
		},
		RoundDue: now.Add(time.Hour),
	}
}

// judgeCase spoils an installation in which everything moves.
type judgeCase struct {
	name  string
	spoil func(*health.Facts)
	want  string // the sentence, or its beginning where it ends in "..."
	do    string // a part of what to do
}

// wellCases are of an installation that does all it can.
func wellCases() []judgeCase {
	return []judgeCase{
		{"well", func(*health.Facts) {}, "PUBLISHING", ""},
		{"idle for a day", func(f *health.Facts) { f.PostedAt, f.AcceptedAt = before(24*time.Hour), before(24*time.Hour) }, "PUBLISHING", ""},
		{"nothing was ever posted", func(f *health.Facts) { f.PostedAt, f.AcceptedAt = time.Time{}, time.Time{} }, "PUBLISHING", ""},
	}
}

// faultCases are of what cannot be reached or is not set up.
func faultCases() []judgeCase {
	return []judgeCase{
		{
			"NATS is away", func(f *health.Facts) {
				*f = health.Facts{Now: now, Accounts: 1, NATS: &health.Fault{Reason: "NATS cannot be reached: why", Do: "check"}}
			},
			"NOT PUBLISHING: NATS cannot be reached: why", "check",
		},
		{
			"the database is away", func(f *health.Facts) {
				f.Database, f.Accounts = &health.Fault{Reason: "the database cannot be reached: why", Do: "check"}, 0
			},
			"NOT PUBLISHING: the database cannot be reached: why", "check",
		},
		{
			"a stream is missing", func(f *health.Facts) {
				f.Setup, f.Workers = &health.Fault{Reason: "stream JETPOST_JOBS is missing", Do: "run: jetpost setup"}, nil
			},
			"NOT PUBLISHING: stream JETPOST_JOBS is missing", "jetpost setup",
		},
	}
}

// roomCases are of disks, accounts and streams that are full.
func roomCases() []judgeCase {
	return []judgeCase{
		{
			"the disk is full", func(f *health.Facts) { f.Disks[0].Free = health.DiskFull - 1 },
			"NOT PUBLISHING: disk: 31 MiB of 2048 GiB are free at /data (database)", "make room",
		},
		{"the disk is nearly full", func(f *health.Facts) { f.Disks[0].Free = health.DiskLow - 1 }, "DEGRADED: disk: 255 MiB of 2048 GiB are free...", "make room"},
		{"the disk has enough", func(f *health.Facts) { f.Disks[0].Free = health.DiskLow }, "PUBLISHING", ""},
		{
			"a worker's disk is full", func(f *health.Facts) {
				f.Workers[1].Disks = []health.Disk{{What: "lifeboat", Path: "/boat", Free: 5, Total: 1 << 30}}
			},
			"NOT PUBLISHING: disk: 5 B of 1024 MiB are free at /boat (lifeboat) of worker w2", "make room",
		},
		{
			"a disk is full that fits no more", func(f *health.Facts) {
				f.Writes = []health.Fault{{Reason: "NATS takes no writes: why", Do: "make room"}}
			},
			"NOT PUBLISHING: NATS takes no writes: why", "make room",
		},
		{
			"NATS' account is full", func(f *health.Facts) { f.StoreUsed, f.StoreMax = 995<<20, 1000<<20 },
			"NOT PUBLISHING: NATS has used 995 MiB of the 1000 MiB that this account may store", "max_file_store",
		},
		{"NATS' account has room", func(f *health.Facts) { f.StoreUsed, f.StoreMax = 900<<20, 1000<<20 }, "PUBLISHING", ""},
		{"the job stream is full", func(f *health.Facts) { f.Jobs.Full = true }, "DEGRADED: the job stream is full: producers are refused", ""},
	}
}

// pauseCases are of pauses, and of the refresh schedule.
func pauseCases() []judgeCase {
	return []judgeCase{
		{
			"paused by hand", func(f *health.Facts) {
				f.Pauses = []health.Pause{{Target: "publish", ByHand: true, Words: "maintenance", Do: "jetpost resume --app"}}
			},
			"PAUSED: maintenance", "jetpost resume --app",
		},
		{
			"paused by hand for a while", func(f *health.Facts) {
				f.Pauses = []health.Pause{{Target: "publish", ByHand: true, Words: "maintenance", Until: now.Add(time.Hour)}}
			},
			"PAUSED until 2026-11-29T1...", "",
		},
		{
			"paused by X", func(f *health.Facts) {
				f.Pauses, f.DueSince, f.PostedAt = []health.Pause{{Target: "publish", Words: "no credits", Until: now.Add(time.Hour), Do: "buy credits"}}, before(time.Hour), before(time.Hour)
			},
			"NOT PUBLISHING: paused until 2026-11-29T1...", "buy credits",
		},
		{
			"paused until a probe", func(f *health.Facts) {
				f.Pauses = []health.Pause{{Target: "publish", Words: "outage", Due: true, Until: before(time.Second)}}
			},
			"NOT PUBLISHING: paused until the next post finds out whether it is over: outage", "",
		},
		{
			"an injected pause of the refresh", func(f *health.Facts) { f.Pauses = []health.Pause{{Target: "refresh", Words: "why", Do: "resume"}} },
			"DEGRADED: refresh is paused: why", "resume",
		},
		{
			"the lanes are paused by nobody", func(f *health.Facts) { f.LanesPaused = true },
			"NOT PUBLISHING: the consumer lanes is paused in NATS, and no app pause holds", "jetpost resume --app",
		},
		{
			"the cron was replaced", func(f *health.Facts) { f.CronDiffers = true },
			"DEGRADED: the refresh schedule in NATS is not the one that was set up", "jetpost setup",
		},
		{"no round was completed", func(f *health.Facts) { f.RoundDue = before(11 * time.Minute) }, "DEGRADED: the refresh round of 2026-11-29T1...", "jetpost refresh"},
		{"a round is under way", func(f *health.Facts) { f.RoundDue = before(9 * time.Minute) }, "PUBLISHING", ""},
	}
}

// silentCases are of workers that give no heartbeat.
func silentCases() []judgeCase {
	return []judgeCase{
		{"no worker", func(f *health.Facts) { f.Workers, f.Pulling = nil, false }, "NOT PUBLISHING: no worker is alive", "jetpost worker, or jetpost up"},
		{
			"all workers fell silent", func(f *health.Facts) { f.Workers[0].Age, f.Workers[1].Age = 40*time.Minute, 16*time.Second },
			"NOT PUBLISHING: no worker is alive: w2 fell silent 16s ago", "jetpost worker",
		},
		{
			"the worker was killed a moment ago", func(f *health.Facts) { f.Workers, f.Pulling, f.Resting = f.Workers[:1], false, true },
			"NOT PUBLISHING: no worker takes work: w1 gave its last heartbeat a moment ago", "jetpost worker",
		},
		{
			"one of two fell silent in mid-thread", func(f *health.Facts) {
				f.Workers[0].Age, f.Holders = 30*time.Second, map[string]int{"w1": 1, "w2": 5}
			},
			"DEGRADED: worker w1 fell silent 30s ago, and holds 1 account", "jetpost workers",
		},
		{
			"a stranger holds accounts", func(f *health.Facts) { f.Holders = map[string]int{"w0": 2, "w2": 5} },
			"DEGRADED: worker w0 gives no heartbeat, and holds 2 accounts", "jetpost workers",
		},
		{"one fell silent and holds nothing", func(f *health.Facts) { f.Workers[0].Age = 30 * time.Second }, "PUBLISHING", ""},
		{
			"workers of a version without heartbeats", func(f *health.Facts) { f.Workers, f.Holders = nil, map[string]int{"w0": 2} },
			"DEGRADED: workers take work, and give no heartbeat", "upgrade",
		},
		{
			"a frozen worker", func(f *health.Facts) {
				f.Workers, f.Resting = []health.Worker{{Name: "w1", Publishes: true, Age: 20 * time.Second}}, false
			},
			"NOT PUBLISHING: no worker is alive: w1 fell silent 20s ago", "jetpost worker",
		},
	}
}

// workerCases are of workers that live and do not do everything.
func workerCases() []judgeCase {
	return []judgeCase{
		{"every slot is used", func(f *health.Facts) { f.Pulling, f.Resting = false, false }, "PUBLISHING", ""},
		{
			"the worker cannot reach its database", func(f *health.Facts) {
				f.Workers[0].Faults, f.Pulling, f.Resting = "ledger: timeout", false, true
			},
			"NOT PUBLISHING: no worker takes work: w1: ledger: timeout", "logs",
		},
		{
			"the database is away, and the workers say so", func(f *health.Facts) {
				f.Database, f.Workers[0].Faults = &health.Fault{Reason: "the database cannot be reached: why"}, "ledger: timeout"
				f.Pulling, f.Resting = false, true
			},
			"NOT PUBLISHING: the database cannot be reached: why", "",
		},
		{"one of two has a fault", func(f *health.Facts) { f.Workers[0].Faults = "sweep: why" }, "DEGRADED: worker w1: sweep: why", "log"},
		{
			"nobody renews tokens", func(f *health.Facts) { f.Workers[0].Refreshes, f.Workers[1].Refreshes = false, false },
			"DEGRADED: no worker renews tokens", "role refresh",
		},
		{
			"nobody publishes", func(f *health.Facts) { f.Workers[0].Publishes, f.Workers[1].Publishes = false, false },
			"NOT PUBLISHING: no worker is alive", "jetpost worker",
		},
	}
}

// accountCases are of accounts to which nothing can be posted.
func accountCases() []judgeCase {
	return []judgeCase{
		{"no account", func(f *health.Facts) { f.Accounts = 0 }, "NOT PUBLISHING: no account is connected", "jetpost accounts connect NAME"},
		{"all grants are lost", func(f *health.Facts) { f.Reauth, f.ReauthDo = 3, "connect" }, "NOT PUBLISHING: every account must be connected again", "connect"},
		{"X refuses all accounts", func(f *health.Facts) { f.Reauth, f.Blocked = 1, 2 }, "NOT PUBLISHING: X refuses every account that is connected", "see why: jetpost accounts list"},
		{"X refuses one account", func(f *health.Facts) { f.Blocked = 1 }, "PUBLISHING", ""},
		{"one grant is lost", func(f *health.Facts) { f.Reauth = 1 }, "PUBLISHING", ""},
	}
}

// waitCases are of jobs, queues and events that wait, the last one beside other causes.
func waitCases() []judgeCase {
	return []judgeCase{
		{
			"all partitions are stalled", func(f *health.Facts) {
				f.Jobs, f.AcceptedAt = health.Jobs{Waiting: 62, Oldest: before(45 * time.Second), Account: "acme", TakenAt: before(time.Minute)}, before(time.Minute)
			},
			"NOT PUBLISHING: the oldest of 62 jobs, of acme, is not accepted after 45s, and no other job is accepted", "logs",
		},
		{
			"one partition is stalled", func(f *health.Facts) { f.Jobs = health.Jobs{Waiting: 62, Oldest: before(5 * time.Minute)} },
			"DEGRADED: the oldest of 62 jobs is not accepted after 5m", "logs",
		},
		{"refusals are progress", func(f *health.Facts) {
			f.Jobs, f.AcceptedAt = health.Jobs{Waiting: 62, Oldest: before(45 * time.Second), TakenAt: before(time.Second)}, time.Time{}
		}, "PUBLISHING", ""},
		{
			"jobs waited for a worker that has just started", func(f *health.Facts) {
				f.Jobs, f.AcceptedAt = health.Jobs{Waiting: 62, Oldest: before(time.Hour)}, before(time.Hour)
				f.Workers = []health.Worker{{Name: "w1", Publishes: true, Refreshes: true, StartedAt: before(5 * time.Second)}}
			},
			"PUBLISHING", "",
		},
		{
			"a worker holds everything", func(f *health.Facts) {
				f.DueAccount, f.DueSince, f.PostedAt = "acme", before(25*time.Second), before(time.Minute)
			},
			"NOT PUBLISHING: acme has been due for 25s, and no worker takes it; nothing is posted", "logs",
		},
		{"a queue waits for a slot", func(f *health.Facts) { f.DueAccount, f.DueSince = "acme", before(45*time.Second) }, "PUBLISHING", ""},
		{
			"a queue waits too long for a slot", func(f *health.Facts) { f.DueAccount, f.DueSince = "acme", before(3*time.Minute) },
			"DEGRADED: acme has been due for 3m, and no worker takes it", "--slots",
		},
		{"events are late", func(f *health.Facts) { f.UntoldSince = before(40 * time.Second) }, "DEGRADED: events are late: the oldest by 40s", "logs"},
		{"an event is on its way", func(f *health.Facts) { f.UntoldSince = before(20 * time.Second) }, "PUBLISHING", ""},
		{
			"the worst comes first, and among these the cause", func(f *health.Facts) {
				f.CronDiffers, f.Workers, f.Pulling, f.Jobs, f.AcceptedAt = true, nil, false, health.Jobs{Waiting: 1, Oldest: before(time.Hour)}, time.Time{}
				f.Pauses = []health.Pause{{Target: "publish", ByHand: true, Words: "why"}}
			},
			"NOT PUBLISHING: no worker is alive", "start one",
		},
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, test := range slices.Concat(
		wellCases(), faultCases(), roomCases(), pauseCases(), silentCases(), workerCases(), accountCases(), waitCases(),
	) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := well()
			test.spoil(&f)
			v := health.Judge(f)
			got := v.Sentence()
			if begin, is := strings.CutSuffix(test.want, "..."); is && strings.HasPrefix(got, begin) {
				got = test.want
			}
			if got != test.want || !strings.Contains(v.Do, test.do) || (v.State == health.Publishing) != (len(v.Causes) == 0) {
				t.Errorf("got  %q, do: %q\nwant %q, do: %q", v.Sentence(), v.Do, test.want, test.do)
			}
		})
	}
}

// The verdict has all causes, not only the worst.
func TestJudgeTellsAll(t *testing.T) {
	t.Parallel()
	f := well()
	f.CronDiffers, f.Workers, f.Pulling = true, nil, false
	f.Pauses = []health.Pause{{Target: "publish", ByHand: true, Words: "why"}}
	var codes []string
	for _, cause := range health.Judge(f).Causes {
		codes = append(codes, string(cause.State)+" "+cause.Code)
	}
	if diff := cmp.Diff([]string{"NOT PUBLISHING no_worker", "PAUSED paused", "DEGRADED schedule_differs"}, codes); diff != "" {
		t.Errorf("causes (-want +got):\n%s", diff)
	}
}
