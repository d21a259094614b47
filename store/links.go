package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/jetpost/jetpost/internal/secret"
)

// Link is a one-time link by which a person connects an X account.
type Link struct {
	// ID names the link in logs and calls: the LinkID of its token. In a browser it does
	// not open the link.
	ID        string
	Account   string // the name under which the account is connected; it may not exist yet
	ReturnTo  string // where to send the person afterwards; "" shows a page
	CreatedAt time.Time
	ExpiresAt time.Time
	UsedAt    time.Time // zero until an account was connected by it
}

// LinkDigest is what is stored of a link's token, state or browser. Each is random and
// too long to be guessed, so a plain hash hides it. A lookup by the hash reveals
// nothing by its duration.
func LinkDigest(value secret.String) []byte {
	sum := sha256.Sum256([]byte(value.Reveal()))
	return sum[:]
}

// LinkID is the id of the link whose token has that digest.
func LinkID(digest []byte) string { return hex.EncodeToString(digest) }

// Over says why the link opens nothing any more; it returns nil while the link is
// valid.
func (l Link) Over(now time.Time) error {
	switch {
	case !l.UsedAt.IsZero():
		return ErrLinkUsed
	case !now.Before(l.ExpiresAt):
		return ErrLinkExpired
	default:
		return nil
	}
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

// LinkAttempt is one attempt to connect by a link: the redirect to X and back. State and
// Browser are the digests of values of at least 252 random bits, see LinkDigest. The
// verifier is sealed.
type LinkAttempt struct {
	State     []byte        // of what goes to X and back through the browser's address bar
	Browser   []byte        // of what stays with the browser that began
	Verifier  secret.String // of PKCE
	ExpiresAt time.Time
	Now       time.Time
}

// Links stores one-time links. A link connects one account, once. Until then the person
// may try again, also in another tab: only the newest attempt counts.
type Links interface {
	// AddLink stores a link, and deletes those that expired 7 days ago.
	AddLink(ctx context.Context, link NewLink) error
	// Link returns the link with that id, in any state, or ErrNotFound.
	Link(ctx context.Context, id string) (Link, error)
	// AttemptLink returns the link of an attempt that TakeAttempt would hand out, and fails
	// as that would.
	AttemptLink(ctx context.Context, state, browser []byte, now time.Time) (Link, error)
	// BeginAttempt replaces the link's attempt by a new one. ErrNotFound, ErrLinkUsed,
	// ErrLinkExpired; ErrLinkBusy while an attempt is being finished.
	BeginAttempt(ctx context.Context, id string, attempt LinkAttempt) (Link, error)
	// TakeAttempt hands out the attempt with that state, once, to the browser that
	// began it. An attempt may end after its link has expired, if it began in time. The
	// link is busy for the length of the lease, so that two attempts are never finished
	// at once. ErrNotFound, ErrOtherBrowser, ErrLinkUsed, ErrAttemptOver.
	TakeAttempt(ctx context.Context, state, browser []byte, lease time.Duration, now time.Time) (Link, secret.String, error)
	// GiveUpAttempt says that the taken attempt connected no account. It ends the
	// attempt's lease.
	GiveUpAttempt(ctx context.Context, id string, state []byte) error
	// UseLink says that an account was connected by the link. The link opens nothing
	// after that. The first call counts. ErrNotFound.
	UseLink(ctx context.Context, id string, now time.Time) error
}
