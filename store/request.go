package store

import (
	"time"

	"github.com/jetpost/jetpost"
)

// Key is a request's identity.
type Key struct{ Account, ID string }

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

// Open reports whether something is left to be deleted or to be found out.
func (d *Deletion) Open() bool { return d != nil && d.DoneAt.IsZero() }

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
