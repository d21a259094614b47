package xapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// threadCase says where the thread of three posts ends, and its steps until then.
type threadCase struct {
	name                 string
	o                    ThreadOptions
	before, post, after  func(int) error
	notAfter             time.Duration
	want                 []string
	wantCreated, stopped int
}

// TestPostThread writes down every step. Posts get the ids 100, 101, ...
func TestPostThread(t *testing.T) {
	t.Parallel()

	boom := errors.New("boom")
	fails := func(at int) func(int) error {
		return func(i int) error {
			if i == at {
				return boom
			}
			return nil
		}
	}
	never := fails(-1)
	for _, tc := range []threadCase{
		{name: "after fails", before: never, post: never, after: fails(1), stopped: 1, wantCreated: 2,
			want: []string{"before 0", "post a", "after 0 100", "before 1", "post b>100", "after 1 101"}},
		{name: "before fails", before: fails(1), post: never, after: never, stopped: 1, wantCreated: 1,
			want: []string{"before 0", "post a", "after 0 100", "before 1"}},
		{name: "guard passed", before: never, post: never, after: never, notAfter: -time.Hour, stopped: 0,
			want: []string{"before 0"}},
		{name: "nothing left", o: ThreadOptions{From: 3, Parent: "9"}, before: never, post: never, after: never, stopped: -1},
		{name: "post fails", before: never, post: fails(1), after: never, stopped: 1, wantCreated: 1,
			want: []string{"before 0", "post a", "after 0 100", "before 1", "post b>100"}},
		{name: "resumed", o: ThreadOptions{From: 1, Parent: "77"}, before: never, post: never, after: never, stopped: -1, wantCreated: 2,
			want: []string{"before 1", "post b>77", "after 1 100", "before 2", "post c>100", "after 2 101"}},
		{name: "too far", o: ThreadOptions{From: 4}, before: never, post: never, after: never, stopped: 4},
		{name: "whole", before: never, post: never, after: never, notAfter: time.Hour, stopped: -1, wantCreated: 3,
			want: []string{"before 0", "post a", "after 0 100", "before 1", "post b>100", "after 1 101", "before 2", "post c>101", "after 2 102"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			posts := []Post{{Text: "a"}, {Text: "b"}, {Text: "c"}}
			steps, got, err := tc.run(t, posts)
			if diff := cmp.Diff(tc.want, steps); diff != "" {
				t.Error(diff)
			}
			if len(got) != tc.wantCreated {
				t.Errorf("created %+v", got)
			}
			if tc.stopped < 0 {
				if err != nil {
					t.Error(err)
				}
			} else if threadErr := wantAs[*ThreadError](t, err); threadErr.Index != tc.stopped {
				t.Errorf("stopped at %d: %v", threadErr.Index, err)
			}
			if diff := cmp.Diff([]Post{{Text: "a"}, {Text: "b"}, {Text: "c"}}, posts); diff != "" {
				t.Error("the caller's posts changed:", diff)
			}
		})
	}
}

// run posts the thread, and writes down its steps.
func (tc threadCase) run(t *testing.T, posts []Post) (steps []string, made []Created, err error) {
	t.Helper()
	sent := 0
	b := setup(t, func(w http.ResponseWriter, r *http.Request) {
		var p wirePost
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			t.Error(err)
		}
		step := "post " + p.Text
		if p.Reply != nil {
			step += ">" + p.Reply.InReplyToTweetID
		}
		steps = append(steps, step)
		if tc.post(tc.o.From+sent) != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintf(w, `{"data":{"id":"%d"}}`, 100+sent)
		sent++
	})
	tc.o.Before = func(_ context.Context, i int, p *Post) (time.Time, error) {
		steps = append(steps, fmt.Sprint("before ", i))
		p.MediaIDs = []string{"5"}
		if tc.notAfter == 0 {
			return time.Time{}, tc.before(i)
		}
		return time.Now().Add(tc.notAfter), tc.before(i)
	}
	tc.o.After = func(_ context.Context, i int, c Created) error {
		steps = append(steps, fmt.Sprint("after ", i, " ", c.ID))
		return tc.after(i)
	}
	made, err = b.client.PostThread(t.Context(), posts, tc.o)
	return steps, made, err
}

func TestPostThreadKeepsFirstPostsOwnParent(t *testing.T) {
	t.Parallel()

	b := setup(t, func(w http.ResponseWriter, r *http.Request) {
		var p wirePost
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil || p.Reply == nil || p.Reply.InReplyToTweetID != "3" {
			t.Errorf("got %+v, %v", p, err)
		}
		_, _ = io.WriteString(w, created)
	})
	if _, err := b.client.PostThread(t.Context(), []Post{{InReplyToPostID: "3"}}, ThreadOptions{}); err != nil {
		t.Error(err)
	}
}

func TestPostThreadCommitsNoIntentAfterCancel(t *testing.T) {
	t.Parallel()

	b := setup(t, reply(http.StatusCreated, created))
	ctx, cancel := context.WithCancel(t.Context())
	intents := 0
	got, err := b.client.PostThread(ctx, make([]Post, 2), ThreadOptions{
		Before: func(context.Context, int, *Post) (time.Time, error) { intents++; return time.Time{}, nil },
		After:  func(context.Context, int, Created) error { cancel(); return nil },
	})
	wantAs[*NotSentError](t, err)
	if threadErr := wantAs[*ThreadError](t, err); threadErr.Index != 1 || intents != 1 || len(got) != 1 {
		t.Errorf("got %v after %d intents and %+v", err, intents, got)
	}
}
