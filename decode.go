package jetpost

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"time"
)

// NewerVersionError says that the request was written for a later version of the
// contract. That is no mistake: a newer worker can take it.
type NewerVersionError struct {
	Account string
	ID      string // empty if the request has none
	Version int    // larger than [Version]
}

func (e *NewerVersionError) Error() string {
	return fmt.Sprintf("request is of version %d, the newest known here is %d", e.Version, Version)
}

// Decode reads a message that was published for an account, which is the last token of
// its subject, or "" for the bare subject. The result names its account and version,
// its times are in UTC, its texts have LF line ends, and it is valid by the rules of
// [Request.Validate]. An id that the producer left out stays empty.
//
// Decode fails with *[InvalidError], or with *[NewerVersionError] for a request of a
// later version. It reads only account and id of such a request.
func Decode(account string, body []byte) (Request, error) {
	var f findings
	var r Request
	root, err := parse(body, &f)
	if err != nil {
		f.settleAccount(&r, account)
		f.add("", "%v", err)
		return Request{}, f.err(r)
	}
	version := root.version()
	if version > Version {
		root.members = slices.DeleteFunc(root.members, func(m member) bool {
			return m.name != "account" && m.name != "id"
		})
	}
	f.fill(reflect.ValueOf(&r).Elem(), root, "")
	for i := range r.Posts {
		r.Posts[i].Text = LineFeeds(r.Posts[i].Text)
		for n := range r.Posts[i].Media {
			r.Posts[i].Media[n].Alt = LineFeeds(r.Posts[i].Media[n].Alt)
		}
	}
	f.settleAccount(&r, account)
	if version > Version {
		if r.checkIdentity(&f); len(f.problems) > 0 {
			return Request{}, f.err(r)
		}
		return Request{}, &NewerVersionError{Account: r.Account, ID: r.ID, Version: version}
	}
	if r.Version == 0 && root.member("version").kind == kindNumber {
		// Go cannot tell a zero from an absent field; a producer can.
		f.refuse("/version", "is 0, want %d", Version)
	}
	r.check(&f)
	if err := f.err(r); err != nil {
		return Request{}, err
	}
	r.Version = Version
	return r, nil
}

// version is 0 if it is absent or no whole number.
func (n node) version() int {
	v := n.member("version")
	if v.kind != kindNumber {
		return 0
	}
	version, err := strconv.ParseInt(v.word, 10, 32)
	if err != nil {
		return 0
	}
	return int(version)
}

// settleAccount decides between the account of the subject and that of the body. If
// they differ, the message belongs to the subject's account, because NATS checked that
// permission.
func (f *findings) settleAccount(r *Request, subject string) {
	switch {
	case subject == "":
		return
	case !accountPattern.MatchString(subject):
		f.spoil("/account", "is %s in the subject, want %s", quote(subject), accountPattern.words)
		return
	case r.Account != "" && r.Account != subject:
		f.refuse("/account", "is %s, but the subject names %s", quote(r.Account), quote(subject))
	}
	r.Account = subject
}

// Digest is the SHA-256 of everything that the request asks for: equal requests have
// equal digests. Key order, white space, the notation of a time and the place of the
// account make no difference, and an absent field equals an empty or false one. Digests
// are stored for as long as requests are, so their encoding never changes; a later
// field must not change it while absent.
func (r Request) Digest() []byte {
	r.Version = max(r.Version, 1)
	// The outer fields hide the embedded ones, so that every part of the encoding can
	// be encoded. A time could fail.
	canonical := struct {
		Request
		PublishAt string `json:"publish_at,omitempty"`
		ExpiresAt string `json:"expires_at,omitempty"`
	}{r, canonicalTime(r.PublishAt), canonicalTime(r.ExpiresAt)}
	hash := sha256.New()
	if err := json.NewEncoder(hash).Encode(canonical); err != nil {
		panic(fmt.Sprintf("encode request: %v", err)) // no field of it can fail
	}
	return hash.Sum(nil)
}

func canonicalTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}
