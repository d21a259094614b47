package control

import (
	"cmp"
	"context"
	"encoding/json"
	"math"
	"strings"
	"unicode"

	"github.com/nats-io/nats.go/micro"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

const (
	// headerRequestInfo is set by NATS, over whatever a client has set, on what comes from
	// another account.
	headerRequestInfo = "Nats-Request-Info"
	// actorUnsaid is who asks where a client of our own account says nothing.
	actorUnsaid = "nats"
	// actorAccount begins the name of one in another NATS account, actorToken that of an API
	// token.
	actorAccount, actorToken = "account:", "token:"
	// maxActor bounds the name of who asks.
	maxActor = 128 // bytes
)

// actorOf is who asks: of another NATS account its name, which NATS tells; in our own
// account whoever the client says, which NATS cannot check.
func actorOf(headers micro.Headers) string {
	if info := headers.Get(headerRequestInfo); info != "" {
		var from struct {
			Account string `json:"acc"`
		}
		if err := json.Unmarshal([]byte(info), &from); err != nil || from.Account == "" {
			return actorAccount + "?"
		}
		return actorAccount + from.Account
	}
	actor := headers.Get(jetpost.HeaderActor)
	if actor == "" || len(actor) > maxActor || strings.ContainsFunc(actor, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return actorUnsaid
	}
	return actor
}

// ownAlone tells that who asks may be kept to some accounts, and is told of no others.
func ownAlone(ctx context.Context) bool {
	actor := jetpost.ActorOf(ctx)
	return strings.HasPrefix(actor, actorAccount) || strings.HasPrefix(actor, actorToken)
}

// note keeps a change with who asked for it, in the change's own transaction.
func note(ctx context.Context, ledger store.Changes, op store.Operation, outcome string) error {
	if op.Name == "" {
		return nil
	}
	return ledger.AddAudit(ctx, op.Audit(cmp.Or(jetpost.ActorOf(ctx), actorUnsaid), outcome))
}

// noteAlone notes what became of a change that other transactions have made.
func (c *Control) noteAlone(ctx context.Context, op store.Operation, outcome string) {
	actor := cmp.Or(jetpost.ActorOf(ctx), actorUnsaid)
	if err := c.Ledger.AddAudit(ctx, op.Audit(actor, outcome)); err != nil {
		c.Log.Warn("audit.lost", "operation", op.Name, "actor", actor, "account", op.Account, "target", op.Target, "outcome", outcome, "error", err)
	}
}

// AuditList returns a page of what was changed, the latest first.
func (c *Control) AuditList(ctx context.Context, in jetpost.AuditList) (jetpost.AuditPage, error) {
	page := jetpost.AuditPage{Entries: []jetpost.AuditEntry{}}
	filter := store.AuditFilter{
		Actor: in.Actor, Operation: in.Operation, Account: in.Account, Since: in.Since, Before: math.MaxInt64, Limit: pageSize(in.Limit) + 1,
	}
	if err := readCursor(in.Cursor, &filter.Before); err != nil {
		return page, err
	}
	found, err := c.Ledger.Audits(ctx, filter)
	if err != nil {
		return page, DatabaseError(err)
	}
	found, page.Next = cut(found, in.Limit, func(a store.Audit) int64 { return a.Seq })
	for _, a := range found {
		page.Entries = append(page.Entries, jetpost.AuditEntry{
			At: a.At, Actor: a.Actor, Operation: string(a.Operation), Account: a.Account, Target: a.Target, Outcome: a.Outcome,
		})
	}
	return page, nil
}
