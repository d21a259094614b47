package consumers

import (
	"context"
	"fmt"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/tweettext"
)

// noSubscription is X's subscription type of an account that may not post more than 280
// characters.
const noSubscription = "None"

// tooLong fails a thread before its first post if a later post is longer than X allows the
// account. The first post is left to X, which refuses it before anything is live. If X does
// not report the account's subscription, the thread is not judged. If admission does not
// admit the call, the thread waits.
func (r *laneRun) tooLong(ctx context.Context, client *xapi.Client, posts []jetpost.Post, from int) error {
	for i := from + 1; i < len(posts); i++ {
		weight := tweettext.Measure(posts[i].Text).Weight
		if weight <= tweettext.MaxWeight {
			continue
		}
		me, err := r.me(ctx, client)
		switch {
		case ours(err):
			return err
		case err == nil && me.SubscriptionType == noSubscription:
			return &decidedError{failWith(jetpost.CodeTextTooLong, fmt.Sprintf(
				"post %d weighs %d as X counts, and @%s has no subscription, with which more than %d are allowed; nothing more was sent",
				i+1, weight, me.Username, tweettext.MaxWeight))}
		}
		break
	}
	return nil
}

// me asks X who the account is.
func (r *laneRun) me(ctx context.Context, client *xapi.Client) (xapi.User, error) {
	return admission.Call(ctx, r.pass, admission.Calls{Endpoint: xapi.EndpointMe, N: 1}, func() (xapi.User, error) { return client.Me(ctx) })
}

// harmless makes a call that changes nothing at X, with the stored token.
func (r *laneRun) harmless(account string) func(context.Context) error {
	return func(ctx context.Context) error {
		token, err := r.h.Tokens.Stored(ctx, account)
		if err == nil { // else EnsureFresh handles the error
			_, err = r.me(ctx, r.h.Client(account, token.Access.Reveal()))
		}
		return err
	}
}
