package store

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"
)

// This file is for the drivers: the parts of tokens and refresh rounds that are the
// same for every database.

// RoundRetention is how long a refresh round and its batches are stored. Opening a
// round deletes older ones. Requests have no such limit: a finished request tells a
// repeat of its identity from a new request, and its posts keep a post on X from being
// counted as two of ours.
const RoundRetention = 30 * 24 * time.Hour

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

// OpenTokens opens what a statement claimed, in the order in which the tokens expire:
// RETURNING does not preserve the order. It calls giveBack for each token that cannot
// be opened. The error reports those, beside the tokens that could be opened.
func (s *Sealer) OpenTokens(sealed []SealedToken, giveBack func(claim Token, why error) error) (tokens []Token, err error) {
	slices.SortFunc(sealed, func(a, b SealedToken) int {
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), cmp.Compare(a.ID, b.ID))
	})
	var failures []error
	for _, one := range sealed {
		token, err := s.OpenToken(one)
		if err != nil {
			failures = append(failures, err, giveBack(one.Token, err))
			continue
		}
		tokens = append(tokens, token)
	}
	return tokens, errors.Join(failures...)
}

// MayReplace reports whether an import may replace a row. It fails with *KeyError for a
// row that can be opened again once its key is back. A damaged row may be replaced,
// because nothing else helps. If the pair is the one that was imported last, MayReplace
// fails with *DamagedError: a refresh may have spent that pair since, and using it
// could end what a backup of the row still has.
func (s *Sealer) MayReplace(row SealedToken, again bool) error {
	_, err := s.OpenToken(row)
	if again || errors.As(err, new(*KeyError)) {
		return err
	}
	return nil
}

// Saved reports whether the row already has the pair that a claim brought: it was
// committed, and the answer was lost.
func (s *Sealer) Saved(row SealedToken, claim Token, pair Pair) bool {
	if row.Version <= claim.Version {
		return false
	}
	there, err := s.OpenToken(row)
	return err == nil && there.Access == pair.Access && there.Refresh == pair.Refresh
}

// SealPair seals a pair for the token row of that id.
func (s *Sealer) SealPair(id string, pair Pair) (access, refresh string, err error) {
	if access, err = s.Seal(pair.Access, id+accessColumn); err != nil {
		return "", "", err
	}
	refresh, err = s.Seal(pair.Refresh, id+refreshColumn)
	return access, refresh, err
}

// Digest is the SHA-256 of the refresh token. It identifies a repeated import. The
// token cannot be recovered from it, because random values of that length cannot be
// enumerated.
func (p Pair) Digest() []byte {
	sum := sha256.Sum256([]byte(p.Refresh.Reveal()))
	return sum[:]
}

// RefreshAfter is when half of the lifetime of a pair that came at that time is over.
// It is never before that time; otherwise the pair could become due in a round that was
// opened before.
func (p Pair) RefreshAfter(came time.Time) time.Time {
	return latest(came, came.Add(p.ExpiresAt.Sub(came)/2))
}

// RefreshedMeta is the whole metadata of a token that was just refreshed: it has no
// earlier failure.
func RefreshedMeta(now time.Time) TokenMeta { return TokenMeta{LastRefreshAt: storedTime(now)} }

// DisconnectedMeta is what Disconnect adds to the token's metadata.
func DisconnectedMeta(now time.Time) TokenMeta {
	return TokenMeta{RefreshError: Disconnected, RefreshFailedAt: storedTime(now), RequiresReauth: true}
}

// MetaPatch is what a failure adds to the token's metadata. Unset fields are not
// encoded, so the latest success and an earlier refusal stay on record.
func (f TokenFailure) MetaPatch() TokenMeta {
	return TokenMeta{RefreshError: f.Error, RefreshFailedAt: storedTime(f.Now), RequiresReauth: f.Outcome == ExchangeRefused}
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
		// An exchange without effect says nothing about the exchange before.
		return claim.InDoubtSince, latest(f.NextAttempt, f.Now)
	}
}

// storedTime rounds to the microsecond, the precision of the time columns.
func storedTime(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// About completes a notice with the token's metadata. Before that its time is the
// pair's.
func (n Notice) About(meta TokenMeta) Notice {
	if n.Required {
		n.Error, n.At = meta.RefreshError, meta.RefreshFailedAt
	}
	return n
}

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
