package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// Ledger is one fresh database with its schema in place.
type Ledger struct {
	// Open opens it, as another worker. The test's cleanup closes the store.
	Open func(t *testing.T, sealer *store.Sealer) store.Store
	// Dump returns every stored byte, so that the suite can search for what must not be
	// there.
	Dump func(t *testing.T) []byte
	// Exec runs a statement of plain SQL, to damage what is stored.
	Exec func(t *testing.T, statement string)
}

const (
	// longLease outlives every test, and every time that a test passes.
	longLease = 30 * 24 * time.Hour
	// shortLease is over at once.
	shortLease = time.Microsecond
	// nearEnd and backoff pace the claims of tokens.
	nearEnd = 2 * time.Minute
	backoff = time.Minute
)

// part is one test of the suite.
type part struct {
	name string
	run  func(*testing.T, *bundle)
}

// Run runs the suite. It calls fresh for every test.
func Run(t *testing.T, fresh func(t *testing.T) Ledger) {
	for _, test := range slices.Concat(requestTests(), laneTests(), accountTests(), tokenTests(), upkeepTests()) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, setup(t, fresh(t)))
		})
	}
}

// requestTests are of jobs, and of requests from their acceptance to their end.
func requestTests() []part {
	return []part{
		{"AcceptConcurrently", acceptConcurrently},
		{"AcceptHeld", acceptHeld},
		{"AcceptIdentity", acceptIdentity},
		{"AcceptClaims", acceptClaims},
		{"AcceptMany", acceptMany},
		{"AcceptManyAtOnce", acceptManyAtOnce},
		{"AcceptManyFenced", acceptManyFenced},
		{"AcceptManyRefusesTexts", acceptManyRefusesTexts},
		{"AcceptManyFindsTexts", acceptManyFindsTexts},
		{"AcceptOrder", acceptOrder},
		{"AcceptRecord", acceptRecord},
		{"AcceptScheduled", acceptScheduled},
		{"Cancel", cancel},
		{"CancelWhilePublishing", cancelWhilePublishing},
		{"EndHolds", endHolds},
		{"HoldQueue", holdQueue},
		{"Erase", erase},
		{"EraseFenced", eraseFenced},
		{"Hooks", hooks},
		{"HooksBounded", hooksBounded},
		{"HooksRenamed", hooksRenamed},
		{"HooksRotate", hooksRotate},
		{"JobFailed", jobFailed},
		{"Leases", leases},
		{"LateWords", lateWords},
		{"ListRequests", listRequests},
		{"ListPages", listPages},
		{"Calendar", calendar},
		{"MarkManyDelivered", markManyDelivered},
		{"MediaUsers", mediaUsers},
		{"Prune", prune},
		{"PruneBesideAccept", pruneBesideAccept},
		{"PruneKeeps", pruneKeeps},
		{"PruneUnread", pruneUnread},
		{"Reconcile", reconcile},
		{"Doubt", doubtRestored},
		{"DoubtSettled", doubtSettled},
		{"DoubtAbsent", doubtAbsent},
		{"Rebuild", rebuild},
		{"RebuildLostBody", rebuildLostBody},
		{"Refuse", refuse},
		{"RefuseForgets", refuseForgets},
		{"ReplayFailed", replayFailed},
		{"ReplayHeld", replayHeld},
		{"ReplayNeverBegun", replayNeverBegun},
		{"ReplayNothing", replayNothing},
		{"Reschedule", reschedule},
		{"RescheduleEarlier", rescheduleEarlier},
		{"RescheduleNothing", rescheduleNothing},
		{"RescheduleWhileWorkedOn", rescheduleWhileWorkedOn},
		{"Resolve", resolve},
		{"SameText", sameText},
		{"SameTextConcurrently", sameTextConcurrently},
		{"SameTextReadAtLast", sameTextReadAtLast},
		{"OutboxPending", outboxPending},
		{"Waiting", waiting},
		{"AnchorPost", anchor},
	}
}

// laneTests are of lanes and what they hold.
func laneTests() []part {
	return []part{
		{"Begin", begin},
		{"BeginIsNoNews", beginIsNoNews},
		{"BeginNotRunnable", beginNotRunnable},
		{"ClaimLane", claimLane},
		{"ClaimLaneConcurrently", claimLaneConcurrently},
		{"ClaimLaneCountsLostClaims", claimLaneCountsLostClaims},
		{"ConcludeAfterTakeover", concludeAfterTakeover},
		{"ConcludeAfterTakeoverRefused", concludeAfterTakeoverRefused},
		{"ConcludeEndlessHold", concludeEndlessHold},
		{"ConcludeFailed", concludeFailed},
		{"ConcludeHeld", concludeHeld},
		{"ConcludeOutOfDate", concludeOutOfDate},
		{"ConcludePending", concludePending},
		{"ConcludeUnknown", concludeUnknown},
		{"DueLanes", dueLanes},
		{"ExtendLane", extendLane},
		{"Follow", follow},
		{"FollowOutOfDate", followOutOfDate},
		{"Fences", fences},
		{"Lanes", lanes},
		{"SnapshotHead", snapshotHead},
		{"Spending", spending},
		{"SpendingConcurrently", spendingConcurrently},
		{"SpendingLimits", spendingLimits},
		{"MarksWithTheNextStep", marksWithTheNextStep},
		{"NextAfterClaim", nextAfterClaim},
		{"NextAfterDoubt", nextAfterDoubt},
		{"NextAfterPosted", nextAfterPosted},
		{"NextMissesNothing", nextMissesNothing},
		{"Posted", posted},
		{"PostedAdopted", postedAdopted},
		{"PostedAfterTakeover", postedAfterTakeover},
		{"PostedAfterUnknown", postedAfterUnknown},
		{"PostedTaken", postedTaken},
		{"ReleaseLane", releaseLane},
		{"Reserve", reserve},
		{"ReserveConcurrently", reserveConcurrently},
		{"Rounds", rounds},
		{"SnapshotOutOfDate", snapshotOutOfDate},
		{"StepsTogether", stepsTogether},
		{"Unpublish", unpublish},
		{"UnpublishHold", unpublishHold},
		{"UnpublishLateAnswer", unpublishLateAnswer},
		{"UnpublishNothing", unpublishNothing},
		{"UnpublishUnfinished", unpublishUnfinished},
		{"UnpublishWhilePublishing", unpublishWhilePublishing},
		{"UnpublishedIsGone", unpublishedIsGone},
		{"Uploaded", uploaded},
		{"UploadedTogether", uploadedTogether},
	}
}

// accountTests are of access to accounts and operations.
func accountTests() []part {
	return []part{
		{"APITokens", apiTokens},
		{"APITokensForgotten", apiTokensForgotten},
		{"APITokenOperation", apiTokenOperation},
		{"Audits", audits},
		{"LoginAttempts", loginAttempts},
		{"Sessions", sessions},
		{"UserOperation", userOperation},
		{"Users", users},
		{"LinkAttemptConcurrently", linkAttemptConcurrently},
		{"LinkAttemptLease", linkAttemptLease},
		{"LinkAttemptNewest", linkAttemptNewest},
		{"LinkAttemptOnce", linkAttemptOnce},
		{"LinkAttemptTimes", linkAttemptTimes},
		{"LinkForgets", linkForgets},
		{"LinkSecrets", linkSecrets},
		{"Links", links},
		{"Operate", operate},
		{"OperateConcurrently", operateConcurrently},
		{"OperateFails", operateFails},
		{"OperateForgets", operateForgets},
		{"OperateParts", operateParts},
	}
}

// tokenTests are of tokens, and of the accounts that they belong to.
func tokenTests() []part {
	return []part{
		{"Accounts", accounts},
		{"AccountsAfter", accountsAfter},
		{"BatchDone", batchDone},
		{"CheckKeys", checkKeys},
		{"CheckKeysAfterRotation", checkKeysAfterRotation},
		{"ClaimDueConcurrently", claimDueConcurrently},
		{"ClaimDueOnceARound", claimDueOnceARound},
		{"ClaimDueOrder", claimDueOrder},
		{"ClaimDueRule", claimDueRule},
		{"ClaimDueUnopenable", claimDueUnopenable},
		{"ClaimInDoubt", claimInDoubt},
		{"ClaimInDoubtAgain", claimInDoubtAgain},
		{"ClaimToken", claimToken},
		{"ClaimTokenConcurrently", claimTokenConcurrently},
		{"Disconnect", disconnect},
		{"DisconnectBusy", disconnectBusy},
		{"DisconnectInDoubt", disconnectInDoubt},
		{"ForgetPair", forgetPair},
		{"Identity", identity},
		{"ImportAccount", importAccount},
		{"ImportAccountAgain", importAccountAgain},
		{"ImportAccountBusy", importAccountBusy},
		{"ImportAccountConsented", importAccountConsented},
		{"ImportAccountTaken", importAccountTaken},
		{"ImportAccountUnchanged", importAccountUnchanged},
		{"ImportOverHalfARow", importOverHalfARow},
		{"ImportOverMissingKey", importOverMissingKey},
		{"KeyState", keyState},
		{"KeyStateMixed", keyStateMixed},
		{"KeyStateOfKeyCheck", keyStateOfKeyCheck},
		{"LostKey", lostKey},
		{"Notices", notices},
		{"OpenRound", openRound},
		{"OpenRoundCountsLeased", openRoundCountsLeased},
		{"OpenRoundForgets", openRoundForgets},
		{"Rotate", rotate},
		{"RotateBehind", rotateBehind},
		{"RotateRaced", rotateRaced},
		{"RotateUnopenable", rotateUnopenable},
		{"SaveToken", saveToken},
		{"SaveTokenAfterLease", saveTokenAfterLease},
		{"SaveTokenEndsHolds", saveTokenEndsHolds},
		{"SaveTokenFailure", saveTokenFailure},
		{"SaveTokensTogether", saveTokensTogether},
		{"TokenUnopenable", tokenUnopenable},
		{"TokensAreSealed", tokensAreSealed},
		{"TryLease", tryLease},
	}
}

// upkeepTests are of pauses, and of what the upkeep reads.
func upkeepTests() []part {
	return []part{
		{"ExpireConcurrently", expireConcurrently},
		{"ExpireLate", expireLate},
		{"ExpireWhileWorkedOn", expireWhileWorkedOn},
		{"Keep", keep},
		{"KeepConcurrently", keepConcurrently},
		{"PauseAccount", pauseAccount},
		{"PauseReplaced", pauseReplaced},
		{"BlockAccount", blockAccount},
		{"Refused", refused},
		{"Progress", progress},
		{"ProgressBlocked", progressBlocked},
		{"ProgressBlockedCodes", progressBlockedCodes},
		{"ProgressEmpty", progressEmpty},
		{"ProgressStanding", progressStanding},
		{"Fits", fits},
		{"RemoveAccount", removeAccount},
		{"RenameAccount", renameAccount},
		{"Series", series},
		{"CountCodes", countCodes},
		{"ResumeAccount", resumeAccount},
		{"Sent", sent},
		{"PauseChanges", pauseChanges},
	}
}

// bundle is what every test starts with: a ledger opened by one worker, with
// the account acme in it.
type bundle struct {
	ledger Ledger
	keys   string
	st     store.Store
	now    time.Time // of the start, by the clock that judges leases
}

const acme = "acme"

func setup(t *testing.T, ledger Ledger) *bundle {
	t.Helper()
	b := &bundle{ledger: ledger, keys: store.GenerateKey().Reveal()}
	b.st = b.open(t, b.keys)
	b.now = b.clock(t)
	b.add(t, acme)
	return b
}

// open opens the ledger once more, with those keys.
func (b *bundle) open(t *testing.T, keys string) store.Store {
	t.Helper()
	sealer, err := store.NewSealer(keys)
	testkit.Must(t, err)
	return b.ledger.Open(t, sealer)
}

// clock reads the time by which leases are judged, in the precision in which it is
// stored.
func (b *bundle) clock(t *testing.T) time.Time {
	t.Helper()
	now, err := b.st.Clock(t.Context())
	testkit.Must(t, err)
	return now.UTC().Truncate(time.Microsecond)
}

// pair makes a token pair whose values name the account and are long enough to be
// searched for.
func pair(name string, expiresAt time.Time) store.Pair {
	return store.Pair{
		Access:    secret.New("access-of-" + name + "-in-the-clear"),
		Refresh:   secret.New("refresh-of-" + name + "-in-the-clear"),
		ExpiresAt: expiresAt,
		Scope:     "tweet.write offline.access",
	}
}

// add imports an account whose token is due for no refresh.
func (b *bundle) add(t *testing.T, name string) {
	t.Helper()
	b.addToken(t, name, b.now, b.now.Add(2*time.Hour))
}

// addToken imports an account with a token that was obtained and expires at those
// times.
func (b *bundle) addToken(t *testing.T, name string, got, expiresAt time.Time) {
	t.Helper()
	result, err := b.st.ImportAccount(t.Context(), store.Import{
		Name: name, XUserID: "id-" + name, Username: "user_" + name, Pair: pair(name, expiresAt), Now: got,
	})
	testkit.Must(t, err)
	equal(t, "import of "+name, result, store.AccountCreated)
}

// acceptance is a request of acme with that many posts.
func (b *bundle) acceptance(id string, posts int) store.Acceptance {
	return store.Acceptance{
		Request: jetpost.Request{Account: acme, ID: id, Posts: make([]jetpost.Post, posts)},
		Body:    []byte("body of " + id),
		Digest:  []byte("digest of " + id),
		Now:     b.now,
	}
}

func (b *bundle) accept(t *testing.T, in store.Acceptance) {
	t.Helper()
	decision, err := b.st.Accept(t.Context(), in)
	testkit.Must(t, err)
	equal(t, "decision", decision, store.Accepted)
}

// acceptAll accepts requests of one post each.
func (b *bundle) acceptAll(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		b.accept(t, b.acceptance(id, 1))
	}
}

// claim claims acme's lane for a worker that stays alive, as soon as the earlier lease
// has run out.
func (b *bundle) claim(t *testing.T) store.Claim { return b.claimFor(t, longLease) }

// claimAndDie claims acme's lane for a worker that makes no more calls.
func (b *bundle) claimAndDie(t *testing.T) store.Claim { return b.claimFor(t, shortLease) }

func (b *bundle) claimFor(t *testing.T, lease time.Duration) (lane store.Claim) {
	t.Helper()
	testkit.Eventually(t, "claim of the lane", func() bool {
		got, ok, err := b.st.ClaimLane(t.Context(), acme, "worker", lease, b.clock(t))
		testkit.Must(t, err)
		lane = got
		return ok
	})
	return lane
}

func (b *bundle) snapshot(t *testing.T, lane store.Claim, now time.Time) store.Snapshot {
	t.Helper()
	snapshot, err := b.st.Snapshot(t.Context(), lane, now)
	testkit.Must(t, err)
	return snapshot
}

// head returns the id of the request at the front, or "".
func (b *bundle) head(t *testing.T, lane store.Claim, now time.Time) string {
	t.Helper()
	if head := b.snapshot(t, lane, now).Head; head != nil {
		return head.ID
	}
	return ""
}

func (b *bundle) release(t *testing.T, lane store.Claim, wakeAt time.Time) {
	t.Helper()
	ok, err := b.st.ReleaseLane(t.Context(), lane, b.snapshot(t, lane, b.now).Generation, wakeAt, b.clock(t))
	testkit.Must(t, err)
	equal(t, "released", ok, true)
}

func (b *bundle) intent(post int) store.Intent {
	return store.Intent{
		Post: post, ParentID: fmt.Sprintf("parent-%d", post), TextHash: []byte{1, byte(post)}, MediaIDs: []string{"m1", "m2"},
		NotAfter: b.now.Add(15 * time.Second), Now: b.now, Lease: longLease,
	}
}

func (b *bundle) begin(t *testing.T, lane store.Claim, id string, post int) {
	t.Helper()
	intent := b.intent(post)
	intent.Now = b.dueTime(t, id)
	testkit.Must(t, b.st.Begin(t.Context(), lane, id, intent))
}

// dueTime is when a worker may work on a request: not before it is due.
func (b *bundle) dueTime(t *testing.T, id string) time.Time {
	t.Helper()
	if due := b.request(t, id).DueAt; due.After(b.now) {
		return due
	}
	return b.now
}

func (b *bundle) posted(t *testing.T, lane store.Claim, id string, post int, postID string) jetpost.State {
	t.Helper()
	state, err := b.st.Posted(t.Context(), lane, id, store.LivePost{Post: post, PostID: postID, Now: b.now})
	testkit.Must(t, err)
	return state
}

// publish sends one post and records it as live.
func (b *bundle) publish(t *testing.T, lane store.Claim, id string, post int) jetpost.State {
	t.Helper()
	b.begin(t, lane, id, post)
	return b.posted(t, lane, id, post, postID(id, post))
}

func postID(id string, post int) string { return fmt.Sprintf("x-%s-%d", id, post) }

// conclude moves a request, with a snapshot of this moment.
func (b *bundle) conclude(t *testing.T, lane store.Claim, id string, state jetpost.State, code jetpost.Code, until time.Time) {
	t.Helper()
	testkit.Must(t, b.st.Conclude(t.Context(), lane, id, store.Outcome{
		State: state, Reason: jetpost.Reason{Code: code, Until: until}, Post: -1,
		Generation: b.snapshot(t, lane, b.now).Generation, Now: b.dueTime(t, id),
	}))
}

// concludePost moves a request because of its post.
func (b *bundle) concludePost(t *testing.T, lane store.Claim, id string, state jetpost.State, code jetpost.Code, post int, postState jetpost.PostState) {
	t.Helper()
	testkit.Must(t, b.st.Conclude(t.Context(), lane, id, store.Outcome{
		State: state, Reason: jetpost.Reason{Code: code}, Post: post, PostState: postState,
		Generation: b.snapshot(t, lane, b.now).Generation, Now: b.dueTime(t, id),
	}))
}

// doubt leaves a request unknown with its given post sending.
func (b *bundle) doubt(t *testing.T, lane store.Claim, id string, post int) {
	t.Helper()
	b.begin(t, lane, id, post)
	b.concludePost(t, lane, id, jetpost.StateUnknown, jetpost.CodeOutcomeUnknown, post, jetpost.PostSending)
}

func (b *bundle) request(t *testing.T, id string) store.Record {
	t.Helper()
	record, err := b.st.Request(t.Context(), store.Key{Account: acme, ID: id})
	testkit.Must(t, err)
	return record
}

// state asserts the state of a request, its reason and its latest event.
func (b *bundle) state(t *testing.T, id string, state jetpost.State, code jetpost.Code, event jetpost.EventType) store.Record {
	t.Helper()
	record := b.request(t, id)
	var got jetpost.Code
	if record.Status.Reason != nil {
		got = record.Status.Reason.Code
	}
	equal(t, "state, code and event of "+id,
		fmt.Sprint(record.Status.State, got, record.Event), fmt.Sprint(state, code, event))
	return record
}

func (b *bundle) token(t *testing.T, account string) store.Token {
	t.Helper()
	token, err := b.st.Token(t.Context(), account)
	testkit.Must(t, err)
	return token
}

// pace is that of a claim with the given lease.
func pace(lease time.Duration) store.Pace {
	return store.Pace{Lease: lease, NearEnd: nearEnd, Backoff: backoff}
}

// tokenClaim asks for an account's token in any state.
func (b *bundle) tokenClaim(t *testing.T, account string, lease time.Duration) store.TokenClaim {
	t.Helper()
	return store.TokenClaim{
		Account: account, UsedVersion: b.token(t, account).Version, Force: true, Refused: true, Pace: pace(lease), Now: b.clock(t),
	}
}

// claimOne claims an account's token for an exchange, by force.
func (b *bundle) claimOne(t *testing.T, account string, lease time.Duration) (claim store.Token) {
	t.Helper()
	testkit.Eventually(t, "claim of the token", func() bool {
		token, ok, err := b.st.ClaimToken(t.Context(), b.tokenClaim(t, account, lease))
		testkit.Must(t, err)
		claim = token
		return ok
	})
	return claim
}

func (b *bundle) account(t *testing.T, name string) store.Account {
	t.Helper()
	account, err := b.st.Account(t.Context(), name)
	testkit.Must(t, err)
	return account
}

// due reports whether acme's lane should run at that time.
func (b *bundle) due(t *testing.T, now time.Time) bool {
	t.Helper()
	names, err := b.st.DueLanes(t.Context(), now, 10)
	testkit.Must(t, err)
	return len(names) > 0
}

// fails asserts an error that errors.Is finds.
func fails(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: error is %v, want %v", what, err, want)
	}
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// secrets lets go-cmp compare what must not be printed.
func secrets() cmp.Option {
	return cmp.Comparer(func(a, b secret.String) bool { return a == b })
}

// atOnce runs n calls at the same time and returns how many returned true.
func atOnce(t *testing.T, n int, call func(i int) (bool, error)) (yes int) {
	t.Helper()
	var wg sync.WaitGroup
	start := make(chan struct{})
	results := make([]bool, n)
	failures := make([]error, n)
	for i := range n {
		wg.Go(func() {
			<-start
			results[i], failures[i] = call(i)
		})
	}
	close(start)
	wg.Wait()
	testkit.Must(t, errors.Join(failures...))
	for _, ok := range results {
		if ok {
			yes++
		}
	}
	return yes
}
