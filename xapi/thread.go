package xapi

import (
	"context"
	"fmt"
	"time"
)

// ThreadOptions says where in a thread to begin and what to do around each post.
type ThreadOptions struct {
	// From is the index of the first post to send; those before it exist already.
	From int
	// Parent is the id that posts[From] replies to. If it is "", that post goes out as
	// it is; the first one may be a reply to another user's post.
	Parent string
	// Before runs ahead of each post, to commit the intent to send it. It may
	// change p, which already names its parent. Nothing of the request is written
	// after notAfter, unless that is zero.
	Before func(ctx context.Context, i int, p *Post) (notAfter time.Time, err error)
	// After runs behind each created post, to commit that it exists. The next post
	// is not sent unless it succeeds.
	After func(ctx context.Context, i int, created Created) error
}

// ThreadError says at which post a thread stopped. When After failed, that post
// exists and is the last of those returned beside the error.
type ThreadError struct {
	Index int
	Err   error
}

func (e *ThreadError) Error() string {
	return fmt.Sprintf("post thread: posts[%d]: %v", e.Index, e.Err)
}
func (e *ThreadError) Unwrap() error { return e.Err }

// PostThread creates posts[o.From:] one after another, each as a reply to the one
// before it. It stops at the first error, a *ThreadError, and always returns the
// posts it created, the first of which is posts[o.From].
func (c *Client) PostThread(ctx context.Context, posts []Post, o ThreadOptions) ([]Created, error) {
	if o.From < 0 || o.From > len(posts) {
		return nil, &ThreadError{Index: o.From, Err: fmt.Errorf("thread has %d posts", len(posts))}
	}
	var done []Created
	parent := o.Parent
	for i := o.From; i < len(posts); i++ {
		p := posts[i]
		if parent != "" {
			p.InReplyToPostID = parent
		}
		created, err := c.postStep(ctx, i, p, o)
		if created.ID != "" {
			done = append(done, created)
		}
		if err != nil {
			return done, &ThreadError{Index: i, Err: err}
		}
		parent = created.ID
	}
	return done, nil
}

// postStep is one turn of PostThread: intent, effect, outcome.
func (c *Client) postStep(ctx context.Context, i int, p Post, o ThreadOptions) (Created, error) {
	// An intent that nobody will act on is not worth committing.
	if err := ctx.Err(); err != nil {
		return Created{}, &NotSentError{Err: err}
	}
	guarded := ctx
	if o.Before != nil {
		notAfter, err := o.Before(ctx, i, &p)
		if err != nil {
			return Created{}, fmt.Errorf("before post: %w", err)
		}
		guarded = WithNotAfter(ctx, notAfter)
	}
	created, err := c.CreatePost(guarded, p)
	if err != nil {
		return Created{}, err
	}
	if o.After != nil {
		if err := o.After(ctx, i, created); err != nil {
			return created, fmt.Errorf("after post: %w", err)
		}
	}
	return created, nil
}
