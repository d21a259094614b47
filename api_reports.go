package jetpost

import "time"

// The bodies of operations on the whole installation.

// StatusReport tells whether posts go out and, if not, why.
type StatusReport struct {
	// Publishing tells that they do.
	Publishing bool `json:"publishing"`
	// Summary is one sentence for people: the verdict's state and reason.
	Summary string `json:"summary"`
	// State is the verdict: PUBLISHING, or what it is instead.
	State string `json:"state"`
	// Code is that of the worst cause, for programs.
	Code string `json:"code,omitempty"`
	// Reason is that of the worst cause, for people.
	Reason string `json:"reason,omitempty"`
	// Do is what a person can do about it.
	Do string `json:"do,omitempty"`
	// Causes are all that keep posts from going out as they should, the worst first.
	Causes []StatusCause `json:"causes,omitempty"`
	// Installation names what it is about.
	Installation string `json:"installation"`
	// AppPauses of the app that are in force.
	AppPauses []Pause `json:"app_pauses,omitempty"`
	// Requests counts by state; absent where the database cannot be reached.
	Requests map[State]int `json:"requests,omitempty"`
	// Refused counts the messages refused within the last hour.
	Refused int `json:"refused_last_hour"`
	// Reauth names the accounts that must be connected again.
	Reauth []string `json:"reauth_required,omitempty"`
	// Paused are the accounts that somebody has paused, or that X refuses.
	Paused []AccountPaused `json:"paused,omitempty"`
	// Late is what would go out late; absent where nothing would.
	Late *Late `json:"late,omitempty"`
	// Blocked are accounts whose queue waits until a person acts: some of BlockedTotal.
	Blocked []Blocked `json:"blocked,omitempty"`
	// BlockedTotal counts them all.
	BlockedTotal int `json:"blocked_total"`
	// QueuedJobs counts the jobs that no worker has accepted yet; absent where NATS
	// cannot be asked.
	QueuedJobs *uint64 `json:"queued_jobs,omitempty"`
	// LanesPaused tells that NATS hands out no wake-ups.
	LanesPaused bool `json:"lanes_paused"`
	// Workers are those that live, and those that fell silent within the hour.
	Workers []WorkerReport `json:"workers,omitempty"`
	// LastAccepted is when the ledger last accepted a request.
	LastAccepted time.Time `json:"last_accepted_at,omitzero"`
	// LastPost is when a post last went live.
	LastPost time.Time `json:"last_post_at,omitzero"`
	// Unwalled tells that producers share the workers' NATS account.
	Unwalled bool `json:"unwalled,omitempty"`
	// FailingHooks counts the webhooks whose last delivery failed, and those that were
	// disabled.
	FailingHooks int `json:"failing_hooks,omitempty"`
	// LastRefresh is the last refresh round that completed.
	LastRefresh *RefreshSummary `json:"last_refresh,omitempty"`
	// LastRefreshAt is when that was.
	LastRefreshAt time.Time `json:"last_refresh_at,omitzero"`
}

// StatusCause is one thing that keeps an installation from publishing.
type StatusCause struct {
	// State is what it makes of the installation.
	State string `json:"state"`
	// Code is for programs.
	Code string `json:"code"`
	// Reason is for people.
	Reason string `json:"reason"`
	// Do is what a person can do about it.
	Do string `json:"do,omitempty"`
}

// Late is what would go out late, as far as nothing of it was sent.
type Late struct {
	// Requests counts them.
	Requests int `json:"requests"`
	// Since is when the first of them was due.
	Since time.Time `json:"since"`
}

// Blocked is an account whose queue waits for a person, by its first such request.
type Blocked struct {
	// Account is its name.
	Account string `json:"account"`
	// ID is the request's.
	ID string `json:"id"`
	// State is the request's.
	State State `json:"state"`
	// Code is why it waits.
	Code Code `json:"code"`
	// Waiting counts the requests that are due in the queue, with this one.
	Waiting int `json:"waiting"`
	// Do is what a person can do.
	Do string `json:"do"`
}

// Workers are those that live, and those that fell silent within the hour.
type Workers struct {
	// Workers are told by their last heartbeats.
	Workers []WorkerReport `json:"workers"`
}

// WorkerReport is a worker by its last heartbeat.
type WorkerReport struct {
	// Worker is its name.
	Worker string `json:"worker"`
	// Host is the machine that it runs on.
	Host string `json:"host"`
	// Version is the program's.
	Version string `json:"version"`
	// Roles are publish, refresh or both.
	Roles []string `json:"roles"`
	// Slots is how many accounts it works on at once.
	Slots int `json:"slots"`
	// Used is how many it works on now.
	Used int `json:"slots_used"`
	// StartedAt is when it began.
	StartedAt time.Time `json:"started_at"`
	// Faults is what keeps it from its work; absent where nothing does.
	Faults string `json:"faults,omitempty"`
	// Disks are those on which it keeps something.
	Disks []Disk `json:"disks,omitempty"`
	// Alive tells that the heartbeat is young.
	Alive bool `json:"alive"`
	// AgeSeconds is how long ago it was.
	AgeSeconds float64 `json:"last_sign_seconds"`
}

// Disk is the room on which something of the installation lies.
type Disk struct {
	// What lies there: database, lifeboat or NATS.
	What string `json:"what"`
	// Path is a directory on it.
	Path string `json:"path"`
	// What is left.
	Free uint64 `json:"free_bytes"`
	// Its size.
	Total uint64 `json:"total_bytes"`
}

// LimitsRequest asks what keeps calls from X.
type LimitsRequest struct {
	// Account lets only its windows and the app's through; absent shows all.
	Account string `json:"account,omitempty"`
	// Limit is how many windows are listed at most, 1 to MaxPage: exhausted ones first, then
	// the app's. Absent does not limit them.
	Limit int `json:"limit,omitempty"`
}

// Limits are what keeps calls from X now, as far as the workers have told.
type Limits struct {
	// Now is when they were read.
	Now time.Time `json:"now"`
	// X is the state of the circuit breaker that all workers share.
	X Breaker `json:"x"`
	// Pauses are the app pauses in force.
	Pauses []LimitPause `json:"pauses"`
	// Windows are X's rate windows that it has told of lately.
	Windows []RateWindow `json:"windows"`
	// MoreWindows counts those beyond Limit.
	MoreWindows int `json:"more_windows,omitempty"`
	// Spending is what the month has cost, while a monthly limit is set; absent where the
	// ledger was not asked.
	Spending *MonthSpending `json:"spending,omitempty"`
}

// Breaker is the state of the circuit breaker that all workers share.
type Breaker struct {
	// State is reachable or unreachable.
	State string `json:"state"`
	// Since is when X became unreachable.
	Since time.Time `json:"since,omitzero"`
	// AskedAgain is when one call checks whether X is back.
	AskedAgain time.Time `json:"asked_again,omitzero"`
}

// LimitPause is a pause of the app in force.
type LimitPause struct {
	// Target is publish, refresh or media.
	Target string `json:"target"`
	// Code is its cause.
	Code Code `json:"code"`
	// Detail is its cause in X's words or a person's.
	Detail string `json:"detail,omitempty"`
	// Since is when it began.
	Since time.Time `json:"since"`
	// Until is its end; absent where a person has to end it, or where X is asked.
	Until time.Time `json:"until,omitzero"`
	// AskedAgain is when one worker finds out whether it is over, if nobody knows its
	// end.
	AskedAgain time.Time `json:"asked_again,omitzero"`
	// WaitSeconds is the wait until then: if it is not over, the next one is twice as long.
	WaitSeconds float64 `json:"wait_seconds,omitempty"`
	// Do is what a person can do.
	Do string `json:"do,omitempty"`
}

// RateWindow is one of X's rate windows.
type RateWindow struct {
	// Account is whose calls it counts; absent where it counts all of the app.
	Account string `json:"account,omitempty"`
	// Endpoint is a method and a path pattern.
	Endpoint string `json:"endpoint"`
	// Kind is 15min, user_24h or app_24h.
	Kind string `json:"kind"`
	// Limit counts calls; 0 is not known.
	Limit int `json:"limit"`
	// Remaining counts the calls that are left.
	Remaining int `json:"remaining"`
	// Available tells that X accepts a call now. False: the window is exhausted until Reset.
	Available bool `json:"available"`
	// Reset is the end of the present window; absent if the last one is over and the next
	// call begins a new one.
	Reset time.Time `json:"reset,omitzero"`
	// LengthSeconds is how long such a window was seen to last; absent where it was not.
	LengthSeconds float64 `json:"length_seconds,omitempty"`
	// Source is x where X has said so, and estimated where it did not: then the limit
	// is the documented one, and the workers have counted.
	Source string `json:"source"`
	// ToldAt is when a worker told it to the others; absent where none has.
	ToldAt time.Time `json:"told_at,omitzero"`
}

// ForecastRequest asks when everything that waits is out.
type ForecastRequest struct {
	// Add counts posts by account that are thought to be sent now.
	Add map[string]int `json:"add,omitempty"`
	// Limit is how many accounts are listed at most, 1 to MaxPage, the last to be done
	// first. Absent does not limit them.
	Limit int `json:"limit,omitempty"`
}

// Forecast is when the queues of all accounts are out.
type Forecast struct {
	// Now is when it was made.
	Now time.Time `json:"now"`
	// Posts go out, without a person, until DoneAt.
	Posts int `json:"posts"`
	// DoneAt is when the last of them does.
	DoneAt time.Time `json:"done_at,omitzero"`
	// Windows is the most of X's rate windows of one kind that the posts of an
	// account, or of the app, fall into; the present one is the first.
	Windows int `json:"windows"`
	// AtEarliest tells that an app pause whose end nobody knows is in the way: DoneAt counts
	// on the next try.
	AtEarliest bool `json:"at_the_earliest"`
	// Estimated tells that DoneAt rests on windows that X has not told of.
	Estimated bool `json:"estimated"`
	// BlockedPosts wait for a person.
	BlockedPosts int `json:"blocked_posts"`
	// BlockedAccounts have such.
	BlockedAccounts int `json:"blocked_accounts"`
	// Expired counts requests whose expires_at passes before their turn.
	Expired int `json:"expired_requests"`
	// Notes are what else there is to know of it, a sentence each.
	Notes []string `json:"notes,omitempty"`
	// Accounts are those that have something to send, the last to be done first.
	Accounts []AccountForecast `json:"accounts"`
	// MoreAccounts counts those beyond Limit.
	MoreAccounts int `json:"more_accounts,omitempty"`
}

// AccountForecast is when an account's queue is out.
type AccountForecast struct {
	// Account is its name.
	Account string `json:"account"`
	// Requests counts the unfinished ones.
	Requests int `json:"requests"`
	// Posts counts those of them that are still to be sent.
	Posts int `json:"posts"`
	// Windows counts X's windows of 15 minutes that its posts fall into.
	Windows int `json:"windows"`
	// DoneAt is when its last post goes out; absent where the queue is blocked.
	DoneAt time.Time `json:"done_at,omitzero"`
	// WaitsFor is the first window that the queue has to wait for, as it stands now;
	// absent where it waits for none.
	WaitsFor *RateWindow `json:"waits_for,omitempty"`
	// Held is why its first request does not go on before a time.
	Held *Reason `json:"held,omitempty"`
	// Blocked is why the queue does not move until a person acts.
	Blocked *QueueBlock `json:"blocked,omitempty"`
	// Expired counts requests whose expires_at passes before their turn.
	Expired int `json:"expired_requests,omitempty"`
	// Estimated tells that the queue waits for a window that X has not told of.
	Estimated bool `json:"estimated"`
}

// QueueBlock is what a queue waits for a person about.
type QueueBlock struct {
	// Code is why.
	Code Code `json:"code"`
	// ID is the request's, where it is about one.
	ID string `json:"id,omitempty"`
	// Do is what a person can do.
	Do string `json:"do"`
	// Posts wait with it: its own, and those behind it.
	Posts int `json:"posts"`
}

// Series is how much has gone out lately, and how much waits.
type Series struct {
	// Now is when it was counted.
	Now time.Time `json:"now"`
	// Published are the last SeriesHours hours of the clock, the present one last.
	Published []HourCount `json:"published"`
	// DueHour counts the unfinished requests that are due within an hour, up to Limit.
	DueHour int `json:"due_hour"`
	// DueDay counts those that are due within 24 hours, up to Limit.
	DueDay int `json:"due_day"`
	// Held counts the held requests by reason, up to Limit in all.
	Held map[Code]int `json:"held,omitempty"`
	// CostTodayUSD is what X will charge, by estimate, for the requests that were accepted
	// since midnight in UTC and have begun, in US dollars.
	CostTodayUSD float64 `json:"cost_today_usd"`
	// CostMonthUSD is the same since the first of the month.
	CostMonthUSD float64 `json:"cost_month_usd"`
	// Limit bounds each count.
	Limit int `json:"limit"`
}

// SeriesHours is how many hours a Series goes back.
const SeriesHours = 24

// HourCount counts what happened in one hour.
type HourCount struct {
	// Start is the begin of the hour.
	Start time.Time `json:"start"`
	// Posts went live in it.
	Posts int `json:"posts"`
}

// DeadLetterGroups are what failed or was refused, by reason.
type DeadLetterGroups struct {
	// Groups are the largest first.
	Groups []DeadLetterGroup `json:"groups"`
	// Limit bounds what is counted of each kind: the latest.
	Limit int `json:"limit"`
}

// DeadLetterGroup is what failed or was refused for one reason.
type DeadLetterGroup struct {
	// Kind is refused or failed.
	Kind DeadLetterKind `json:"kind"`
	// Code is the reason.
	Code Code `json:"code"`
	// Count is how many there are.
	Count int `json:"count"`
	// FirstSeen is when the first of them failed or was refused.
	FirstSeen time.Time `json:"first_seen_at"`
	// LastSeen is when the last of them did.
	LastSeen time.Time `json:"last_seen_at"`
}

// AccountVerify compares an account's posts with its timeline on X, which X charges for.
type AccountVerify struct {
	// OperationID makes a repeat be answered as the first call was, and cost nothing.
	OperationID string `json:"operation_id,omitempty"`
	// Since lets only posts through that were sent then or later; absent means all that X
	// shows, the newest 3,200.
	Since time.Time `json:"since,omitzero"`
	// DryRun asks X nothing, and tells what it will charge.
	DryRun bool `json:"dry_run,omitempty"`
}

// Verification is what a comparison has found.
type Verification struct {
	// Account is the one that was looked at.
	Account string `json:"account"`
	// Posts counts those in the ledger that are looked for.
	Posts int `json:"posts"`
	// MaxPosts is the most that X may show.
	MaxPosts int `json:"max_posts"`
	// CostEstimateUSD is what X charges for showing Posts, in US dollars.
	CostEstimateUSD float64 `json:"cost_estimate_usd"`
	// MaxCostUSD is what X charges for showing MaxPosts, in US dollars.
	MaxCostUSD float64 `json:"max_cost_usd"`
	// DryRun is true where X was not asked.
	DryRun bool `json:"dry_run,omitempty"`
	// Checked counts the ledger's posts that were compared.
	Checked int `json:"checked"`
	// Unchecked counts those that X's timeline may not show: older than its end, of the last
	// minute, or in a community.
	Unchecked int `json:"unchecked"`
	// Read counts the posts that X showed.
	Read int `json:"read"`
	// Findings are the posts that deviate.
	Findings []PostFinding `json:"findings"`
}

// PostFinding is one post that deviates.
type PostFinding struct {
	// Kind is how ledger and timeline differ.
	Kind Deviation `json:"kind"`
	// ID is the request's; absent of a foreign post.
	ID string `json:"id,omitempty"`
	// Index is the post's place in its request, from 0; absent of a foreign post.
	Index *int `json:"index,omitempty"`
	// PostID is that of the post on X or, of a missing one, where it was.
	PostID string `json:"post_id"`
	// URL leads to it.
	URL string `json:"url"`
	// Text is X's, or ours.
	Text string `json:"text"`
}

// Deviation is how ledger and timeline differ.
type Deviation string

// The deviations.
const (
	PostMissing   Deviation = "missing"   // live in the ledger, but not on X
	PostDoubled   Deviation = "doubled"   // on X a second time: the same text at the same place
	PostUndeleted Deviation = "undeleted" // deleted in the ledger, but still on X
	PostChanged   Deviation = "changed"   // its text on X differs
	PostForeign   Deviation = "foreign"   // on X, but not sent by jetpost
)

// Wrong tells whether the finding is a fault, if only jetpost posts for the account and
// nobody deletes posts by hand.
func (d Deviation) Wrong() bool { return d == PostMissing || d == PostDoubled || d == PostUndeleted }

// Count counts the findings of a kind.
func (v Verification) Count(kind Deviation) (n int) {
	for _, f := range v.Findings {
		if f.Kind == kind {
			n++
		}
	}
	return n
}

// AccountLimit sets what an account's posts of a month may cost by estimate.
type AccountLimit struct {
	// OperationID makes the change take effect once, however often it is asked for.
	OperationID string `json:"operation_id,omitempty"`
	// MonthlyUSD is the limit in US dollars; 0 removes it, so that the workers' own holds.
	MonthlyUSD float64 `json:"monthly_usd"`
}

// MonthSpending is what posts of a month have cost by estimate, in US dollars, with what is
// set aside for requests that have begun. Only what began under a limit is counted.
type MonthSpending struct {
	// Account is the one; absent of the app.
	Account string `json:"account,omitempty"`
	// MonthlyUSD is the account's own limit; absent where it has none.
	MonthlyUSD float64 `json:"monthly_usd,omitempty"`
	// SpentUSD is of the account, or of the app.
	SpentUSD float64 `json:"spent_usd"`
	// Billed says of the app that X has refused a call for want of money, so that its month
	// counts as spent.
	Billed bool `json:"billed,omitempty"`
	// MonthEnds is when counting begins anew.
	MonthEnds time.Time `json:"month_ends"`
}
