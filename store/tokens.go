package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jetpost/jetpost"
)

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

// The two columns that are sealed, each for its own place.
const (
	accessColumn  = "/access_token"
	refreshColumn = "/refresh_token"
)

// SealedToken is a token as it is stored: its Pair is not opened yet.
type SealedToken struct {
	Token
	SealedAccess, SealedRefresh string
}

// OpenToken opens the pair. It fails with *KeyError or *DamagedError. If both apply, it
// fails with *KeyError, because one of the tokens can be opened again.
func (s *Sealer) OpenToken(sealed SealedToken) (Token, error) {
	t := sealed.Token
	var errAccess, errRefresh error
	t.Access, errAccess = s.Open(sealed.SealedAccess, t.ID+accessColumn)
	t.Refresh, errRefresh = s.Open(sealed.SealedRefresh, t.ID+refreshColumn)
	if errors.As(errRefresh, new(*KeyError)) {
		errAccess, errRefresh = errRefresh, errAccess
	}
	if err := cmp.Or(errAccess, errRefresh); err != nil {
		return Token{}, fmt.Errorf("open token of %s: %w", t.Account, err)
	}
	return t, nil
}

// SealPair seals a pair for the token row of that id.
func (s *Sealer) SealPair(id string, pair Pair) (access, refresh string, err error) {
	if access, err = s.Seal(pair.Access, id+accessColumn); err != nil {
		return "", "", err
	}
	refresh, err = s.Seal(pair.Refresh, id+refreshColumn)
	return access, refresh, err
}

// Pace is how long a claim of a token lasts, and when the next attempt follows if the
// outcome stays unknown. The claim itself writes the next attempt.
type Pace struct {
	Lease time.Duration
	// NearEnd is how long before the end of its access token a token in doubt is tried
	// again. Until then the access token is used.
	NearEnd time.Duration
	// Backoff is the wait after the lease of a retry. It doubles with each attempt, up
	// to 8 times.
	Backoff time.Duration
}

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

// String is for logs.
func (o ExchangeOutcome) String() string {
	switch o {
	case ExchangeUnknown:
		return "unknown"
	case ExchangeRefused:
		return "refused"
	default:
		return "nothing"
	}
}

// TokenFailure is an exchange that brought no new pair.
type TokenFailure struct {
	Error   string // one line, never a token value
	Outcome ExchangeOutcome
	// NextAttempt is the earliest next exchange after ExchangeNothing. If Now is later,
	// Now is used, so that a round claims no token twice.
	NextAttempt time.Time
	Now         time.Time
}

// Leaves is the state that a failure leaves: the start of the exchange whose outcome is
// unknown, and the next attempt. Zero is none.
func (f TokenFailure) Leaves(claim Token) (startedAt, nextAttempt time.Time) {
	switch f.Outcome {
	case ExchangeUnknown:
		return claim.StartedAt, claim.NextAttemptAt
	case ExchangeRefused:
		return time.Time{}, time.Time{}
	default:
		nextAttempt = f.NextAttempt
		if f.Now.After(nextAttempt) {
			nextAttempt = f.Now
		}
		// An exchange without effect says nothing about the exchange before.
		return claim.InDoubtSince, nextAttempt
	}
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

// BatchResult is what became of the tokens of one batch of a round.
type BatchResult struct {
	Round                      string // its id
	Batch                      int    // its number in the round
	Refreshed, Failed, Skipped int
	Now                        time.Time
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
	// as it is. OpenRound deletes rounds older than 30 days, and the journal of
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
	// ends the lease. It can be repeated if its answer was lost. ErrFenced.
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
	// BatchDone counts a batch once, however often it is reported, and returns the
	// round.
	BatchDone(ctx context.Context, result BatchResult) (Round, error)
	// RoundDelivered records that the round's summary was published.
	RoundDelivered(ctx context.Context, round string) error
}
