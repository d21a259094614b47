package rules

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"github.com/jetpost/jetpost/store"
)

// MaxBackoffDoublings bounds the wait between retries of a token in doubt (see
// [store.Pace]).
const MaxBackoffDoublings = 8

// OpenTokens opens what a statement claimed, in the order in which the tokens expire:
// RETURNING does not preserve the order. It calls giveBack for each token that cannot
// be opened. The error reports those, beside the tokens that could be opened.
func OpenTokens(s *store.Sealer, sealed []store.SealedToken, giveBack func(claim store.Token, why error) error) (tokens []store.Token, err error) {
	slices.SortFunc(sealed, func(a, b store.SealedToken) int {
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

// MayReplace reports whether an import may replace a row. It fails with *store.KeyError for a
// row that can be opened again once its key is back. A damaged row may be replaced,
// because nothing else helps. If the pair is the one that was imported last, MayReplace
// fails with *store.DamagedError: a refresh may have spent that pair since, and using it
// could end what a backup of the row still has.
func MayReplace(s *store.Sealer, row store.SealedToken, again bool) error {
	_, err := s.OpenToken(row)
	if again || errors.As(err, new(*store.KeyError)) {
		return err
	}
	return nil
}

// Saved reports whether the row already has the pair that a claim brought: it was
// committed, and the answer was lost.
func Saved(s *store.Sealer, row store.SealedToken, claim store.Token, pair store.Pair) bool {
	if row.Version <= claim.Version {
		return false
	}
	there, err := s.OpenToken(row)
	return err == nil && there.Access == pair.Access && there.Refresh == pair.Refresh
}

// PairDigest is the SHA-256 of the refresh token. It identifies a repeated import. The
// token cannot be recovered from it, because random values of that length cannot be
// enumerated.
func PairDigest(p store.Pair) []byte {
	sum := sha256.Sum256([]byte(p.Refresh.Reveal()))
	return sum[:]
}

// RefreshedMeta is the whole metadata of a token that was just refreshed: it has no
// earlier failure.
func RefreshedMeta(now time.Time) store.TokenMeta {
	return store.TokenMeta{LastRefreshAt: storedTime(now)}
}

// DisconnectedMeta is what Disconnect adds to the token's metadata.
func DisconnectedMeta(now time.Time) store.TokenMeta {
	return store.TokenMeta{RefreshError: store.Disconnected, RefreshFailedAt: storedTime(now), RequiresReauth: true}
}

// FailureMeta is what a failure adds to the token's metadata. Unset fields are not
// encoded, so the latest success and an earlier refusal stay on record.
func FailureMeta(f store.TokenFailure) store.TokenMeta {
	return store.TokenMeta{RefreshError: f.Error, RefreshFailedAt: storedTime(f.Now), RequiresReauth: f.Outcome == store.ExchangeRefused}
}

// storedTime rounds to the microsecond, the precision of the time columns.
func storedTime(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// NoticeOf completes a notice with the token's metadata. Before that its time is the
// pair's.
func NoticeOf(n store.Notice, meta store.TokenMeta) store.Notice {
	if n.Required {
		n.Error, n.At = meta.RefreshError, meta.RefreshFailedAt
	}
	return n
}
