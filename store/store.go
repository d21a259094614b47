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
	// ErrFenced says that another worker has taken the lane or the token
	// since it was claimed. The caller stops at once and writes nothing more.
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
	// ErrTokenBusy says that somebody is exchanging the account's token just
	// now: what comes of that is not known yet.
	ErrTokenBusy = errors.New("the account's token is being renewed just now")
	// ErrPostTaken says that the post on X is recorded for another post of
	// ours already.
	ErrPostTaken = errors.New("post is recorded for another request")
	// ErrLinkUsed says that an account was connected by the link.
	ErrLinkUsed = errors.New("link was used")
	// ErrLinkExpired says that the link's time is over.
	ErrLinkExpired = errors.New("link has expired")
	// ErrLinkBusy says that an account is being connected by the link just
	// now: whether that works is not known yet.
	ErrLinkBusy = errors.New("link is being used just now")
	// ErrAttemptOver says that the attempt was finished, or has expired.
	ErrAttemptOver = errors.New("attempt is over")
	// ErrOtherBrowser says that another browser began the attempt.
	ErrOtherBrowser = errors.New("attempt was begun by another browser")
)

// Store is everything a database offers. Handlers take one of the smaller
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
}

// Ledger is the database as a whole.
type Ledger interface {
	// LedgerID is a UUID made with the schema. Streams carry it, so that a
	// worker whose database is another one refuses to start.
	LedgerID(ctx context.Context) (string, error)
	// Clock reads the clock that judges leases.
	Clock(ctx context.Context) (time.Time, error)
	// CheckKeys fails with *KeyError when the sealer cannot open what this
	// database holds. The first call on a new database leaves a key check value. It is
	// sealed anew with the first key once no token needs another one, so that
	// an older key can be dropped then, and not before.
	CheckKeys(ctx context.Context) error
	// TryLease takes or renews a named lease for its owner, for work that one
	// worker should do for all.
	TryLease(ctx context.Context, name, owner string, d time.Duration, now time.Time) (bool, error)
	// TakeLeases takes or renews for the owner those of the named leases that
	// nobody else holds, and returns which of them are the owner's then. A name
	// that changes hands, or that its owner let run out, gets a new fence.
	TakeLeases(ctx context.Context, names []string, owner string, d time.Duration, now time.Time) ([]Lease, error)
	// DropLeases ends the owner's leases of those names, so that others need not
	// wait for them to run out.
	DropLeases(ctx context.Context, names []string, owner string, now time.Time) error
	Close() error
}

// Lease is a claim of a name: at most one owner holds it, and each gets another
// fence, by which a write of an earlier owner is known.
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
	// Pause is the latest one, also where it has ended by itself.
	Pause Pause `json:"pause,omitzero"`
	TokenMeta
}

// Pause keeps an account from posting, since somebody wants that, or X refuses it.
type Pause = jetpost.Pause

// MaxOpen bounds what is counted of an account's unfinished requests, so that nobody
// waits the longer for it the more there are.
const MaxOpen = 1000

// TokenMeta is what is remembered of a token's refreshes, as the row's
// metadata holds it.
type TokenMeta struct {
	LastRefreshAt   time.Time `json:"lastRefreshAt,omitzero"`
	RefreshError    string    `json:"refreshError,omitempty"`
	RefreshFailedAt time.Time `json:"refreshFailedAt,omitzero"`
	// RequiresReauth is set by a refused grant, and by Disconnect: nothing but
	// connecting the account again helps.
	RequiresReauth bool `json:"requiresReauth,omitempty"`
}

// Disconnected is the RefreshError of an account that a person has disconnected.
const Disconnected = "disconnected"

// Disconnected tells whether a person has disconnected the account.
func (m TokenMeta) Disconnected() bool { return m.RequiresReauth && m.RefreshError == Disconnected }

// Pair is a token pair as X gives it.
type Pair struct {
	Access    secret.String
	Refresh   secret.String
	ExpiresAt time.Time // of the access token
	Scope     string
}

// Import is an account with its tokens, and whom X says they belong to.
type Import struct {
	Name     string
	XUserID  string
	Username string
	Pair     Pair
	// Consented tells that the pair comes of a consent given a moment ago, which
	// ends earlier pairs at X: nothing that an exchange under way may bring is
	// worth as much, so it does not keep this one out.
	Consented bool
	Now       time.Time
}

// ImportResult is what became of an Import.
type ImportResult string

// The results of an import.
const (
	AccountCreated ImportResult = "created"
	TokenReplaced  ImportResult = "replaced"
	// TokenUnchanged: this very pair was the last to be imported. Refreshes
	// may have spent it since, so that what is stored is as good or better.
	TokenUnchanged ImportResult = "unchanged"
)

// Accounts keeps accounts.
type Accounts interface {
	// ImportAccount creates the account with its lane and token, or replaces
	// the token of the same X user and ends its requests' wait for that
	// (EndHolds with account_reauth_required and account_scope_missing). A pair with the refresh token
	// that was imported last replaces nothing, even where the account requires
	// re-authorising: a spent token cannot help. ErrNameTaken, ErrUserTaken;
	// ErrTokenBusy while a live lease holds a token that would be replaced, unless
	// in is Consented; *KeyError where no configured key opens what is there,
	// since it opens again once the key is back; *DamagedError where the pair that
	// was imported last comes again for a row that is damaged. Another pair
	// replaces that.
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
	// Version grows with every stored pair. It is what a success is fenced by.
	Version     int64
	RefreshedAt time.Time
	// LeaseID is set while a claim holds the row: what a failure is fenced by.
	LeaseID    string
	LeaseUntil time.Time
	// StartedAt is the start of the latest exchange, until its outcome is known.
	// Once the lease is over, the exchange is in doubt: the refresh token may be
	// spent, and the pair that it bought lost.
	StartedAt time.Time
	// InDoubtSince is set in a claim of a token in doubt: the StartedAt before.
	// Such a claim is a retry.
	InDoubtSince time.Time
	// Attempts counts the claims since the pair was stored, with the present one.
	Attempts int
	// NextAttemptAt is the earliest next exchange; in a claim, of the one that
	// follows if nothing more is heard of this one.
	NextAttemptAt time.Time
	TokenMeta
}

// Pace is how long a claim of a token holds, and what follows if nothing more
// is heard of it: the claim itself writes the next attempt.
type Pace struct {
	Lease time.Duration
	// NearEnd is how long before its access token ends a token in doubt is
	// tried once more; until then the access token serves.
	NearEnd time.Duration
	// Backoff is the wait after the lease of a retry, doubled with each attempt
	// up to MaxBackoffDoublings times.
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
	// Refused tells that X has refused the access token: the first attempt then
	// need not wait for its end.
	Refused bool
	// Force does not wait for the next attempt, unless the token is in doubt.
	Force bool
	Pace  Pace
	Now   time.Time
}

// ExchangeOutcome is what is known of an exchange that brought no new pair.
type ExchangeOutcome int

const (
	// ExchangeNothing: X did nothing, or was not reached. A doubt of before stays.
	ExchangeNothing ExchangeOutcome = iota
	// ExchangeUnknown: the answer was lost. The next attempt stays as the claim
	// wrote it.
	ExchangeUnknown
	// ExchangeRefused: X does not take the refresh token. Nothing but connecting
	// the account again helps.
	ExchangeRefused
)

// TokenFailure is an exchange that brought no new pair.
type TokenFailure struct {
	Error   string // one line, never a token value
	Outcome ExchangeOutcome
	// NextAttempt is the earliest next exchange after ExchangeNothing; Now where
	// that is later, so that a round claims no token twice.
	NextAttempt time.Time
	Now         time.Time
}

// Notice is what is to be told of an account: that it requires re-authorising,
// or does no more.
type Notice struct {
	Account  string
	Required bool
	Error    string // why it is required
	Version  int64
	At       time.Time
}

// Retry is an entry of the journal: the exchange of a token in doubt, written
// before the token was presented again.
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

// Tokens keeps sealed tokens. Every token enters and leaves opened; only
// ciphertext reaches the database.
//
// A token is due when it expires within the round's window, its last success is
// older than half of the token's lifetime, its next attempt is not ahead, no
// live lease holds it and it does not require re-authorising. All but the lease
// is judged as of the moment at which the round was opened, and a claim moves
// the next attempt behind it: so a round of n tokens makes at most n exchanges.
type Tokens interface {
	// Token returns the account's token, or ErrNotFound.
	Token(ctx context.Context, account string) (Token, error)
	// OpenRound counts the due tokens and creates a round of batches of at
	// most batchSize, under an id of the caller's; one that is there stays as it
	// is. It forgets the rounds that are older than RoundRetention, and the
	// journal of that time; what is told of those rounds later fails with
	// ErrNotFound.
	OpenRound(ctx context.Context, id string, window time.Duration, batchSize int, now time.Time) (Round, error)
	// ClaimDue claims up to Limit tokens of a round in one short statement,
	// skipping rows that others hold, those that have been due for longest
	// first. It writes what a lost answer would leave, and an entry in the
	// journal for each that is in doubt. Those that do not open (*KeyError,
	// *DamagedError) are given back with that as their failure, for another round:
	// they were not presented. The error tells of them beside the tokens that do.
	ClaimDue(ctx context.Context, claim DueClaim) ([]Token, error)
	// ClaimToken claims one account's token for one exchange, as ClaimDue does.
	// It returns the row as it is, claimed or not.
	ClaimToken(ctx context.Context, claim TokenClaim) (Token, bool, error)
	// SaveToken commits both tokens of a fresh pair in one statement fenced by
	// the claim's version alone, since a pair that X gave is the truth even if
	// the lease ran out. It ends the lease and every doubt and failure; where
	// the account required re-authorising, it ends its requests' wait for that,
	// as an import does. The pair that the row has by an earlier call is saved, so
	// that a call whose answer was lost may be repeated. ErrFenced.
	SaveToken(ctx context.Context, claim Token, pair Pair, now time.Time) error
	// SaveTokenFailure records a failure, fenced by version and lease, and
	// ends the lease. ErrFenced.
	SaveTokenFailure(ctx context.Context, claim Token, failure TokenFailure) error
	// Disconnect makes the account require re-authorising at once, whatever its
	// pair is worth, and returns the token with that pair. A pair that comes of
	// an earlier claim is refused from then on. ErrNotFound; ErrTokenBusy while
	// a live lease holds the token.
	Disconnect(ctx context.Context, account string, now time.Time) (Token, error)
	// ForgetPair overwrites the pair of a token that was disconnected, fenced by
	// its version. ErrFenced.
	ForgetPair(ctx context.Context, token Token) error
	// Retries returns the journal of the account: when it was tried again while
	// its token was in doubt, oldest first.
	Retries(ctx context.Context, account string) ([]Retry, error)
	// Notices returns up to limit changes of what an account requires that are
	// not told yet; of one account, or with "" of all.
	Notices(ctx context.Context, account string, limit int) ([]Notice, error)
	// MarkNoticed remembers that a notice was published. A change in between
	// becomes a notice of its own.
	MarkNoticed(ctx context.Context, notice Notice) error
	// BatchDone counts a batch once, however often it is told, and returns the
	// round.
	BatchDone(ctx context.Context, round string, batch, refreshed, failed, skipped int, now time.Time) (Round, error)
	// RoundDelivered remembers that the round's summary was published.
	RoundDelivered(ctx context.Context, round string) error
}

// KeyUse is how many token rows are sealed with which keys; one row may be
// sealed with two.
type KeyUse struct {
	AccessKey, RefreshKey string // key ids; "" for a value that names none
	Rows                  int
}

// Resealed is a token row whose pair was sealed anew.
type Resealed struct {
	Old             SealedToken
	Access, Refresh string
}

// Keys is what changing encryption keys needs of the database. It sees
// ciphertext alone.
type Keys interface {
	// KeyUses counts the token rows by their keys. Two entries may have the same.
	KeyUses(ctx context.Context) ([]KeyUse, error)
	// Key check value returns the ledger's id and its key check value, "" where it was never checked.
	KeyCheck(ctx context.Context) (ledgerID, keyCheck string, err error)
	// SealedTokens returns up to limit token rows in the order of their ids, those
	// behind after; "" begins.
	SealedTokens(ctx context.Context, after string, limit int) ([]SealedToken, error)
	// Reseal replaces ciphertext by ciphertext where it is still what was read and
	// nobody holds the row, and returns how many rows that were. Nothing else of a
	// row changes: it is the same pair.
	Reseal(ctx context.Context, rows []Resealed) (int, error)
}

// Key is a request's identity.
type Key struct{ Account, ID string }

// Acceptance is a decoded request at the door.
type Acceptance struct {
	Request jetpost.Request // with account and id filled in
	Body    []byte          // as it came
	Digest  []byte          // of the decoded request: what "equal body" means
	// Hold is set for a request that this worker cannot read yet; it is
	// accepted as held, without posts.
	Hold *jetpost.Reason
	// Media are the digests that are known of the posts' media, by post.
	Media [][]Media
	// CostMicros is what X will charge for the request, as an estimate in
	// millionths of a US dollar; zero where it is not known.
	CostMicros int64
	// RefuseSameText has a new request fail, with CodeSameText, where another
	// account posts one of its texts within SameTextWithin.
	RefuseSameText bool
	// FindSameText has what is told of a new request name one of another account
	// that posts one of its texts.
	FindSameText bool
	Now          time.Time
}

// Key is the identity of the request.
func (a Acceptance) Key() Key { return Key{Account: a.Request.Account, ID: a.Request.ID} }

// SameTextWithin is how near in time two accounts' posts of one text are the same
// content to X.
const SameTextWithin = 24 * time.Hour

// TextQuery asks for another account's posts of one of these texts.
type TextQuery struct {
	Account string   // whose posts do not count
	Hashes  [][]byte // TextHash of each
	DueAt   time.Time
	Now     time.Time
}

// TextsOf asks for others of the request's texts.
func TextsOf(r jetpost.Request, now time.Time) TextQuery {
	q := TextQuery{Account: r.Account, DueAt: r.PublishAt, Now: now}
	for _, p := range r.Posts {
		if hash := TextHash(p.Text); hash != nil {
			q.Hashes = append(q.Hashes, hash)
		}
	}
	return q
}

// Span is when a post of the same text is too near.
func (q TextQuery) Span() (from, to time.Time) {
	due := latest(q.DueAt, q.Now)
	return due.Add(-SameTextWithin), due.Add(SameTextWithin)
}

// TextHash is what is kept of a post's text: its SHA-256, nil of none. White space
// alone is none.
func TextHash(text string) []byte {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

// Decision is what became of an Acceptance.
type Decision int

const (
	Accepted  Decision = iota + 1 // a new request
	Repeated                      // the same again: nothing was done
	Conflict                      // the same identity with another body: nothing was done
	NoAccount                     // no such account: nothing was done
)

// Received is what became of one of many acceptances.
type Received struct {
	Decision Decision
	// Record is the request as it stands, unless the account is unknown.
	Record Record
	// SameText is a request of another account with one of the texts, where that was
	// asked for and there is one. Of two that are accepted at once, one at least is
	// told of the other. Where it could not be looked for, SameTextErr says why.
	SameText    Key
	SameTextErr error
}

// JobFailure is a failure of a job that is its own: everything that it depends on
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

// Claim is a claim of an account's line: at most one worker holds it.
type Claim struct {
	Account string
	// Fence grows with every claim; every write in the lane carries it.
	Fence int64
	// LostClaims counts the claims in a row, up to now, that ended by the
	// lease running out and brought nothing.
	LostClaims int
	// Cache is the driver's, see there; nil in a claim that was made by hand.
	Cache *ClaimCache
}

// Snapshot is what stands at the front of a lane.
type Snapshot struct {
	// Generation is the lane's counter of changes, as of this look.
	Generation int64
	// Pause is the account's latest one, also where it has ended by itself.
	Pause Pause
	// Head is the first due unfinished request, whatever its state; nil where
	// none is due. Order: the request that has begun, then the earlier of
	// due time and acceptance, then the sequence of acceptance.
	Head *Record
	// NextDue is the earliest due time still ahead; zero where there is none.
	NextDue time.Time
	// UnpublishAt is when the lane should go on with the earliest of its deletions; zero
	// where none waits for it.
	UnpublishAt time.Time
}

// Refusals count what X has refused in words that no rule knows.
type Refusals struct {
	// InARow are requests of the account, since X took a post of it or a person resumed it.
	InARow int
	// Accounts have heard the same words lately.
	Accounts int
}

// Record is a request as the ledger holds it.
type Record struct {
	Key
	Seq       int64 // of acceptance, per account
	Body      []byte
	DueAt     time.Time // max(accepted, publish_at); never before an earlier acceptance's
	HoldUntil time.Time // zero where a hold has no end of its own
	// BeganAt is the first intent since it joined its line; zero before.
	BeganAt time.Time
	// Holds counts the holds since the last progress, but those in which nothing
	// fails: for X's processing of media, a window's reset, the end of a stop or a
	// pause, a posting limit, or the next look for a post in doubt.
	Holds int
	Posts []PostRecord
	// Deletion is set once somebody has asked for the deletion of what is live. Such a
	// request is finished, and stays so.
	Deletion *Deletion
	// Event is the type of the latest change.
	Event jetpost.EventType
	// Delivered is a revision up to which all events are known to be published. It is
	// the latest one where nothing waits to be told.
	Delivered int64
	Status    jetpost.RequestStatus
}

// PostRecord is a post as the ledger holds it.
type PostRecord struct {
	Index    int
	State    jetpost.PostState
	ParentID string // set with the first intent
	PostID   string
	Media    []Media   // in the request's order; of those behind the last one nothing is known
	MediaIDs []string  // of the latest intent
	TextHash []byte    // nil where it has no text
	SentAt   time.Time // commit of the latest intent
	NotAfter time.Time // the latest moment at which that intent may be sent
	Attempt  int64     // fence of the latest intent
	// DoubtSince is the SentAt of the first intent whose outcome was in doubt. Looks
	// counts the looks at the account's posts on X that did not settle it, and
	// AbsentAt is the first of the latest ones that did not find it there.
	DoubtSince time.Time
	Checks     int
	AbsentAt   time.Time
	// DeletedAt is when X was known to have the post no more; it stays posted.
	DeletedAt time.Time
}

// Deletion is what is known of the deletion of a request's posts.
type Deletion struct {
	AskedAt time.Time `json:"asked_at"`
	// DoneAt is when nothing was left to delete; zero before.
	DoneAt time.Time `json:"done_at,omitzero"`
	// Reason says why it waits, or why it does not go on.
	Reason *jetpost.Reason `json:"reason,omitempty"`
	// Holds counts the waits since the last progress in which something failed.
	Holds int `json:"holds,omitempty"`
	// NextAt is when a lane should go on with it; zero where none will. It has a column of
	// its own.
	NextAt time.Time `json:"-"`
}

// Media is what is known of one medium of a post.
type Media struct {
	// Digest is the SHA-256 of its bytes in hex, once they are known; other bytes
	// are not posted from then on.
	Digest string `json:"digest,omitempty"`
	// ID is X's, "" while it is not there, and can be posted until ExpiresAt.
	ID        string    `json:"id,omitempty"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// UploadedAt is when X had all of it. While X processes it, CheckAt is when to
	// ask again.
	UploadedAt time.Time `json:"uploaded_at,omitzero"`
	CheckAt    time.Time `json:"check_at,omitzero"`
	// Described tells that X has its alternative text.
	Described bool `json:"described,omitempty"`
	// Renewed tells that X did not take the id of an earlier upload.
	Renewed bool `json:"renewed,omitempty"`
}

// Anchor post is what the ledger knows of an account's posts on X.
type Anchor struct {
	XUserID string
	// PostID is the latest post that is known to be live, "" where there is none.
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
	// CheckAt is when a hold is looked at again, where that is not its end.
	CheckAt time.Time
	// Post is the index of the post that it is about, and PostState what is
	// known of it: pending (X made nothing; the attempt does not count),
	// failed, or sending (doubtful). Post is -1 where it is about none.
	Post      int
	PostState jetpost.PostState
	// Checks and AbsentAt are the post's new ones.
	Checks   int
	AbsentAt time.Time
	// RenewMedia tells that X does not take the ids of the post's media: they are
	// forgotten, once.
	RenewMedia bool
	// Generation is the look that the outcome rests on. A hold without an end is
	// over at once if anything woke since, so that what ends it is never
	// missed.
	Generation int64
	Now        time.Time
}

const (
	// RefusalRetention is how long a refused message is kept, with its whole
	// body: NATS bounds each, and this bounds how many there are.
	RefusalRetention = 30 * 24 * time.Hour
	// MaxForgottenRefusals is how many older ones one call of Refuse forgets.
	// As each call adds one at most, any backlog melts away.
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

// Waiting is an unfinished request as its account's line has it, without what is in
// it.
type Waiting struct {
	Key
	Seq       int64
	State     jetpost.State
	Code      jetpost.Code // why it is held or unknown; else ""
	DueAt     time.Time
	HoldUntil time.Time
	ExpiresAt time.Time
	// Begun tells that it goes before all that have not.
	Begun bool
	// Posts counts its posts, 0 where no worker could read it yet, and Live those of
	// them that are live.
	Posts, Live int
}

// Reservation asks for calls of one of X's windows that all accounts share.
type Reservation struct {
	Window string // names it
	XReset int64  // its end by X's clock in epoch seconds, which tells it from the next
	Left   int    // the calls that X says are left
	Need   int    // those that are wanted; 0 gives back what is set aside
	Now    time.Time
}

// Reserved is what came of a Reservation.
type Reserved struct {
	Granted bool
	Left    int // the calls that X says are left, as far as any worker has told
}

// Grant is the rule of reservations: what becomes of r where that many calls are left
// and others have set some of them aside, and how many are then the lane's.
func (r Reservation) Grant(left, others int) (out Reserved, take int) {
	out = Reserved{Granted: r.Need == 0 || others+r.Need <= left, Left: left}
	if out.Granted {
		take = r.Need
	}
	return out, take
}

// MaxHoldQueue is how many requests one call of HoldQueue holds.
const MaxHoldQueue = 500

// LateQueue is what of an account's line was due before a time and is not done.
type LateQueue struct {
	Account string
	// Unsent counts the requests of which nothing was sent, and Since is when the
	// first of them was due.
	Unsent int
	Since  time.Time
	// Begun counts the others: a post of them is live, or may be, or no worker could
	// read them so far.
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

// ReplayResult tells what a replay did.
type ReplayResult struct {
	// Queued is false where there was nothing to do: the state says why.
	Queued bool
	State  jetpost.State // before the replay
	Left   int           // posts that are not live
	// Unpublished tells that somebody asked for the deletion of its posts: it is never
	// sent again.
	Unpublished bool
}

// Requests keeps requests, their posts and the lanes they stand in.
//
// Each method that takes a Lane fails with ErrFenced once another worker has
// claimed it; only what X answered to an intent is taken from its writer even
// then (see Posted and Conclude). A lane's WakeAt is when it should next be run: acceptance and
// every act that ends a hold bring it forward to their time, a release sets
// it. It is what makes wake-ups and schedules mere hints.
type Requests interface {
	// Accept stores a request, its posts and the wake of its lane in one
	// transaction. The same bytes are an equal body, whatever the digests; so
	// a request that was accepted with Hold is read at last by accepting its
	// body again without: it keeps its place. ErrNotFound: no such account.
	Accept(ctx context.Context, in Acceptance) (Decision, error)
	// AcceptMany accepts requests in their order in one transaction, each with its
	// own decision, for the holder of the lease. ErrFenced: somebody else took it,
	// and nothing was accepted. The zero lease is not asked for.
	AcceptMany(ctx context.Context, lease Lease, in []Acceptance) ([]Received, error)
	// JobFailed counts a failure of a job and returns how many it has had. What is
	// older than RefusalRetention is forgotten.
	JobFailed(ctx context.Context, f JobFailure) (int, error)
	// SameText returns a request of another account that posts one of the texts
	// too near in time: a post of it is live, may be live, or is still to be sent.
	SameText(ctx context.Context, q TextQuery) (Key, bool, error)
	// Refuse records a message that never became a request, once per place in
	// the stream. It forgets those that the stream took RefusalRetention before
	// this one.
	Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error
	// Refusals returns the latest refusals, newest first.
	Refusals(ctx context.Context, limit int) ([]jetpost.Refusal, error)

	// ClaimLane takes the lane if no live lease holds it, and looks at its front
	// (see [Claim.Next]). ErrNotFound: no such account.
	ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (Claim, bool, error)
	// ExtendLane gives the lease its full length again.
	ExtendLane(ctx context.Context, lane Claim, lease time.Duration, now time.Time) error
	// ReleaseLane frees the lane and sets when it should next run (zero: when
	// something wakes), unless something woke since the look: then it keeps
	// the lane and returns false.
	ReleaseLane(ctx context.Context, lane Claim, generation int64, wakeAt, now time.Time) (bool, error)
	// DueLanes returns up to limit accounts whose lane should run now and has
	// no live lease.
	DueLanes(ctx context.Context, now time.Time, limit int) ([]string, error)
	// Snapshot reads the front of the lane.
	Snapshot(ctx context.Context, lane Claim, now time.Time) (Snapshot, error)

	// Begin commits the intent to send one pending post, makes the request
	// publishing and extends the lease. ErrNotRunnable: it was cancelled or put
	// off, its account was paused, or that post is not pending.
	Begin(ctx context.Context, lane Claim, id string, intent Intent) error
	// Posted commits that X made the post. It holds for whoever wrote the
	// latest intent, even after the lane was taken over: what X answered is
	// true; and for the lane's present holder, who may have found on X what
	// another worker sent. With the last post the request is published; an unknown request
	// returns to the queue and its lane wakes. Telling it again is a no-op. Where the
	// request is done, the front of the lane is looked at (see [Claim.Next]).
	// ErrFenced: the post's latest intent is another's, and so is the lane.
	// ErrPostTaken.
	Posted(ctx context.Context, lane Claim, id string, post int, postID string, now time.Time) (jetpost.State, error)
	// Conclude moves the request. Where it was finished meanwhile, it stays so
	// and only the post's state is kept; where that post turned out to be live
	// meanwhile, or is known not to be although the outcome doubts it, or the
	// request was put off, the outcome is out of date and nothing changes.
	//
	// After the lane was taken over it still takes one thing: that X did not
	// make a post (pending or failed), from whoever wrote the post's latest
	// intent, while the post is still sending. The post's state is kept and
	// the lane wakes. Of the request, only this changes: with a failed post an
	// unfinished one fails; with a pending post an unknown one returns to the
	// queue. Everything else fails with ErrFenced.
	Conclude(ctx context.Context, lane Claim, id string, out Outcome) error

	// Uploaded keeps what is known of the media of a post that is still to be sent.
	// It is no change that people are told of. ErrNotRunnable: that post is not
	// pending, or its request finished.
	Uploaded(ctx context.Context, lane Claim, id string, post int, media []Media) error

	// Reserve sets calls of a window that all accounts share aside for the lane, in
	// place of those that it had, until it sets others aside, is released or its lease
	// ends. They are granted only where all that are set aside fit into what is left.
	// ErrFenced.
	Reserve(ctx context.Context, lane Claim, r Reservation) (Reserved, error)

	// HoldQueue holds every due request of the lane that waits behind its head,
	// for the head's reason, and returns those that it holds newly: up to
	// MaxHoldQueue, the first ones first. As with Conclude, a hold without an end
	// is over at once if anything woke since the look.
	HoldQueue(ctx context.Context, lane Claim, reason jetpost.Reason, generation int64, now time.Time) ([]Key, error)
	// EndHolds makes the account's requests that are held for the code due
	// now and wakes its lane. It returns how many there were.
	EndHolds(ctx context.Context, account string, code jetpost.Code, now time.Time) (int, error)
	// PauseAccount has the account post nothing more, from its commit on: a thread
	// stops before its next post. It replaces an earlier pause, ends the holds for
	// that (EndHolds with its code), and wakes the lane. ErrNotFound.
	PauseAccount(ctx context.Context, account string, pause Pause) error
	// ResumeAccount ends the account's pause, the holds for it, and wakes the lane.
	// It returns the pause that there was, the zero one where there was none.
	// ErrNotFound.
	ResumeAccount(ctx context.Context, account string, now time.Time) (Pause, error)
	// Refused notes that X has refused a post of the request in words that no rule
	// knows, and counts how often it did so lately. It fails with ErrFenced where the
	// lane is not the caller's.
	Refused(ctx context.Context, lane Claim, id, words string, within time.Duration, now time.Time) (Refusals, error)
	// BlockAccount pauses the account for what X has said of it, by [LaneRow.Block], or
	// with the zero pause ends that, as ResumeAccount does. What a person has paused
	// stays so. It returns the pause that stands then. ErrFenced.
	BlockAccount(ctx context.Context, lane Claim, pause Pause, now time.Time) (Pause, error)
	// PauseChanges returns up to limit turns of pauses that are not told yet, of each account the
	// last; of one account, or with "" of all.
	PauseChanges(ctx context.Context, account string, limit int) ([]PauseChange, error)
	// MarkPauseChangeTold forgets a turn that was told. A later one stays to be told.
	MarkPauseChangeTold(ctx context.Context, turn PauseChange) error
	// Late returns, by account, what is unfinished though it was due before a time:
	// of one account or, with "", of all that have such requests. It counts up to
	// limit of each, the first in the line first.
	Late(ctx context.Context, account string, dueBefore time.Time, limit int) ([]LateQueue, error)
	// ExpireLate fails, with CodeExpired, up to limit requests of an account of which
	// nothing was sent and that were due before a time, the first in the line first,
	// and wakes its lane. A worker that is at one of them sends nothing of it: of its
	// Begin and this, the first wins. ErrNotFound: no such account.
	ExpireLate(ctx context.Context, account string, dueBefore time.Time, limit int, now time.Time) ([]Key, error)
	// Sent returns when the account's posts were sent that are live and were sent
	// after a time, the latest first, up to limit.
	Sent(ctx context.Context, account string, after time.Time, limit int) ([]time.Time, error)
	// Replay puts a failed request back into its line, behind what was accepted
	// before, and a held one back to work where it stands: failed posts become
	// pending, those that are live or doubtful stay. ErrNotFound.
	Replay(ctx context.Context, key Key, now time.Time) (ReplayResult, error)
	// Cancel takes an unfinished request back; it returns the state before,
	// and ErrNotRunnable for one that is finished. A post on its way is still
	// recorded.
	Cancel(ctx context.Context, key Key, now time.Time) (jetpost.State, error)
	// Reschedule moves an unfinished request of which nothing was sent to another
	// time, or with a time that is not ahead to now, behind what was accepted
	// before. ErrNotRunnable: it has begun, is finished or unread, as the state
	// tells that is returned with it. ErrExpired.
	Reschedule(ctx context.Context, key Key, at, now time.Time) (jetpost.State, error)
	// Resolve settles the doubtful post of an unknown or held request by a
	// person's word: live with that id or, with an empty one, not live. The request
	// returns to its line or is published. ErrNotRunnable: nothing of it is
	// doubtful. ErrPostTaken.
	Resolve(ctx context.Context, key Key, postID string, now time.Time) (jetpost.State, error)
	// Reconcile has the account's posts looked at again for the doubtful post of
	// a request, from now on and as often as the first time. ErrNotRunnable:
	// nothing of it is doubtful.
	Reconcile(ctx context.Context, key Key, now time.Time) error
	// Anchor post returns what is known of the account's posts, or ErrNotFound. A post that was
	// deleted is no anchor post.
	Anchor(ctx context.Context, account string) (Anchor, error)
	// Owned returns those of the posts on X that are recorded for a post of ours, also
	// those that were deleted.
	Owned(ctx context.Context, postIDs []string) ([]string, error)
	// Deleted returns those of the posts on X that are ours and were deleted.
	Deleted(ctx context.Context, postIDs []string) ([]string, error)

	// Unpublish asks for the deletion of what of a request is live, or may be, and cancels
	// the request where it is unfinished. It wakes the lane, which goes on with a deletion
	// that waits, or was given up, at once. It returns the state before, and
	// ErrNotRunnable where nothing of a finished request is live. One that is done stays
	// as it is. ErrNotFound.
	Unpublish(ctx context.Context, key Key, now time.Time) (jetpost.State, error)
	// Unpublishing returns the request whose deletion the lane goes on with first, at
	// [Snapshot].UnpublishAt.
	Unpublishing(ctx context.Context, lane Claim) (Record, bool, error)
	// PostDeleted commits that X has the post no more. It holds for whoever found that,
	// since it stays true after the lane was taken over; telling it again is a no-op.
	// ErrNotRunnable: that post is not live, or nobody asked for its deletion.
	PostDeleted(ctx context.Context, lane Claim, id string, post int, now time.Time) error
	// HoldUnpublish has a deletion wait until out's CheckAt or the end of its reason, where
	// out's state is held, and else gives it up until somebody asks again. Of the post in
	// doubt that out is about, if any, it keeps what is known, as Conclude does.
	HoldUnpublish(ctx context.Context, lane Claim, id string, out Outcome) error

	// Request returns one request, or ErrNotFound.
	Request(ctx context.Context, key Key) (Record, error)
	// ListRequests returns requests, the latest accepted first.
	ListRequests(ctx context.Context, filter Filter) ([]Record, error)
	// Waiting returns up to limit unfinished requests, by account, due time and
	// sequence of acceptance: those behind another one; the zero value begins.
	Waiting(ctx context.Context, after Waiting, limit int) ([]Waiting, error)
	// CountRequests counts requests by state, up to MaxCounted of each.
	CountRequests(ctx context.Context) (map[jetpost.State]int, error)

	// OutboxPending returns up to limit requests whose latest revision is older
	// than before and has no published event.
	OutboxPending(ctx context.Context, before time.Time, limit int) ([]Key, error)
	// MarkDelivered remembers the revision whose event was published. It
	// returns false where the request has moved on since: then the newer one
	// must be published. That it only began to be sent, after it was accepted, is no
	// news, and is marked too.
	MarkDelivered(ctx context.Context, key Key, revision int64) (bool, error)
	// MarkManyDelivered is MarkDelivered for many. It returns those which may not
	// be the latest.
	MarkManyDelivered(ctx context.Context, told []Revision) (rest []Key, err error)
}

// Link is a one-time link by which a person connects an X account.
type Link struct {
	// ID names the link in logs and calls; nobody can open the link with it.
	ID        string
	Account   string // the name under which the account is connected; it may not exist yet
	ReturnTo  string // where to send the person afterwards; "" shows a page
	CreatedAt time.Time
	ExpiresAt time.Time
	UsedAt    time.Time // zero while no account was connected by it
}

// NewLink is a link to keep. Its token is 256 random bits at least: what is
// stored of it is a hash alone.
type NewLink struct {
	Token     secret.String
	Account   string
	ReturnTo  string
	ExpiresAt time.Time
	Now       time.Time
}

// LinkAttempt is one try to connect by a link: a way to X and back. State and
// Browser are 256 random bits at least; they are stored as hashes, the verifier
// is sealed.
type LinkAttempt struct {
	State     secret.String // goes to X and back through the browser's address bar
	Browser   secret.String // stays with the browser that began
	Verifier  secret.String // of PKCE
	ExpiresAt time.Time
	Now       time.Time
}

const (
	// LinkRetention is how long an expired link is still known as such.
	LinkRetention = 7 * 24 * time.Hour
	// MaxForgottenLinks is how many older ones one call of AddLink forgets. As
	// each call adds one, any backlog melts away.
	MaxForgottenLinks = 100 // rows
)

// Links keeps one-time links. One connects one account, once; until then the
// person may try again, also in another tab: the newest attempt is the only one.
type Links interface {
	// AddLink keeps a link, and forgets those that expired LinkRetention ago.
	AddLink(ctx context.Context, link NewLink) error
	// Link returns the link with that token, whatever became of it, or
	// ErrNotFound.
	Link(ctx context.Context, token secret.String) (Link, error)
	// BeginAttempt replaces the link's attempt by a new one. ErrNotFound,
	// ErrLinkUsed, ErrLinkExpired; ErrLinkBusy while one is being finished.
	BeginAttempt(ctx context.Context, token secret.String, attempt LinkAttempt) (Link, error)
	// TakeAttempt hands out the attempt with that state, once, to the browser
	// that began it; it may outlive its link, as it began in time. For the
	// length of the lease the link is busy, so that two attempts are never
	// finished at once. ErrNotFound, ErrOtherBrowser, ErrLinkUsed, ErrAttemptOver.
	TakeAttempt(ctx context.Context, state, browser secret.String, lease time.Duration, now time.Time) (Link, secret.String, error)
	// GiveUpAttempt says that the attempt which was taken connected nothing,
	// and so ends its lease.
	GiveUpAttempt(ctx context.Context, id string, state secret.String) error
	// UseLink says that an account was connected by the link: it opens nothing
	// more. The first time counts. ErrNotFound.
	UseLink(ctx context.Context, id string, now time.Time) error
}
