package control

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// FindRequest returns the one request with that id, of the account or, where
// that is empty, of any. It fails with store.ErrNotFound or *AmbiguousError.
func FindRequest(ctx context.Context, ledger finder, account, id string) (store.Record, error) {
	found, err := ledger.ListRequests(ctx, store.Filter{Account: account, ID: id})
	switch {
	case err != nil:
		return store.Record{}, DatabaseError(err)
	case len(found) == 0:
		return store.Record{}, findPruned(ctx, ledger, account, id, requestNotFound(account, id))
	case len(found) > 1:
		ambiguous := &AmbiguousError{ID: id}
		for _, r := range found {
			ambiguous.Accounts = append(ambiguous.Accounts, r.Account)
		}
		return store.Record{}, ambiguous
	}
	return found[0], nil
}

// finder is the part of the ledger that finds requests.
type finder interface {
	store.Queries
	store.Retention
}

func requestNotFound(account, id string) error {
	if account != "" {
		return &Error{Code: jetpost.ErrNotFound, Err: fmt.Errorf("request %s of account %s: %w", id, account, store.ErrNotFound), Help: "see the ids with: jetpost requests list --account " + account}
	}
	return &Error{Code: jetpost.ErrNotFound, Err: fmt.Errorf("request %s: %w", id, store.ErrNotFound), Help: "see the ids with: jetpost requests list"}
}

// step is a change of one request.
type step struct {
	op          jetpost.Operation
	account, id string // the account may be empty
	operationID string
	call        any // what was asked for
}

// move makes a change of one request, and returns the request as it is then.
func (c *Control) move(ctx context.Context, s step, change func(context.Context, store.Changes, store.Record) error) (jetpost.RequestStatus, error) {
	op, err := call(s.op, s.account, s.operationID, s.call)
	if err != nil {
		return jetpost.RequestStatus{}, err
	}
	found, notFound := FindRequest(ctx, c.Ledger, s.account, s.id)
	op.Account = cmp.Or(found.Account, op.Account)
	status, repeated, err := operate(ctx, c, op, func(ctx context.Context, in store.Changes) (status jetpost.RequestStatus, err error) {
		if notFound != nil {
			return status, notFound
		}
		if err := change(ctx, in, found); err != nil {
			return status, err
		}
		record, err := in.Request(ctx, found.Key)
		return record.Status, err
	})
	if err == nil && !repeated {
		c.tell(ctx, found.Key)
	}
	return status, err
}

// RequestCancel takes a request back and returns it as it is then. One that is
// cancelled already stays so; published and failed ones are an error.
func (c *Control) RequestCancel(ctx context.Context, account string, in jetpost.RequestCancel) (jetpost.RequestStatus, error) {
	return c.move(ctx, step{jetpost.OpRequestCancel, account, in.ID, in.OperationID, in}, func(ctx context.Context, ledger store.Changes, found store.Record) error {
		before, err := ledger.Cancel(ctx, found.Key, time.Now())
		switch {
		case errors.Is(err, store.ErrNotRunnable) && before == jetpost.StateCancelled:
			return nil
		case errors.Is(err, store.ErrNotRunnable):
			return conflict("", "request %s of account %s is %s: there is nothing to cancel", in.ID, found.Account, before)
		}
		return DatabaseError(err)
	})
}

// RequestCancelMany takes back unfinished requests. It fails with *AmbiguousError where an
// id is that of several accounts. Each request is a change of its own: where it ends in
// the middle, a repeat goes on with the others.
func (c *Control) RequestCancelMany(ctx context.Context, account string, in jetpost.RequestCancelMany) (jetpost.CancelAnswer, error) {
	answer := jetpost.CancelAnswer{Cancelled: []jetpost.Cancelled{}}
	op, err := call(jetpost.OpRequestCancelMany, account, in.OperationID, in)
	if err == nil {
		err = checkCancelMany(account, in)
	}
	if err != nil {
		return answer, err
	}
	if was, repeated, err := done[jetpost.CancelAnswer](ctx, c, op); repeated || err != nil {
		return was, err
	}
	found, err := c.cancellable(ctx, account, in)
	if err != nil {
		return answer, err
	}
	if most := bulk(in.Limit); len(found) > most {
		found, answer.More = found[:most], true
	}
	for _, r := range found {
		one, err := c.cancelOne(ctx, r, in.DryRun, op)
		if err != nil {
			return answer, err
		}
		answer.Cancelled = append(answer.Cancelled, one)
	}
	if in.DryRun {
		return answer, nil
	}
	op.Name = "" // each of them is noted by itself
	answer, _, err = operate(ctx, c, op, func(context.Context, store.Changes) (jetpost.CancelAnswer, error) { return answer, nil })
	return answer, err
}

// bulk is how many requests one call that changes many picks.
func bulk(limit int) int { return cmp.Or(limit, jetpost.MaxPage) }

// waitingStates are those in which a request goes on by itself.
func waitingStates() []jetpost.State {
	return []jetpost.State{jetpost.StateScheduled, jetpost.StateQueued, jetpost.StatePublishing, jetpost.StateHeld}
}

func checkCancelMany(account string, in jetpost.RequestCancelMany) error {
	filtered := in.State != "" || in.Code != "" || !in.Since.IsZero() || !in.Before.IsZero()
	wrong := ""
	switch {
	case len(in.IDs) > 0 && (filtered || in.All):
		wrong = "give either ids, or state, code, since, before or all"
	case len(in.IDs) == 0 && !filtered && account == "" && !in.All:
		wrong = "give ids, an account, state, code, since or before, or all for everything that is unfinished"
	case in.State != "" && in.State != jetpost.StateUnknown && !slices.Contains(waitingStates(), in.State):
		wrong = fmt.Sprintf("state: %q is none of an unfinished request", in.State)
	default:
		return nil
	}
	return &Error{Code: jetpost.ErrInvalid, Err: errors.New(wrong)}
}

// cancellable are the requests that are meant: one more than the limit, where there are
// more.
func (c *Control) cancellable(ctx context.Context, account string, in jetpost.RequestCancelMany) (all []store.Record, err error) {
	for _, id := range in.IDs {
		found, err := FindRequest(ctx, c.Ledger, account, id)
		if err != nil {
			return nil, err
		}
		all = append(all, found)
	}
	if len(in.IDs) > 0 {
		return all, nil
	}
	states := waitingStates()
	if in.State != "" {
		states = []jetpost.State{in.State}
	}
	most := bulk(in.Limit) + 1
	for _, state := range states {
		filter := store.Filter{Account: account, State: state, Code: in.Code, Since: in.Since, Limit: most}
		if !in.Before.IsZero() { // the place before all that were accepted then
			filter.After = store.Place{AcceptedAt: in.Before}
		}
		found, err := c.Ledger.ListRequests(ctx, filter)
		if err != nil {
			return nil, DatabaseError(err)
		}
		all = append(all, found...)
	}
	slices.SortStableFunc(all, func(a, b store.Record) int { return b.Status.AcceptedAt.Compare(a.Status.AcceptedAt) })
	return all[:min(len(all), most)], nil
}

// cancelOne takes one of many back, as it stands by now.
func (c *Control) cancelOne(ctx context.Context, r store.Record, dry bool, of store.Operation) (jetpost.Cancelled, error) {
	is := jetpost.Cancelled{Account: r.Account, ID: r.ID, DryRun: dry, State: r.Status.State, Posted: r.Status.Posted, Total: r.Status.Total}
	if dry {
		if is.Done = !r.Status.State.Finished(); !is.Done {
			is.Detail = "is " + string(is.State)
		}
		return is, nil
	}
	is, repeated, err := operate(ctx, c, partOf(of, r.Key), func(ctx context.Context, ledger store.Changes) (jetpost.Cancelled, error) {
		before, err := ledger.Cancel(ctx, r.Key, time.Now())
		is.State, is.Done = before, err == nil
		if errors.Is(err, store.ErrNotRunnable) {
			is.Detail, err = "is "+string(before), nil
		}
		return is, DatabaseError(err)
	})
	if err == nil && !repeated && is.Done {
		c.tell(ctx, r.Key)
	}
	return is, err
}

// RequestUnpublish asks for the deletion of what of a request is live, and takes it back
// where it is unfinished. It returns the request as it is then: a worker deletes. One whose
// posts are deleted already stays so. A dry run changes nothing.
func (c *Control) RequestUnpublish(ctx context.Context, account string, in jetpost.RequestUnpublish) (jetpost.RequestStatus, error) {
	if in.DryRun {
		found, err := FindRequest(ctx, c.Ledger, account, in.ID)
		if err == nil && nothingLive(found) {
			err = notUnpublished(found.Key, found.Status.State)
		}
		return found.Status, err
	}
	return c.move(ctx, step{jetpost.OpRequestUnpublish, account, in.ID, in.OperationID, in}, func(ctx context.Context, ledger store.Changes, found store.Record) error {
		before, err := ledger.Unpublish(ctx, found.Key, time.Now())
		if errors.Is(err, store.ErrNotRunnable) {
			return notUnpublished(found.Key, before)
		}
		return DatabaseError(err)
	})
}

func notUnpublished(key store.Key, state jetpost.State) error {
	return conflict("", "request %s of account %s is %s, and nothing of it is live: there is nothing to delete", key.ID, key.Account, state)
}

// nothingLive tells of a request what the ledger refuses to delete.
func nothingLive(r store.Record) bool {
	return r.Status.State.Finished() && r.Deletion == nil && !slices.ContainsFunc(r.Posts, func(p store.PostRecord) bool {
		return p.State == jetpost.PostPosted || p.State == jetpost.PostSending
	})
}

// RequestReschedule moves a request of which nothing was sent to another time, or to now
// with one that is not ahead, and returns it as it is then.
func (c *Control) RequestReschedule(ctx context.Context, account string, in jetpost.RequestReschedule) (jetpost.RequestStatus, error) {
	return c.move(ctx, step{jetpost.OpRequestReschedule, account, in.ID, in.OperationID, in}, func(ctx context.Context, ledger store.Changes, found store.Record) error {
		now, at := time.Now(), in.At
		if at.IsZero() {
			at = now
		}
		state, err := ledger.Reschedule(ctx, found.Key, at, now)
		switch {
		case errors.Is(err, store.ErrNotRunnable):
			return notRescheduled(found.Key, state)
		case errors.Is(err, store.ErrExpired):
			return conflict("choose an earlier time, or cancel it and send it under another id",
				"reschedule request %s of account %s: its expires_at is %s, and it would fail then",
				in.ID, found.Account, found.Status.ExpiresAt.Local().Format(time.RFC3339))
		}
		return DatabaseError(err)
	})
}

// notRescheduled says what can be done instead.
func notRescheduled(key store.Key, state jetpost.State) error {
	help := "cancel what is not live yet with: jetpost requests cancel " + key.ID
	switch state {
	case jetpost.StateFailed:
		help = "send back what is not live with: jetpost replay " + key.ID
	case jetpost.StatePublished, jetpost.StateCancelled:
		help = "send a new request"
	case jetpost.StateUnknown:
		help = "settle it first with: jetpost requests resolve " + key.ID
	}
	return conflict(help, "reschedule request %s of account %s: it is %s, and only what waits and has not begun can be moved", key.ID, key.Account, state)
}

// RequestResolve settles the doubtful post of a request: it is live on X with that id or
// it is not live. It returns the request as it is then.
func (c *Control) RequestResolve(ctx context.Context, account string, in jetpost.RequestResolve) (jetpost.RequestStatus, error) {
	if in.NotPosted == (in.PostID != "") {
		return jetpost.RequestStatus{}, &Error{Code: jetpost.ErrInvalid, Err: errors.New("give either post_id or not_posted")}
	}
	return c.move(ctx, step{jetpost.OpRequestResolve, account, in.ID, in.OperationID, in}, func(ctx context.Context, ledger store.Changes, found store.Record) error {
		_, err := ledger.Resolve(ctx, found.Key, in.PostID, time.Now())
		switch {
		case errors.Is(err, store.ErrNotRunnable):
			return noDoubt(found)
		case errors.Is(err, store.ErrPostTaken):
			return conflict("look on X for the id of this very post; where there is none, use --not-posted",
				"resolve request %s of account %s with post %s: %w", in.ID, found.Account, in.PostID, err)
		}
		return DatabaseError(err)
	})
}

// RequestReconcile has the account's posts looked at at once for the doubtful post of a
// request, also where that was given up. It returns the request as it is then.
func (c *Control) RequestReconcile(ctx context.Context, account string, in jetpost.RequestReconcile) (jetpost.RequestStatus, error) {
	return c.move(ctx, step{jetpost.OpRequestReconcile, account, in.ID, in.OperationID, in}, func(ctx context.Context, ledger store.Changes, found store.Record) error {
		err := ledger.Reconcile(ctx, found.Key, time.Now())
		if errors.Is(err, store.ErrNotRunnable) {
			return noDoubt(found)
		}
		return DatabaseError(err)
	})
}

func noDoubt(r store.Record) error {
	return conflict("", "request %s of account %s is %s: none of its posts is in doubt", r.ID, r.Account, r.Status.State)
}

// RequestGet returns a request with what else a person wants to know of it.
func (c *Control) RequestGet(ctx context.Context, account string, in jetpost.RequestGet) (jetpost.RequestDetails, error) {
	found, err := FindRequest(ctx, c.Ledger, account, in.ID)
	if pruned := new(PrunedError); errors.As(err, &pruned) {
		return jetpost.RequestDetails{Request: pruned.Record.Status}, nil
	}
	if err != nil {
		return jetpost.RequestDetails{}, err
	}
	details := jetpost.RequestDetails{Request: found.Status}
	if request, err := jetpost.Decode(found.Account, found.Body); err == nil {
		for _, p := range request.Posts {
			details.Texts = append(details.Texts, p.Text)
		}
		details.Contents = contents(request.Posts)
	}
	now := time.Now()
	owner, err := c.Ledger.Account(ctx, found.Account)
	if err != nil {
		return jetpost.RequestDetails{}, accountError(found.Account, err)
	}
	if owner.Pause.Active(now) {
		details.Pause = owner.Pause
	}
	details.AppPauses, err = consumers.DesiredPauses(ctx, c.Ledger, now)
	return details, DatabaseError(err)
}

// RequestList returns a page of requests, the latest accepted first.
func (c *Control) RequestList(ctx context.Context, account string, in jetpost.RequestList) (jetpost.RequestPage, error) {
	page := jetpost.RequestPage{Requests: []jetpost.RequestStatus{}}
	if account != "" {
		if _, err := c.Ledger.Account(ctx, account); err != nil {
			return page, accountError(account, err)
		}
	}
	filter := store.Filter{Account: account, State: in.State, Code: in.Code, Since: in.Since, Limit: pageSize(in.Limit) + 1}
	if err := readCursor(in.Cursor, &filter.After); err != nil {
		return page, err
	}
	found, err := c.Ledger.ListRequests(ctx, filter)
	if err != nil {
		return page, DatabaseError(err)
	}
	found, page.Next = cut(found, in.Limit, store.Record.Place)
	for _, r := range found {
		page.Requests = append(page.Requests, r.Status)
	}
	return page, nil
}

// RequestCount counts the requests of an account or, with "", of all by state.
func (c *Control) RequestCount(ctx context.Context, account string) (jetpost.RequestCounts, error) {
	count := c.Ledger.CountRequests
	if account != "" {
		count = func(ctx context.Context) (map[jetpost.State]int, error) {
			return c.Ledger.CountAccountRequests(ctx, account)
		}
	}
	counts, err := count(ctx)
	return jetpost.RequestCounts{States: counts, Limit: store.MaxCounted}, DatabaseError(err)
}

// DeadLettersGroups counts what failed or was refused by reason.
func (c *Control) DeadLettersGroups(ctx context.Context) (jetpost.DeadLetterGroups, error) {
	groups := jetpost.DeadLetterGroups{Groups: []jetpost.DeadLetterGroup{}, Limit: store.MaxSeries}
	failed, err := c.Ledger.CountCodes(ctx, jetpost.StateFailed)
	if err != nil {
		return groups, DatabaseError(err)
	}
	for _, f := range failed {
		groups.Groups = append(groups.Groups, jetpost.DeadLetterGroup{Kind: jetpost.DeadLetterFailed, Code: f.Code, Count: f.Count, FirstSeen: f.First, LastSeen: f.Last})
	}
	refused, err := c.Ledger.Refusals(ctx, store.MaxSeries)
	if err != nil {
		return groups, DatabaseError(err)
	}
	byCode := map[jetpost.Code]jetpost.DeadLetterGroup{}
	for _, r := range refused { // the latest first
		g := byCode[r.Code]
		if g.Count == 0 {
			g = jetpost.DeadLetterGroup{Kind: jetpost.DeadLetterRefused, Code: r.Code, LastSeen: r.Stored}
		}
		g.Count++
		g.FirstSeen = r.Stored
		byCode[r.Code] = g
	}
	groups.Groups = slices.AppendSeq(groups.Groups, maps.Values(byCode))
	slices.SortFunc(groups.Groups, func(a, b jetpost.DeadLetterGroup) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Code, b.Code))
	})
	return groups, nil
}

// DeadLettersList returns a page of messages that never became requests, or of requests
// that failed.
func (c *Control) DeadLettersList(ctx context.Context, account string, in jetpost.DeadLettersList) (page jetpost.DeadLetterPage, err error) {
	if in.Kind == jetpost.DeadLetterFailed {
		filter := store.Filter{Account: account, ID: in.ID, State: jetpost.StateFailed, Code: in.Code, Since: in.Since, Limit: pageSize(in.Limit) + 1}
		if err := readCursor(in.Cursor, &filter.After); err != nil {
			return page, err
		}
		found, err := c.Ledger.ListRequests(ctx, filter)
		if err != nil {
			return page, DatabaseError(err)
		}
		found, page.Next = cut(found, in.Limit, store.Record.Place)
		for _, r := range found {
			page.Requests = append(page.Requests, r.Status)
		}
		return page, nil
	}
	type place struct {
		Stored   time.Time
		Sequence uint64
	}
	var after place
	if err := readCursor(in.Cursor, &after); err != nil {
		return page, err
	}
	found, err := c.Ledger.Refusals(ctx, maxListed)
	if err != nil {
		return page, DatabaseError(err)
	}
	found = slices.DeleteFunc(found, func(r jetpost.Refusal) bool {
		before := !after.Stored.IsZero() && (r.Stored.After(after.Stored) || r.Stored.Equal(after.Stored) && r.Sequence >= after.Sequence)
		return before || (account != "" && r.Account != account) || (in.ID != "" && r.ID != in.ID) || (in.Code != "" && r.Code != in.Code) || r.Stored.Before(in.Since)
	})
	page.Refusals, page.Next = cut(found, in.Limit, func(r jetpost.Refusal) place { return place{r.Stored, r.Sequence} })
	return page, nil
}

// pageSize is how many are listed.
func pageSize(limit int) int {
	if limit == 0 {
		return jetpost.DefaultPage
	}
	return limit
}

// cut makes a page of what was found, and the cursor of the next one.
func cut[T, P any](found []T, limit int, place func(T) P) (page []T, next string) {
	if limit = pageSize(limit); len(found) <= limit {
		return found, ""
	}
	return found[:limit], cursorOf(place(found[limit-1]))
}

// cursorOf is the cursor of what comes after a place.
func cursorOf(place any) string {
	body, err := json.Marshal(place)
	if err != nil { // never: it has times, numbers and texts alone
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(body)
}

// readCursor reads what cut made; "" leaves the place alone.
func readCursor(cursor string, place any) error {
	if cursor == "" {
		return nil
	}
	body, err := base64.RawURLEncoding.DecodeString(cursor)
	if err == nil {
		err = json.Unmarshal(body, place)
	}
	if err != nil {
		return &Error{Code: jetpost.ErrInvalid, Err: errors.New("cursor: is none that a page has told"), Help: "leave it out to begin with the first page"}
	}
	return nil
}

// acceptEvery is how often the ledger is asked for a request that was published, should
// the word of it be lost.
const acceptEvery = 250 * time.Millisecond

// RequestPublish publishes a request and returns once a worker has accepted or refused it.
// One that is there already is not sent again.
func (c *Control) RequestPublish(ctx context.Context, account string, r jetpost.Request) (jetpost.PublishAnswer, error) {
	r.Account = account
	answer := jetpost.PublishAnswer{Account: account, ID: r.ID}
	if r.ID == "" {
		return answer, &Error{Code: jetpost.ErrInvalid, Err: errors.New("/id is missing"), Help: "choose one before the first attempt, and keep it for each repeat"}
	}
	if err := r.Validate(); err != nil {
		return answer, err
	}
	known, err := c.settled(ctx, r, &answer)
	if answer.Repeated = known; known || err != nil {
		return answer, err
	}
	accepted, stop, err := c.heard(account, r.ID)
	if err != nil {
		return answer, err
	}
	defer stop()
	receipt, err := c.publisher.Publish(ctx, r)
	if err != nil {
		return answer, err
	}
	answer.Sequence = receipt.Sequence
	every := time.NewTicker(acceptEvery)
	defer every.Stop()
	for {
		if known, err := c.settled(ctx, r, &answer); known || err != nil {
			c.notePublished(ctx, answer)
			return answer, err
		}
		select {
		case <-ctx.Done():
			return answer, &Error{
				Code: jetpost.ErrStillWaiting, Err: fmt.Errorf("request %s of account %s is stored, and no worker has accepted it yet", r.ID, account),
				Help: "publish it again under the same id, or see what works with: jetpost status",
			}
		case <-accepted:
		case <-every.C:
		}
	}
}

// notePublished notes who has published a request that was accepted. The acceptance was
// committed before.
func (c *Control) notePublished(ctx context.Context, answer jetpost.PublishAnswer) {
	if answer.Request != nil {
		op := store.Operation{Name: jetpost.OpRequestPublish, Account: answer.Account, Target: answer.ID, Now: time.Now()}
		c.noteAlone(ctx, op, jetpost.AuditDone)
	}
}

// settled looks whether the ledger has decided about the message, or about an earlier one
// of that identity.
func (c *Control) settled(ctx context.Context, r jetpost.Request, answer *jetpost.PublishAnswer) (bool, error) {
	record, err := c.Ledger.Request(ctx, store.Key{Account: r.Account, ID: r.ID})
	switch {
	case err == nil:
		if sameRequest(record, r) {
			answer.Request = &record.Status
			return true, nil
		}
		answer.Refusal = &jetpost.Refusal{
			Account: r.Account, ID: r.ID, Code: jetpost.CodeIdentityConflict, Sequence: answer.Sequence, Stored: time.Now().UTC(),
			Problems: []jetpost.Problem{{Pointer: "/id", Message: "another request of this account has this id, and is left alone"}},
		}
		return true, nil
	case ctx.Err() != nil, !errors.Is(err, store.ErrNotFound):
		if ctx.Err() != nil && answer.Sequence > 0 {
			return false, nil // the caller tells
		}
		return false, DatabaseError(err)
	case answer.Sequence == 0:
		return false, nil
	}
	refusals, err := c.Ledger.Refusals(ctx, maxListed)
	if ctx.Err() != nil {
		return false, nil //nolint:nilerr // the caller tells
	}
	i := slices.IndexFunc(refusals, func(f jetpost.Refusal) bool { return f.Sequence == answer.Sequence && f.ID == r.ID })
	if i >= 0 {
		answer.Refusal = &refusals[i]
	}
	return i >= 0, DatabaseError(err)
}

// sameRequest tells whether a request that was accepted is this one.
func sameRequest(record store.Record, r jetpost.Request) bool {
	was, err := jetpost.Decode(record.Account, record.Body)
	was.ID = r.ID // of a message that had none
	return err == nil && slices.Equal(was.Digest(), r.Digest())
}

// heard signals that something was told of a request, or of a message of its account that
// was refused.
func (c *Control) heard(account, id string) (<-chan struct{}, func(), error) {
	news := make(chan struct{}, 1)
	signal := func() {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	stop, err := publishers.Listen(c.JS.Conn(), signal,
		c.Names.RequestEvents(account, id), c.Names.EventSubject(jetpost.EventRequestRefused, account, "sequence.*"))
	if err != nil {
		return nil, nil, &Error{Code: jetpost.ErrUnavailable, Err: fmt.Errorf("hear of request %s: %w", id, err)}
	}
	return news, stop, nil
}
