package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
)

var (
	// ErrNotFound says that no such account, request or token is known.
	ErrNotFound = errors.New("not found")
	// ErrFenced says that another worker has taken the lane or the token since it was
	// claimed. The caller stops at once and writes nothing more.
	ErrFenced = errors.New("taken over by another worker")
	// ErrNotRunnable says that the request is no longer one that may be
	// posted, for instance because it was cancelled.
	ErrNotRunnable = errors.New("request is not runnable")
	// ErrExpired says that the request expires before it would be published.
	ErrExpired = errors.New("request expires before that time")
	// ErrNameTaken says that the account name belongs to another X user.
	ErrNameTaken = errors.New("account name belongs to another X user")
	// ErrUserTaken says that the X user is known under another account name.
	ErrUserTaken = errors.New("X user is known under another account name")
	// ErrTokenBusy says that another worker is exchanging the account's token. The
	// result is not known yet.
	ErrTokenBusy = errors.New("the account's token is being renewed just now")
	// ErrPostTaken says that the post on X is already recorded for another of our
	// posts.
	ErrPostTaken = errors.New("post is recorded for another request")
	// ErrLinkUsed says that the link has already connected an account.
	ErrLinkUsed = errors.New("link was used")
	// ErrLinkExpired says that the link has expired.
	ErrLinkExpired = errors.New("link has expired")
	// ErrLinkBusy says that an account is being connected by the link. The result is
	// not known yet.
	ErrLinkBusy = errors.New("link is being used just now")
	// ErrAttemptOver says that the attempt was finished or has expired.
	ErrAttemptOver = errors.New("attempt is over")
	// ErrOtherBrowser says that another browser began the attempt.
	ErrOtherBrowser = errors.New("attempt was begun by another browser")
)

// Store is everything that a database offers. Handlers take one of the smaller
// interfaces instead, so that each sees only its part.
type Store interface {
	Ledger
	Accounts
	Tokens
	Keys
	Requests
	Links
	Upkeep
	Operations
	Retention
	Recovery
}

// Ledger is the database as a whole.
type Ledger interface {
	// LedgerID is a UUID made with the schema. Streams carry it: a worker refuses to
	// start if its database is not the one that the streams belong to.
	LedgerID(ctx context.Context) (string, error)
	// Clock reads the clock by which leases are judged.
	Clock(ctx context.Context) (time.Time, error)
	// CheckKeys fails with *KeyError when the sealer cannot open what this database
	// holds. The first call on a new database stores a key check value. The value is
	// sealed with the first key once no token needs another key. An older key can be
	// dropped after that, and not before.
	CheckKeys(ctx context.Context) error
	// TryLease takes or renews a named lease for its owner, for work that one worker
	// does for all.
	TryLease(ctx context.Context, name, owner string, d time.Duration, now time.Time) (bool, error)
	// TakeLeases takes or renews the named leases that no other owner holds, and
	// returns those that the owner holds afterwards. A name gets a new fence when its
	// owner changes or when its owner let the lease run out.
	TakeLeases(ctx context.Context, names []string, owner string, d time.Duration, now time.Time) ([]Lease, error)
	// DropLeases ends the owner's leases of those names, so that other workers need not
	// wait for them to run out.
	DropLeases(ctx context.Context, names []string, owner string, now time.Time) error
	Close() error
}

// Lease is a claim of a name. At most one owner holds it. Each owner gets another
// fence, which identifies a write of an earlier owner.
type Lease struct {
	Name, Owner string
	Fence       int64
}

// Account is an X account and the state of its token.
type Account struct {
	Name      string    `json:"name"`
	XUserID   string    `json:"x_user_id"`
	Username  string    `json:"username"`
	CreatedAt time.Time `json:"created_at"`
	// Open counts its unfinished requests, up to MaxOpen.
	Open           int       `json:"open_requests"`
	TokenExpiresAt time.Time `json:"token_expires_at"`
	// Pause is the account's latest pause, even if it has already ended.
	Pause Pause `json:"pause,omitzero"`
	TokenMeta
}

// Pause keeps an account from posting, because a person wants that or because X refuses
// the account.
type Pause = jetpost.Pause

// MaxOpen bounds how many unfinished requests of an account are counted, so that the
// time to count them is bounded, too.
const MaxOpen = 1000

// TokenMeta is what is known of a token's refreshes, as the row's metadata holds it.
type TokenMeta struct {
	LastRefreshAt   time.Time `json:"lastRefreshAt,omitzero"`
	RefreshError    string    `json:"refreshError,omitempty"`
	RefreshFailedAt time.Time `json:"refreshFailedAt,omitzero"`
	// RequiresReauth is set by a refused grant and by Disconnect. Only connecting the
	// account again ends it.
	RequiresReauth bool `json:"requiresReauth,omitempty"`
}

// Disconnected is the RefreshError of an account that a person has disconnected.
const Disconnected = "disconnected"

// Disconnected reports whether a person has disconnected the account.
func (m TokenMeta) Disconnected() bool { return m.RequiresReauth && m.RefreshError == Disconnected }

// Pair is a token pair as X gives it.
type Pair struct {
	Access    secret.String
	Refresh   secret.String
	ExpiresAt time.Time // of the access token
	Scope     string
}

// Import is an account with its tokens, and the X user that they belong to.
type Import struct {
	Name     string
	XUserID  string
	Username string
	Pair     Pair
	// Consented is set if the pair comes from a consent given a moment ago. Such a
	// consent ends earlier pairs at X, so this pair is stored even while an exchange is
	// under way.
	Consented bool
	Now       time.Time
}

// ImportResult is the result of an Import.
type ImportResult string

// The results of an import.
const (
	AccountCreated ImportResult = "created"
	TokenReplaced  ImportResult = "replaced"
	// TokenUnchanged: this pair was also the last one imported. Refreshes may have
	// spent it since, so the stored pair is as good or better.
	TokenUnchanged ImportResult = "unchanged"
)

// Accounts stores the accounts.
type Accounts interface {
	// ImportAccount creates the account with its lane and token, or replaces the token
	// of the same X user and ends its requests' wait for that (EndHolds with
	// account_reauth_required and account_scope_missing). A pair whose refresh token
	// was the last one imported replaces nothing, even if the account requires
	// re-authorising: a spent token cannot help.
	//
	// Errors: ErrNameTaken; ErrUserTaken; ErrTokenBusy while a live lease holds a token
	// that would be replaced, unless in is Consented; *KeyError if no configured key
	// opens the stored pair, because it can be opened again once the key is back;
	// *DamagedError if the row is damaged and the pair is the one that was imported
	// last. Another pair replaces a damaged one.
	ImportAccount(ctx context.Context, in Import) (ImportResult, error)
	// Account returns one account, or ErrNotFound.
	Account(ctx context.Context, name string) (Account, error)
	// Accounts returns all accounts by name.
	Accounts(ctx context.Context) ([]Account, error)
}

// Token is an opened token row.
type Token struct {
	ID      string // UUID
	Account string
	Pair
	// Version grows with every stored pair. A success is fenced by it.
	Version     int64
	RefreshedAt time.Time
	// LeaseID is set while a claim holds the row. A failure is fenced by it.
	LeaseID    string
	LeaseUntil time.Time
	// StartedAt is the start of the latest exchange, until its outcome is known. Once
	// the lease is over, the exchange is in doubt: the refresh token may be spent, and
	// the pair that it bought may be lost.
	StartedAt time.Time
	// InDoubtSince is set in a claim of a token in doubt. It is the StartedAt of the
	// earlier exchange. Such a claim is a retry.
	InDoubtSince time.Time
	// Attempts counts the claims since the pair was stored, including this one.
	Attempts int
	// NextAttemptAt is the earliest next exchange. In a claim it is the time of the
	// exchange that follows if the outcome of this one stays unknown.
	NextAttemptAt time.Time
	TokenMeta
}

// Pace is how long a claim of a token lasts, and when the next attempt follows if the
// outcome stays unknown. The claim itself writes the next attempt.
type Pace struct {
	Lease time.Duration
	// NearEnd is how long before the end of its access token a token in doubt is tried
	// again. Until then the access token is used.
	NearEnd time.Duration
	// Backoff is the wait after the lease of a retry. It doubles with each attempt, up
	// to MaxBackoffDoublings times.
	Backoff time.Duration
}

// MaxBackoffDoublings bounds the wait between retries.
const MaxBackoffDoublings = 8

// DueClaim asks for tokens of a round.
type DueClaim struct {
	Round string
	Limit int
	Pace  Pace
	Now   time.Time
}

// TokenClaim asks for the token of one account.
type TokenClaim struct {
	Account string
	// UsedVersion is the version that the caller knows; a newer one is not
	// claimed.
	UsedVersion int64
	// Refused says that X has refused the access token. The first attempt then need not
	// wait for the token's end.
	Refused bool
	// Force skips the wait for the next attempt, unless the token is in doubt.
	Force bool
	Pace  Pace
	Now   time.Time
}

// ExchangeOutcome is the outcome of an exchange that brought no new pair.
type ExchangeOutcome int

const (
	// ExchangeNothing: X did nothing or was not reached. An earlier doubt stays.
	ExchangeNothing ExchangeOutcome = iota
	// ExchangeUnknown: the answer was lost. The next attempt stays as the claim wrote
	// it.
	ExchangeUnknown
	// ExchangeRefused: X does not take the refresh token. Only connecting the account
	// again helps.
	ExchangeRefused
)

// TokenFailure is an exchange that brought no new pair.
type TokenFailure struct {
	Error   string // one line, never a token value
	Outcome ExchangeOutcome
	// NextAttempt is the earliest next exchange after ExchangeNothing. If Now is later,
	// Now is used, so that a round claims no token twice.
	NextAttempt time.Time
	Now         time.Time
}

// Notice is a change that an event must report: the account requires re-authorising, or
// no longer does.
type Notice struct {
	Account  string
	Required bool
	Error    string // why it is required
	Version  int64
	At       time.Time
}

// Retry is an entry of the journal: the exchange of a token in doubt, written before
// the token was presented again.
type Retry struct {
	Version      int64     `json:"version"`
	Attempt      int       `json:"attempt"`
	InDoubtSince time.Time `json:"in_doubt_since"`
	StartedAt    time.Time `json:"started_at"`
}

// Round is one refresh round.
type Round struct {
	jetpost.RefreshSummary
	Batches   int
	Completed bool // every batch was counted
	Delivered bool // its summary event was published
}

// Tokens stores sealed tokens. Callers pass and receive opened tokens; only ciphertext
// reaches the database.
//
// A token is due if it expires within the round's window, its last success is older
// than half of the token's lifetime, its next attempt is not in the future, no live
// lease holds it and it does not require re-authorising. All conditions but the lease
// are judged as of the moment at which the round was opened, and a claim moves the next
// attempt past that moment. A round of n tokens therefore makes at most n exchanges.
type Tokens interface {
	// Token returns the account's token, or ErrNotFound.
	Token(ctx context.Context, account string) (Token, error)
	// OpenRound counts the due tokens and creates a round of batches of at most
	// batchSize, under an id that the caller chooses. A round that exists already stays
	// as it is. OpenRound deletes rounds older than RoundRetention, and the journal of
	// that time. Later calls about those rounds fail with ErrNotFound.
	OpenRound(ctx context.Context, id string, window time.Duration, batchSize int, now time.Time) (Round, error)
	// ClaimDue claims up to Limit tokens of a round in one short statement. It skips
	// rows that others hold and takes those first that have been due for longest. It
	// writes the state that a lost answer would leave, and a journal entry for each
	// token in doubt. Tokens that cannot be opened (*KeyError, *DamagedError) are
	// released with that failure, for another round: they were not presented. The error
	// reports them beside the tokens that could be opened.
	ClaimDue(ctx context.Context, claim DueClaim) ([]Token, error)
	// ClaimToken claims one account's token for one exchange, as ClaimDue does. It
	// returns the current row, claimed or not.
	ClaimToken(ctx context.Context, claim TokenClaim) (Token, bool, error)
	// SaveToken commits both tokens of a fresh pair in one statement. The statement is
	// fenced by the claim's version alone, since a pair that X gave is the truth even
	// if the lease ran out. It ends the lease and every doubt and failure. If the
	// account required re-authorising, it ends its requests' wait for that, as an
	// import does. Saving a pair that the row already has succeeds, so that a call
	// whose answer was lost can be repeated. ErrFenced.
	SaveToken(ctx context.Context, claim Token, pair Pair, now time.Time) error
	// SaveTokenFailure records a failure, fenced by version and lease, and
	// ends the lease. ErrFenced.
	SaveTokenFailure(ctx context.Context, claim Token, failure TokenFailure) error
	// Disconnect makes the account require re-authorising at once, whatever the state
	// of its pair, and returns the token with that pair. A pair that comes from an
	// earlier claim is refused from then on. ErrNotFound; ErrTokenBusy while a live
	// lease holds the token.
	Disconnect(ctx context.Context, account string, now time.Time) (Token, error)
	// ForgetPair overwrites the pair of a token that was disconnected, fenced by its
	// version. ErrFenced.
	ForgetPair(ctx context.Context, token Token) error
	// Retries returns the account's journal, oldest entry first: the exchanges that
	// were tried while its token was in doubt.
	Retries(ctx context.Context, account string) ([]Retry, error)
	// Notices returns up to limit changes that no event has reported yet, of one
	// account, or of all if account is "".
	Notices(ctx context.Context, account string, limit int) ([]Notice, error)
	// MarkNoticed records that a notice was published. A change in between becomes a
	// notice of its own.
	MarkNoticed(ctx context.Context, notice Notice) error
	// BatchDone counts a batch once, however often it is reported, and returns the
	// round.
	BatchDone(ctx context.Context, round string, batch, refreshed, failed, skipped int, now time.Time) (Round, error)
	// RoundDelivered records that the round's summary was published.
	RoundDelivered(ctx context.Context, round string) error
}

// KeyUse is how many token rows are sealed with which keys. One row may be sealed with
// two keys.
type KeyUse struct {
	AccessKey, RefreshKey string // key ids; "" for a value that names none
	Rows                  int
}

// Resealed is a token row whose pair was sealed with another key.
type Resealed struct {
	Old             SealedToken
	Access, Refresh string
}

// Keys is the part of the database that changing encryption keys needs. It sees only
// ciphertext.
type Keys interface {
	// KeyUses counts the token rows by their keys. Two entries may have the same keys.
	KeyUses(ctx context.Context) ([]KeyUse, error)
	// KeyCheck returns the ledger's id and its key check value, "" if there is none
	// yet.
	KeyCheck(ctx context.Context) (ledgerID, keyCheck string, err error)
	// SealedTokens returns up to limit token rows with ids greater than after, in the
	// order of their ids. An empty after starts at the first row.
	SealedTokens(ctx context.Context, after string, limit int) ([]SealedToken, error)
	// Reseal replaces the ciphertext of each row that nobody holds and that still has
	// the ciphertext that was read, and returns how many rows it replaced. Nothing else
	// of a row changes: it is the same pair.
	Reseal(ctx context.Context, rows []Resealed) (int, error)
}

// Key is a request's identity.
type Key struct{ Account, ID string }

// Acceptance is a decoded request that intake is about to accept.
type Acceptance struct {
	Request jetpost.Request // with account and id filled in
	Body    []byte          // as it arrived
	Digest  []byte          // of the decoded request; equal digests are an equal body
	// Hold is set for a request that this worker cannot read yet. It is accepted as
	// held, without posts.
	Hold *jetpost.Reason
	// Media are the known digests of the posts' media, by post.
	Media [][]Media
	// CostMicros is an estimate of what X will charge for the request, in millionths of
	// a US dollar; zero if unknown.
	CostMicros int64
	// Trace is the span that accepts the request, as W3C traceparent, or its producer's; ""
	// if there is none.
	Trace string
	// RefuseSameText makes a new request fail with CodeSameText if another account
	// posts one of its texts within SameTextWithin.
	RefuseSameText bool
	// FindSameText makes the result name a request of another account that posts one of
	// the texts.
	FindSameText bool
	Now          time.Time
}

// Key is the identity of the request.
func (a Acceptance) Key() Key { return Key{Account: a.Request.Account, ID: a.Request.ID} }

// SameTextWithin is how near in time two accounts' posts of one text count as the same
// content for X.
const SameTextWithin = 24 * time.Hour

// TextQuery asks for another account's posts of one of these texts.
type TextQuery struct {
	Account string   // its posts do not count
	Hashes  [][]byte // TextHash of each
	DueAt   time.Time
	Now     time.Time
}

// TextsOf returns a query for other accounts' posts with the request's texts.
func TextsOf(r jetpost.Request, now time.Time) TextQuery {
	q := TextQuery{Account: r.Account, DueAt: r.PublishAt, Now: now}
	for _, p := range r.Posts {
		if hash := TextHash(p.Text); hash != nil {
			q.Hashes = append(q.Hashes, hash)
		}
	}
	return q
}

// Span is the time within which a post of the same text is too near.
func (q TextQuery) Span() (from, to time.Time) {
	due := latest(q.DueAt, q.Now)
	return due.Add(-SameTextWithin), due.Add(SameTextWithin)
}

// TextHash is what the ledger stores of a post's text: its SHA-256. It is nil if there
// is no text or only white space.
func TextHash(text string) []byte {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

// Decision is the result of an Acceptance.
type Decision int

const (
	Accepted  Decision = iota + 1 // a new request
	Repeated                      // the same again: nothing was done
	Conflict                      // the same identity with another body: nothing was done
	NoAccount                     // no such account: nothing was done
)

// Received is the result of one of many acceptances.
type Received struct {
	Decision Decision
	// Record is the current request; it is empty if the account is unknown.
	Record Record
	// SameText is a request of another account with one of the texts, if that was asked
	// for and there is one. If two such requests are accepted at once, at least one of
	// them names the other. SameTextErr is the error of that query.
	SameText    Key
	SameTextErr error
}

// JobFailure is a failure that the job itself caused: everything that it depends on
// answered. Sequence and Stored are its place in the stream.
type JobFailure struct {
	Sequence uint64
	Stored   time.Time
	Error    string
}

// Revision names one state of a request.
type Revision struct {
	Key
	Number int64
}

// Claim is a claim of an account's lane. At most one worker holds it.
type Claim struct {
	Account string
	// Fence grows with every claim. Every write in the lane carries it.
	Fence int64
	// LostClaims counts the latest claims in a row whose lease ran out without
	// progress.
	LostClaims int
	// Cache belongs to the driver (see [ClaimCache]). It is nil in a claim that was
	// built by hand.
	Cache *ClaimCache
}

// Snapshot is the front of a lane's queue at one moment.
type Snapshot struct {
	// Generation is the lane's counter of changes at the time of the snapshot.
	Generation int64
	// Pause is the account's latest pause, even if it has already ended.
	Pause Pause
	// Head is the first due unfinished request, in any state; nil if none is due. The
	// order is: the request that has begun, then the earlier of due time and
	// acceptance, then the sequence of acceptance.
	Head *Record
	// NextDue is the earliest due time in the future; zero if there is none.
	NextDue time.Time
	// UnpublishAt is when the lane continues with the earliest of its deletions; zero
	// if none waits for it.
	UnpublishAt time.Time
}

// Refusals counts what X has refused in words that no rule knows.
type Refusals struct {
	// InARow counts such requests of the account since X took a post of it or a person
	// resumed it.
	InARow int
	// Accounts counts the accounts that got the same words lately.
	Accounts int
}

// Record is a request as the ledger holds it.
type Record struct {
	Key
	Seq       int64 // of acceptance, per account
	Body      []byte
	Trace     string    // of its Acceptance
	DueAt     time.Time // max(accepted, publish_at); never before an earlier acceptance's
	HoldUntil time.Time // zero if the hold has no end of its own
	// BeganAt is the first intent since the request joined its queue; zero before.
	BeganAt time.Time
	// Holds counts the holds since the last progress. It leaves out those in which
	// nothing fails: for X's processing of media, a window's reset, the end of a pause,
	// a posting limit, or the next timeline check for a post in doubt.
	Holds int
	Posts []PostRecord
	// Deletion is set once somebody has asked for the deletion of the live posts. Such
	// a request is finished, and stays so.
	Deletion *Deletion
	// Event is the type of the latest change.
	Event jetpost.EventType
	// Delivered is a revision up to which all events are known to be published. It is
	// the latest one where nothing waits to be told.
	Delivered int64
	// Pruned tells that only the identity is left: no body and no posts.
	Pruned bool
	Status jetpost.RequestStatus
}

// PostRecord is a post as the ledger holds it.
type PostRecord struct {
	Index    int
	State    jetpost.PostState
	ParentID string // set with the first intent
	PostID   string
	Media    []Media   // in the request's order; nothing is known of those behind the last one
	MediaIDs []string  // of the latest intent
	TextHash []byte    // nil if it has no text
	SentAt   time.Time // commit of the latest intent
	NotAfter time.Time // the latest moment at which that intent may be sent
	Attempt  int64     // fence of the latest intent
	// DoubtSince is the SentAt of the first intent whose outcome was in doubt. Checks
	// counts the timeline checks that did not settle it. AbsentAt is the first of the
	// latest checks in a row that did not find the post.
	DoubtSince time.Time
	Checks     int
	AbsentAt   time.Time
	// DeletedAt is when X was known to no longer have the post. The post's state stays
	// posted.
	DeletedAt time.Time
}

// Deletion is the progress of the deletion of a request's posts.
type Deletion struct {
	AskedAt time.Time `json:"asked_at"`
	// DoneAt is when nothing was left to delete; zero before.
	DoneAt time.Time `json:"done_at,omitzero"`
	// Reason says why the deletion waits, or why it does not continue.
	Reason *jetpost.Reason `json:"reason,omitempty"`
	// Holds counts the waits since the last progress in which something failed.
	Holds int `json:"holds,omitempty"`
	// NextAt is when a lane continues with the deletion; zero if none will. It has a
	// column of its own.
	NextAt time.Time `json:"-"`
}

// Media is what is known of one media file of a post.
type Media struct {
	// Digest is the SHA-256 of its bytes in hex, once they are known. Other bytes are
	// not posted from then on.
	Digest string `json:"digest,omitempty"`
	// ID is X's media id. It is "" until X has the file, and it can be posted until
	// ExpiresAt.
	ID        string    `json:"id,omitempty"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// UploadedAt is when X had the whole file. While X processes it, CheckAt is when to
	// ask again.
	UploadedAt time.Time `json:"uploaded_at,omitzero"`
	CheckAt    time.Time `json:"check_at,omitzero"`
	// Described says that X has the alternative text.
	Described bool `json:"described,omitempty"`
	// Renewed says that X did not take the id of an earlier upload.
	Renewed bool `json:"renewed,omitempty"`
}

// Anchor is what the ledger knows of an account's posts on X, to search its timeline
// from a known post on.
type Anchor struct {
	XUserID string
	// PostID is the latest post that is known to be live, "" if there is none.
	PostID string
	SentAt time.Time // of the first intent that may have made it
}

// Intent says that a post is about to be sent.
type Intent struct {
	Post     int
	ParentID string
	TextHash []byte
	MediaIDs []string
	NotAfter time.Time
	Now      time.Time
	// Lease is the new length of the lane's lease, from now.
	Lease time.Duration
}

// Outcome moves a request to held, failed or unknown.
type Outcome struct {
	State  jetpost.State
	Reason jetpost.Reason // Until bounds a hold; zero holds until something ends it
	// CheckAt is when a hold is tried again, if that is not its end.
	CheckAt time.Time
	// Post is the index of the post that the outcome is about, and PostState is what is
	// known of it: pending (X made nothing; the attempt does not count), failed, or
	// sending (doubtful). Post is -1 if the outcome is about no post.
	Post      int
	PostState jetpost.PostState
	// Checks and AbsentAt are the post's new values.
	Checks   int
	AbsentAt time.Time
	// RenewMedia says that X does not take the ids of the post's media. The ids are
	// then forgotten, once.
	RenewMedia bool
	// Generation is that of the snapshot on which the outcome rests. A hold without an
	// end is over at once if a wake-up came after that snapshot, so that what ends the
	// hold is never missed.
	Generation int64
	Now        time.Time
}

const (
	// RefusalRetention is how long a refused message is stored, with its whole body.
	// NATS bounds the size of each message; this bounds how many there are.
	RefusalRetention = 30 * 24 * time.Hour
	// MaxForgottenRefusals is how many older ones one call of Refuse deletes. Each call
	// adds at most one, so any backlog shrinks.
	MaxForgottenRefusals = 100 // rows
)

// Filter narrows a list; zero fields match everything.
type Filter struct {
	Account string
	ID      string
	State   jetpost.State
	Code    jetpost.Code
	Since   time.Time // accepted at or after
	Limit   int       // default DefaultListLimit
	After   Place     // those behind it in the list; the zero value begins
}

// Place is where a request stands in a list.
type Place struct {
	AcceptedAt time.Time
	Seq        int64
	Account    string
}

// Place is where the request stands in a list.
func (r Record) Place() Place {
	return Place{AcceptedAt: r.Status.AcceptedAt, Seq: r.Seq, Account: r.Account}
}

// Waiting is an unfinished request in its account's queue, without its content.
type Waiting struct {
	Key
	Seq       int64
	State     jetpost.State
	Code      jetpost.Code // why it is held or unknown; else ""
	DueAt     time.Time
	HoldUntil time.Time
	ExpiresAt time.Time
	// Begun says that the request goes before all that have not begun.
	Begun bool
	// Posts counts its posts, 0 if no worker could read it yet. Live counts those that
	// are live.
	Posts, Live int
}

// Reservation asks for calls of one of X's windows that all accounts share.
type Reservation struct {
	Window string // its name
	XReset int64  // its end by X's clock in epoch seconds, which tells it from the next window
	Left   int    // the calls that X says are left
	Need   int    // the calls that are wanted; 0 gives back the reserved ones
	Now    time.Time
}

// Reserved is the result of a Reservation.
type Reserved struct {
	Granted bool
	Left    int // the calls that X says are left, as far as any worker has reported
}

// Grant is the rule of reservations. It returns the result of r if left calls are left
// and other lanes have reserved some of them, and how many calls the lane then has.
func (r Reservation) Grant(left, others int) (out Reserved, take int) {
	out = Reserved{Granted: r.Need == 0 || others+r.Need <= left, Left: left}
	if out.Granted {
		take = r.Need
	}
	return out, take
}

// MaxHoldQueue is how many requests one call of HoldQueue holds.
const MaxHoldQueue = 500

// LateQueue is the part of an account's queue that was due before a time and is not
// done.
type LateQueue struct {
	Account string
	// Unsent counts the requests of which nothing was sent. Since is when the first of
	// them was due.
	Unsent int
	Since  time.Time
	// Begun counts the others: a post of them is live or may be live, or no worker
	// could read them so far.
	Begun int
}

// DefaultListLimit is how many requests a Filter without a limit lets through.
const DefaultListLimit = 100

// Rows is the limit, or its default.
func (f Filter) Rows() int {
	if f.Limit <= 0 {
		return DefaultListLimit
	}
	return f.Limit
}

// ReplayResult is the result of a replay.
type ReplayResult struct {
	// Queued is false if there was nothing to do; the state says why.
	Queued bool
	State  jetpost.State // before the replay
	Left   int           // posts that are not live
	// Unpublished says that somebody asked for the deletion of its posts. It is never
	// sent again.
	Unpublished bool
}

// Requests stores requests, their posts and their lanes.
//
// Each method that takes a Claim fails with ErrFenced once another worker has claimed
// the lane. Only X's answer to an intent is accepted from the intent's writer even then
// (see Posted and Conclude). A lane's WakeAt is when it should run next. Acceptance and
// every call that ends a hold bring it forward to their time, and a release sets it.
// Wake-ups and schedules are therefore mere hints.
type Requests interface {
	// Accept stores a request and its posts and wakes its lane, in one transaction. The
	// same bytes are an equal body, whatever the digests. A request that was accepted
	// with Hold becomes readable when its body is accepted again without Hold; it keeps
	// its place. ErrNotFound: no such account.
	Accept(ctx context.Context, in Acceptance) (Decision, error)
	// AcceptMany accepts requests in their order in one transaction, each with its own
	// decision, for the holder of the lease. ErrFenced: another owner took the lease,
	// and nothing was accepted. The zero lease is not checked.
	AcceptMany(ctx context.Context, lease Lease, in []Acceptance) ([]Received, error)
	// JobFailed counts a failure of a job and returns how many it has had. It deletes
	// counts that are older than RefusalRetention.
	JobFailed(ctx context.Context, f JobFailure) (int, error)
	// SameText returns a request of another account that posts one of the texts too
	// near in time. A post of it is live, may be live, or is still to be sent.
	SameText(ctx context.Context, q TextQuery) (Key, bool, error)
	// Refuse records a message that never became a request, once per place in the
	// stream. It deletes those that the stream took RefusalRetention before this one.
	Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error
	// Refusals returns the latest refusals, newest first.
	Refusals(ctx context.Context, limit int) ([]jetpost.Refusal, error)

	// ClaimLane takes the lane if no live lease holds it, and reads a snapshot of it
	// (see [Claim.Next]). ErrNotFound: no such account.
	ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (Claim, bool, error)
	// ExtendLane renews the lease for its full length.
	ExtendLane(ctx context.Context, lane Claim, lease time.Duration, now time.Time) error
	// ReleaseLane frees the lane and sets when it should next run (zero: with the next
	// wake-up). If a wake-up came after the snapshot of that generation, it keeps the
	// lane and returns false.
	ReleaseLane(ctx context.Context, lane Claim, generation int64, wakeAt, now time.Time) (bool, error)
	// DueLanes returns up to limit accounts whose lane should run now and has no live
	// lease.
	DueLanes(ctx context.Context, now time.Time, limit int) ([]string, error)
	// Snapshot reads the front of the lane's queue.
	Snapshot(ctx context.Context, lane Claim, now time.Time) (Snapshot, error)

	// Begin commits the intent to send one pending post, makes the request publishing
	// and extends the lease. ErrNotRunnable: the request was cancelled or postponed,
	// its account was paused, or that post is not pending.
	Begin(ctx context.Context, lane Claim, id string, intent Intent) error
	// Posted commits that X made the post. It accepts that from the writer of the
	// latest intent, even after another worker took the lane, since X's answer is true;
	// and from the lane's present holder, which may have found on X what another worker
	// sent. With the last post the request is published. An unknown request returns to
	// the queue and its lane wakes. Repeating the call changes nothing. If the request
	// is done, Posted reads a snapshot of the lane (see [Claim.Next]). ErrFenced: the
	// caller has neither written the post's latest intent nor holds the lane.
	// ErrPostTaken.
	Posted(ctx context.Context, lane Claim, id string, post int, postID string, now time.Time) (jetpost.State, error)
	// Conclude moves the request. If the request was finished meanwhile, it stays so,
	// and only the post's state is stored. Nothing changes if the outcome is out of
	// date: the post turned out to be live meanwhile, or it is known not to be live
	// although the outcome doubts it, or the request was postponed.
	//
	// After another worker took the lane, Conclude accepts one thing: that X did not
	// make a post (pending or failed), from the writer of the post's latest intent,
	// while the post is still sending. It then stores the post's state and wakes the
	// lane. Of the request it changes only this: with a failed post an unfinished
	// request fails; with a pending post an unknown request returns to the queue.
	// Everything else fails with ErrFenced.
	Conclude(ctx context.Context, lane Claim, id string, out Outcome) error

	// Uploaded stores what is known of the media of a post that is still to be sent. No
	// event reports that. ErrNotRunnable: that post is not pending, or its request is
	// finished.
	Uploaded(ctx context.Context, lane Claim, id string, post int, media []Media) error

	// Reserve reserves calls of a window that all accounts share for the lane, in place
	// of those that it had, until it reserves others, is released or its lease ends.
	// They are granted only if all reserved calls fit into what is left. ErrFenced.
	Reserve(ctx context.Context, lane Claim, r Reservation) (Reserved, error)

	// HoldQueue holds every due request of the lane that waits behind its head, for the
	// head's reason. It returns those that it newly holds: up to MaxHoldQueue, the
	// first ones first. As with Conclude, a hold without an end is over at once if a
	// wake-up came after the snapshot.
	HoldQueue(ctx context.Context, lane Claim, reason jetpost.Reason, generation int64, now time.Time) ([]Key, error)
	// EndHolds makes the account's requests that are held for the code due now and
	// wakes its lane. It returns how many there were.
	EndHolds(ctx context.Context, account string, code jetpost.Code, now time.Time) (int, error)
	// PauseAccount keeps the account from posting from its commit on: a thread stops
	// before its next post. It replaces an earlier pause, ends the holds for that one
	// (EndHolds with its code) and wakes the lane. ErrNotFound.
	PauseAccount(ctx context.Context, account string, pause Pause) error
	// ResumeAccount ends the account's pause and the holds for it, and wakes the lane.
	// It returns the pause that it ended, the zero value if there was none.
	// ErrNotFound.
	ResumeAccount(ctx context.Context, account string, now time.Time) (Pause, error)
	// Refused records that X has refused a post of the request in words that no rule
	// knows, and counts how often X did so lately. ErrFenced: the caller does not hold
	// the lane.
	Refused(ctx context.Context, lane Claim, id, words string, within time.Duration, now time.Time) (Refusals, error)
	// BlockAccount pauses the account for what X has said of it, by [LaneRow.Block].
	// With the zero pause it ends that pause, as ResumeAccount does. A person's pause
	// stays. It returns the pause that holds afterwards. ErrFenced.
	BlockAccount(ctx context.Context, lane Claim, pause Pause, now time.Time) (Pause, error)
	// PauseChanges returns up to limit pause changes that no event has reported yet,
	// the last one of each account: of one account, or of all if account is "".
	PauseChanges(ctx context.Context, account string, limit int) ([]PauseChange, error)
	// MarkPauseChangeTold deletes a change that an event has reported. A later change
	// stays.
	MarkPauseChangeTold(ctx context.Context, change PauseChange) error
	// Late returns, by account, the unfinished requests that were due before a time: of
	// one account, or of all accounts that have such requests if account is "". It
	// counts up to limit of each account, in the order of the queue.
	Late(ctx context.Context, account string, dueBefore time.Time, limit int) ([]LateQueue, error)
	// ExpireLate fails, with CodeExpired, up to limit requests of an account of which
	// nothing was sent and that were due before a time, in the order of the queue, and
	// wakes its lane. If a worker is about to begin one of them, the first commit of
	// Begin and ExpireLate wins: after ExpireLate the worker sends nothing of it.
	// ErrNotFound: no such account.
	ExpireLate(ctx context.Context, account string, dueBefore time.Time, limit int, now time.Time) ([]Key, error)
	// Sent returns when the account's live posts were sent, after a time, the latest
	// first, up to limit.
	Sent(ctx context.Context, account string, after time.Time, limit int) ([]time.Time, error)
	// Replay puts a failed request back into its queue, behind what was accepted
	// before, and makes a held one due where it is. Failed posts become pending; live
	// and doubtful posts stay. ErrNotFound.
	Replay(ctx context.Context, key Key, now time.Time) (ReplayResult, error)
	// Cancel cancels an unfinished request. It returns the earlier state, and
	// ErrNotRunnable for a finished request. The outcome of a post that is being sent
	// is still recorded.
	Cancel(ctx context.Context, key Key, now time.Time) (jetpost.State, error)
	// Reschedule moves an unfinished request of which nothing was sent to another time.
	// A time that is not in the future means now, behind what was accepted before.
	// ErrNotRunnable: the request has begun, is finished or unread; the returned state
	// says which. ErrExpired.
	Reschedule(ctx context.Context, key Key, at, now time.Time) (jetpost.State, error)
	// Resolve settles the doubtful post of an unknown or held request by a person's
	// word: live with postID or, if postID is empty, not live. The request returns to
	// its queue or is published. ErrNotRunnable: nothing of it is doubtful.
	// ErrPostTaken.
	Resolve(ctx context.Context, key Key, postID string, now time.Time) (jetpost.State, error)
	// Reconcile starts the timeline checks for the doubtful post of a request again,
	// from now on and as many as the first time. ErrNotRunnable: nothing of it is
	// doubtful.
	Reconcile(ctx context.Context, key Key, now time.Time) error
	// Anchor returns the anchor of the account's timeline checks, or ErrNotFound. A
	// deleted post is no anchor post.
	Anchor(ctx context.Context, account string) (Anchor, error)
	// Owned returns those of the posts on X that are recorded for a post of ours,
	// including deleted ones.
	Owned(ctx context.Context, postIDs []string) ([]string, error)
	// Deleted returns those of the posts on X that are ours and were deleted.
	Deleted(ctx context.Context, postIDs []string) ([]string, error)

	// Unpublish asks for the deletion of every post of the request that is live or may
	// be live, and cancels the request if it is unfinished. It wakes the lane, which
	// continues at once with a deletion that waits or was given up. It returns the
	// earlier state. ErrNotRunnable: nothing of a finished request is live. A deletion
	// that is done stays as it is. ErrNotFound.
	Unpublish(ctx context.Context, key Key, now time.Time) (jetpost.State, error)
	// Unpublishing returns the request whose deletion the lane continues with first, at
	// [Snapshot].UnpublishAt.
	Unpublishing(ctx context.Context, lane Claim) (Record, bool, error)
	// PostDeleted commits that X no longer has the post. It is accepted from any worker
	// that found that, since it stays true after another worker took the lane.
	// Repeating the call changes nothing. ErrNotRunnable: that post is not live, or
	// nobody asked for its deletion.
	PostDeleted(ctx context.Context, lane Claim, id string, post int, now time.Time) error
	// HoldUnpublish makes a deletion wait until out's CheckAt or the end of its reason
	// if out's state is held. With another state it gives the deletion up until
	// somebody asks again. If out is about a post in doubt, it stores what is known of
	// that post, as Conclude does.
	HoldUnpublish(ctx context.Context, lane Claim, id string, out Outcome) error

	// Request returns one request, or ErrNotFound.
	Request(ctx context.Context, key Key) (Record, error)
	// ListRequests returns requests, the latest accepted first.
	ListRequests(ctx context.Context, filter Filter) ([]Record, error)
	// Waiting returns up to limit unfinished requests behind after, by account, due
	// time and sequence of acceptance. The zero value starts at the first one.
	Waiting(ctx context.Context, after Waiting, limit int) ([]Waiting, error)
	// CountRequests counts requests by state, up to MaxCounted of each.
	CountRequests(ctx context.Context) (map[jetpost.State]int, error)

	// OutboxPending returns up to limit requests whose latest revision is older than
	// before and has no published event.
	OutboxPending(ctx context.Context, before time.Time, limit int) ([]Key, error)
	// MarkDelivered records the revision whose event was published. It returns false if
	// the request has a newer revision, whose event must be published then. A revision
	// that only says that an accepted request began to be sent needs no event and is
	// marked, too.
	MarkDelivered(ctx context.Context, key Key, revision int64) (bool, error)
	// MarkManyDelivered is MarkDelivered for many requests. It returns those whose
	// marked revision may not be the latest.
	MarkManyDelivered(ctx context.Context, told []Revision) (rest []Key, err error)
}

// Link is a one-time link by which a person connects an X account.
type Link struct {
	// ID names the link in logs and calls. It does not open the link.
	ID        string
	Account   string // the name under which the account is connected; it may not exist yet
	ReturnTo  string // where to send the person afterwards; "" shows a page
	CreatedAt time.Time
	ExpiresAt time.Time
	UsedAt    time.Time // zero until an account was connected by it
}

// NewLink is a link to store. Its token has at least 256 random bits. Only a hash of it
// is stored.
type NewLink struct {
	Token     secret.String
	Account   string
	ReturnTo  string
	ExpiresAt time.Time
	Now       time.Time
}

// LinkAttempt is one attempt to connect by a link: the redirect to X and back. State
// and Browser have at least 256 random bits; they are stored as hashes. The verifier is
// sealed.
type LinkAttempt struct {
	State     secret.String // goes to X and back through the browser's address bar
	Browser   secret.String // stays with the browser that began
	Verifier  secret.String // of PKCE
	ExpiresAt time.Time
	Now       time.Time
}

const (
	// LinkRetention is how long an expired link is still recognised.
	LinkRetention = 7 * 24 * time.Hour
	// MaxForgottenLinks is how many older links one call of AddLink deletes. Each call
	// adds one, so any backlog shrinks.
	MaxForgottenLinks = 100 // rows
)

// Links stores one-time links. A link connects one account, once. Until then the person
// may try again, also in another tab: only the newest attempt counts.
type Links interface {
	// AddLink stores a link, and deletes those that expired LinkRetention ago.
	AddLink(ctx context.Context, link NewLink) error
	// Link returns the link with that token, in any state, or ErrNotFound.
	Link(ctx context.Context, token secret.String) (Link, error)
	// BeginAttempt replaces the link's attempt by a new one. ErrNotFound, ErrLinkUsed,
	// ErrLinkExpired; ErrLinkBusy while an attempt is being finished.
	BeginAttempt(ctx context.Context, token secret.String, attempt LinkAttempt) (Link, error)
	// TakeAttempt hands out the attempt with that state, once, to the browser that
	// began it. An attempt may end after its link has expired, if it began in time. The
	// link is busy for the length of the lease, so that two attempts are never finished
	// at once. ErrNotFound, ErrOtherBrowser, ErrLinkUsed, ErrAttemptOver.
	TakeAttempt(ctx context.Context, state, browser secret.String, lease time.Duration, now time.Time) (Link, secret.String, error)
	// GiveUpAttempt says that the taken attempt connected no account. It ends the
	// attempt's lease.
	GiveUpAttempt(ctx context.Context, id string, state secret.String) error
	// UseLink says that an account was connected by the link. The link opens nothing
	// after that. The first call counts. ErrNotFound.
	UseLink(ctx context.Context, id string, now time.Time) error
}
