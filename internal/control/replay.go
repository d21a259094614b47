package control

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

// replayQuery picks what to replay.
type replayQuery struct {
	account string
	jetpost.RequestReplay
}

// replayTarget is a request of the ledger, with its failed record where there
// is one, or else a refused message.
type replayTarget struct {
	key     store.Key
	record  publishers.DeadLetter
	has     bool // record is set
	refused bool
	found   *store.Record // as it was listed; nil where it was not
}

// RequestReplay sends back what failed. A failed or held request goes back into its
// queue, and the ledger knows which of its posts are live: those are never posted again. A
// message that was refused is published again as it came.
//
// It returns nothing where the query picks nothing, and fails with *AmbiguousError where an
// id is that of several accounts. Each request is a change of its own: where it ends in
// the middle, a repeat goes on with the others.
func (c *Control) RequestReplay(ctx context.Context, account string, in jetpost.RequestReplay) (jetpost.ReplayAnswer, error) {
	answer := jetpost.ReplayAnswer{Replayed: []jetpost.Replayed{}}
	q := replayQuery{account: account, RequestReplay: in}
	op, err := call(jetpost.OpRequestReplay, account, in.OperationID, in)
	if err == nil {
		err = q.check()
	}
	if err != nil {
		return answer, err
	}
	if was, repeated, err := done[jetpost.ReplayAnswer](ctx, c, op); repeated || err != nil {
		return was, err
	}
	targets, err := c.targets(ctx, q)
	if err != nil {
		return answer, err
	}
	if in.Limit > 0 && len(targets) > in.Limit {
		targets, answer.More = targets[:in.Limit], true
	}
	for _, target := range targets {
		replay := c.replayRequest
		if target.refused {
			replay = c.replayRefused
		}
		one, err := replay(ctx, target, in.DryRun, op)
		if err != nil {
			return answer, err
		}
		one.DryRun = in.DryRun
		answer.Replayed = append(answer.Replayed, one)
	}
	if in.DryRun {
		return answer, nil
	}
	op.Name = "" // each of them is noted by itself
	answer, _, err = operate(ctx, c, op, func(context.Context, store.Changes) (jetpost.ReplayAnswer, error) { return answer, nil })
	return answer, err
}

func (q replayQuery) check() error {
	filtered := q.Code != "" || !q.Since.IsZero()
	wrong := ""
	switch {
	case len(q.IDs) > 0 && (filtered || q.All):
		wrong = "give either ids, or code, since or all"
	case len(q.IDs) == 0 && !filtered && q.account == "" && !q.All:
		wrong = "give ids, an account, code or since, or all for everything that failed"
	default:
		return nil
	}
	return &Error{Code: jetpost.ErrInvalid, Err: errors.New(wrong)}
}

// targets joins what the failed stream and the ledger know. The stream forgets
// with time and holds nothing of requests that wait for a person; the ledger
// has no bodies of refused messages.
func (c *Control) targets(ctx context.Context, q replayQuery) ([]replayTarget, error) {
	filter := publishers.DeadLetterFilter{Account: q.account, Code: q.Code, Since: q.Since}
	if len(q.IDs) == 1 {
		filter.ID = q.IDs[0]
	}
	deadLetters, err := c.deadLetters.List(ctx, filter)
	if err != nil {
		return nil, err
	}
	requests, err := c.candidates(ctx, q)
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
			targets = append(targets, replayTarget{key: r.Key, found: &r})
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
func (q replayQuery) wantsRefused(r publishers.DeadLetter, known bool) bool {
	if len(q.IDs) > 0 {
		return slices.Contains(q.IDs, r.ID) && !known
	}
	return r.Code != jetpost.CodeIdentityConflict || q.Code == jetpost.CodeIdentityConflict
}

func (q replayQuery) unambiguous(targets []replayTarget) error {
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
func (c *Control) candidates(ctx context.Context, q replayQuery) ([]store.Record, error) {
	var filters []store.Filter
	most := maxListed
	if q.Limit > 0 && q.Since.IsZero() { // one more tells that there are more
		most = q.Limit + 1
	}
	for _, id := range q.IDs {
		filters = append(filters, store.Filter{Account: q.account, ID: id})
	}
	if len(q.IDs) == 0 {
		filters = append(filters, store.Filter{Account: q.account, State: jetpost.StateFailed, Code: q.Code, Limit: most})
		if cmp.Or(q.Code, jetpost.CodePoison) == jetpost.CodePoison {
			filters = append(filters, store.Filter{Account: q.account, State: jetpost.StateHeld, Code: jetpost.CodePoison, Limit: most})
		}
	}
	var found []store.Record
	for _, filter := range filters {
		requests, err := c.Ledger.ListRequests(ctx, filter)
		if err == nil && filter.ID != "" && len(requests) == 0 {
			requests, err = c.Ledger.PrunedRequests(ctx, filter.Account, filter.ID)
		}
		if err != nil {
			return nil, DatabaseError(err)
		}
		found = append(found, requests...)
	}
	found = slices.DeleteFunc(found, func(r store.Record) bool { return r.Status.UpdatedAt.Before(q.Since) })
	slices.SortStableFunc(found, func(a, b store.Record) int { return a.Status.UpdatedAt.Compare(b.Status.UpdatedAt) })
	return found, nil
}

// replayRequest has the ledger decide. Once it has, the record tells nothing
// that is still true; a request that fails again gets a new one.
func (c *Control) replayRequest(ctx context.Context, t replayTarget, dry bool, of store.Operation) (jetpost.Replayed, error) {
	if dry && t.found != nil {
		return replayed(t.key, *t.found, replayable(*t.found)), nil
	}
	if dry {
		now, err := c.Ledger.Request(ctx, t.key)
		return replayed(t.key, now, replayable(now)), notKnown(err)
	}
	done, repeated, err := operate(ctx, c, partOf(of, t.key), func(ctx context.Context, ledger store.Changes) (jetpost.Replayed, error) {
		now, err := ledger.Request(ctx, t.key)
		if err != nil {
			return replayed(t.key, now, false), notKnown(err)
		}
		if now.Pruned {
			return replayed(t.key, now, false), nil
		}
		result, err := ledger.Replay(ctx, t.key, time.Now())
		if result.Unpublished {
			now.Deletion = &store.Deletion{}
		}
		now.Status.State = result.State
		now.Status.Posted = now.Status.Total - result.Left
		return replayed(t.key, now, result.Queued), DatabaseError(err)
	})
	if err != nil || repeated || done.Total == 0 {
		return done, err
	}
	if t.has {
		// Before the wake-up: a record that is made after it is of the next failure.
		err = c.deadLetters.Drop(ctx, t.record)
	}
	if done.Action == jetpost.ReplayQueued {
		c.tell(ctx, t.key)
	}
	return done, err
}

// partOf is the operation on one request of many.
func partOf(of store.Operation, key store.Key) store.Operation {
	of.Account, of.Target = key.Account, key.ID
	if of.ID != "" {
		of.ID += "/" + key.Account + "/" + key.ID
	}
	return of
}

// notKnown leaves alone what the ledger does not know.
func notKnown(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return DatabaseError(err)
}

// replayed tells what became of a request that was in that state.
func replayed(key store.Key, was store.Record, queued bool) jetpost.Replayed {
	done := jetpost.Replayed{Account: key.Account, ID: key.ID, Action: jetpost.ReplayNothing, State: was.Status.State}
	done.Left, done.Total = was.Status.Total-was.Status.Posted, was.Status.Total
	switch {
	case was.ID == "":
		// Which of its posts are live, nobody can tell without the ledger.
		done.Detail = "the database does not know it, so it is left alone"
	case was.Pruned:
		done.Detail = "was pruned: its body is no longer stored; send a new request under another id"
	case was.Status.Reason != nil && was.Status.Reason.Code == jetpost.CodeBodyLost:
		done.Detail = "its body was lost when the database was restored: send it again under its id"
	case was.Deletion != nil:
		done.Detail = "is unpublished: its posts are deleted, or about to be; send a new request"
	case !queued:
		done.Detail = whyNothing(done.State)
	default:
		done.Action, done.Detail = jetpost.ReplayQueued, fmt.Sprintf("%d of %d posts left", done.Left, done.Total)
	}
	return done
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
func (c *Control) replayRefused(ctx context.Context, t replayTarget, dry bool, of store.Operation) (jetpost.Replayed, error) {
	done := jetpost.Replayed{
		Account: t.key.Account, ID: t.key.ID, Action: jetpost.ReplayRepublished,
		Detail: "was refused: " + string(t.record.Code),
	}
	if dry {
		return done, nil
	}
	account, _ := strings.CutPrefix(t.record.Origin, c.Names.PublishRequest("")+".")
	if account == t.record.Origin { // the bare subject
		account = ""
	}
	if _, err := c.publisher.PublishRaw(ctx, account, withID(t.record.Body, t.record.ID)); err != nil {
		return done, err
	}
	of = partOf(of, t.key)
	of.ID = "" // the message's identity guards against a repeat
	if _, _, err := operate(ctx, c, of, func(context.Context, store.Changes) (jetpost.Empty, error) { return jetpost.Empty{}, nil }); err != nil {
		return done, err
	}
	return done, c.deadLetters.Drop(ctx, t.record)
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
