package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// ReplayQuery picks what to replay: requests by their ids, or everything that
// failed, narrowed by the other fields.
type ReplayQuery struct {
	Account string
	IDs     []string
	Code    jetpost.Code // not together with IDs
	Since   time.Time    // failed at or after; not together with IDs
	// DryRun changes nothing and tells what would be done.
	DryRun bool
}

// ReplayAction is what became of one thing that a ReplayQuery picked.
type ReplayAction string

const (
	ReplayQueued      ReplayAction = "queued"      // the request is back in its account's line
	ReplayRepublished ReplayAction = "republished" // the refused message is in the job stream again
	ReplayNothing     ReplayAction = "nothing"     // there was nothing to do; Detail says why
)

// Replayed tells what was done about one request or refused message.
type Replayed struct {
	Account string       `json:"account,omitempty"`
	ID      string       `json:"id,omitempty"`
	Action  ReplayAction `json:"action"`
	// DryRun: it was not done, it would be.
	DryRun bool `json:"dry_run,omitempty"`
	// State is the request's before.
	State jetpost.State `json:"state,omitempty"`
	// Left counts the posts that are not live, Total all of the request.
	Left  int `json:"left"`
	Total int `json:"total"`
	// Detail is for people, one line.
	Detail string `json:"detail,omitempty"`
}

// replayTarget is a request of the ledger, with its failed record where there
// is one, or else a refused message.
type replayTarget struct {
	key     store.Key
	record  publishers.DeadLetter
	has     bool // record is set
	refused bool
}

// Replay sends back what failed. A failed or held request goes back into its
// line, and the ledger knows which of its posts are live: those are never
// posted again. A message that was refused is published again as it came.
//
// It returns nothing where the query picks nothing, and fails with
// *AmbiguousError where an id is that of several accounts.
func (d *Control) Replay(ctx context.Context, q ReplayQuery) ([]Replayed, error) {
	targets, err := d.targets(ctx, q)
	if err != nil {
		return nil, err
	}
	var done []Replayed
	for _, target := range targets {
		replay := d.replayRequest
		if target.refused {
			replay = d.replayRefused
		}
		one, err := replay(ctx, target, q.DryRun)
		if err != nil {
			return done, err
		}
		one.DryRun = q.DryRun
		done = append(done, one)
	}
	return done, nil
}

// targets joins what the failed stream and the ledger know. The stream forgets
// with time and holds nothing of requests that wait for a person; the ledger
// has no bodies of refused messages.
func (d *Control) targets(ctx context.Context, q ReplayQuery) ([]replayTarget, error) {
	filter := publishers.DeadLetterFilter{Account: q.Account, Code: q.Code, Since: q.Since}
	if len(q.IDs) == 1 {
		filter.ID = q.IDs[0]
	}
	deadLetters, err := d.DeadLetters.List(ctx, filter)
	if err != nil {
		return nil, err
	}
	requests, err := d.candidates(ctx, q)
	if err != nil {
		return nil, err
	}
	var targets []replayTarget
	known := map[store.Key]bool{}
	for _, r := range deadLetters {
		key := store.Key{Account: r.Account, ID: r.ID}
		if r.Refused || (len(q.IDs) > 0 && !slices.Contains(q.IDs, r.ID)) {
			continue
		}
		known[key] = true
		targets = append(targets, replayTarget{key: key, record: r, has: true})
	}
	for _, r := range requests {
		if !known[r.Key] {
			known[r.Key] = true
			targets = append(targets, replayTarget{key: r.Key})
		}
	}
	for _, r := range deadLetters {
		key := store.Key{Account: r.Account, ID: r.ID}
		if !r.Refused || !q.wantsRefused(r, known[key]) {
			continue
		}
		targets = append(targets, replayTarget{key: key, record: r, has: true, refused: true})
	}
	return targets, q.unambiguous(targets)
}

// wantsRefused leaves out messages that would only be refused again: those
// whose id another request has, unless they are asked for by that very code.
func (q ReplayQuery) wantsRefused(r publishers.DeadLetter, known bool) bool {
	if len(q.IDs) > 0 {
		return slices.Contains(q.IDs, r.ID) && !known
	}
	return r.Code != jetpost.CodeIdentityConflict || q.Code == jetpost.CodeIdentityConflict
}

func (q ReplayQuery) unambiguous(targets []replayTarget) error {
	for _, id := range q.IDs {
		var accounts []string
		for _, t := range targets {
			if t.key.ID == id && !slices.Contains(accounts, t.key.Account) {
				accounts = append(accounts, t.key.Account)
			}
		}
		if len(accounts) > 1 {
			return &AmbiguousError{ID: id, Accounts: accounts}
		}
	}
	return nil
}

// candidates are the requests that the ledger offers: the ones named, or all
// that do not go on by themselves and can be sent back.
func (d *Control) candidates(ctx context.Context, q ReplayQuery) ([]store.Record, error) {
	var filters []store.Filter
	for _, id := range q.IDs {
		filters = append(filters, store.Filter{Account: q.Account, ID: id})
	}
	if len(q.IDs) == 0 {
		filters = append(filters, store.Filter{Account: q.Account, State: jetpost.StateFailed, Code: q.Code, Limit: maxListed})
		if cmp.Or(q.Code, jetpost.CodePoison) == jetpost.CodePoison {
			filters = append(filters, store.Filter{Account: q.Account, State: jetpost.StateHeld, Code: jetpost.CodePoison, Limit: maxListed})
		}
	}
	var found []store.Record
	for _, filter := range filters {
		requests, err := d.Ledger.ListRequests(ctx, filter)
		if err != nil {
			return nil, databaseError(err)
		}
		found = append(found, requests...)
	}
	found = slices.DeleteFunc(found, func(r store.Record) bool { return r.Status.UpdatedAt.Before(q.Since) })
	slices.SortStableFunc(found, func(a, b store.Record) int { return a.Status.UpdatedAt.Compare(b.Status.UpdatedAt) })
	return found, nil
}

// replayRequest has the ledger decide. Once it has, the record tells nothing
// that is still true; a request that fails again gets a new one.
func (d *Control) replayRequest(ctx context.Context, t replayTarget, dry bool) (Replayed, error) {
	done := Replayed{Account: t.key.Account, ID: t.key.ID, Action: ReplayNothing}
	now, err := d.Ledger.Request(ctx, t.key)
	if errors.Is(err, store.ErrNotFound) {
		// Which of its posts are live, nobody can tell without the ledger.
		done.Detail = "the database does not know it, so it is left alone"
		return done, nil
	}
	if err != nil {
		return done, databaseError(err)
	}
	done.State, done.Left, done.Total = now.Status.State, now.Status.Total-now.Status.Posted, now.Status.Total
	queued := replayable(now)
	if !dry {
		result, err := d.Ledger.Replay(ctx, t.key, time.Now())
		if err != nil {
			return done, databaseError(err)
		}
		if result.Unpublished {
			now.Deletion = &store.Deletion{}
		}
		queued, done.State, done.Left = result.Queued, result.State, result.Left
		if t.has {
			// Before the wake-up: a record that is made after it is of the next failure.
			err = d.DeadLetters.Drop(ctx, t.record)
		}
		if queued {
			d.tell(ctx, t.key)
		}
		if err != nil {
			return done, err
		}
	}
	switch {
	case now.Deletion != nil:
		done.Detail = "is unpublished: its posts are deleted, or about to be; send a new request"
		return done, nil
	case !queued:
		done.Detail = whyNothing(done.State)
		return done, nil
	}
	done.Action, done.Detail = ReplayQueued, fmt.Sprintf("%d of %d posts left", done.Left, done.Total)
	return done, nil
}

// replayable is what the ledger's Replay takes.
func replayable(r store.Record) bool {
	return r.Deletion == nil && r.Status.State == jetpost.StateFailed || (r.Status.State == jetpost.StateHeld && len(r.Posts) > 0)
}

func whyNothing(state jetpost.State) string {
	switch state {
	case jetpost.StateUnknown:
		return "is unknown: settle it first with jetpost requests resolve"
	case jetpost.StateHeld:
		return "is held for a newer worker"
	default:
		return "is " + string(state)
	}
}

// replayRefused publishes the message again, onto the subject that it came on.
// Its identity guards against its being there twice: one that came without an
// id keeps the one that it was given.
func (d *Control) replayRefused(ctx context.Context, t replayTarget, dry bool) (Replayed, error) {
	done := Replayed{
		Account: t.key.Account, ID: t.key.ID, Action: ReplayRepublished,
		Detail: "was refused: " + string(t.record.Code),
	}
	if dry {
		return done, nil
	}
	account, _ := strings.CutPrefix(t.record.Origin, d.Conn.Names.PublishRequest("")+".")
	if account == t.record.Origin { // the bare subject
		account = ""
	}
	if _, err := d.publisher.PublishRaw(ctx, account, withID(t.record.Body, t.record.ID)); err != nil {
		return done, err
	}
	return done, d.DeadLetters.Drop(ctx, t.record)
}

// withID writes an id into a job that has none. What is no JSON object stays
// as it is, and is refused again.
func withID(body []byte, id string) []byte {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil || id == "" || fields["id"] != nil {
		return body
	}
	fields["id"] = json.RawMessage(strconv.Quote(id))
	named, err := json.Marshal(fields)
	if err != nil {
		return body
	}
	return named
}
