package consumers

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// uploadsAtOnce bounds the posts of one thread whose media are read, or brought
	// to X, at the same time.
	uploadsAtOnce = 10
	// maxProcessing is how long X may work on one file.
	maxProcessing = time.Hour
	// renewAfter is the wait before a file is uploaded again whose id X does not
	// take: it may not have heard of it everywhere yet.
	renewAfter = 5 * time.Second
)

// uploads brings the media of a thread's posts to X, while earlier posts are sent.
// It happens before the intent of each post, since an upload that nobody uses does
// no harm; what is at X is kept in the ledger, for a hold or another worker.
type uploads struct {
	t     *threadRun
	posts map[int]*postMedia // by index; those with media
	stop  context.CancelFunc
	work  sync.WaitGroup
}

// postMedia is what one post needs of X.
type postMedia struct {
	index int
	asked []jetpost.Media
	known []store.Media
	blobs []*blob // nil where nothing has to be uploaded
	done  chan struct{}
	err   error // of the uploads, once done is closed
}

// prepare reads the media of the posts that are still to be sent, all of them before
// the first is: a thread does not begin that some file would end. Then their way to
// X begins.
func (t *threadRun) prepare(ctx context.Context, from int) (*uploads, error) {
	u := &uploads{t: t, posts: map[int]*postMedia{}, stop: func() {}}
	for i := from; i < len(t.request.Posts); i++ {
		asked := t.request.Posts[i].Media
		if len(asked) == 0 {
			continue
		}
		p := &postMedia{index: i, asked: asked, blobs: make([]*blob, len(asked)), done: make(chan struct{})}
		p.known = append(slices.Clone(t.head.Posts[i].Media), make([]store.Media, len(asked))...)[:len(asked)]
		u.posts[i] = p
	}
	u.each(func(p *postMedia) { p.err = u.read(ctx, p) })
	for i := from; i < len(t.request.Posts); i++ {
		if p := u.posts[i]; p != nil && p.err != nil {
			u.end()
			return nil, p.err
		}
	}
	ctx, u.stop = context.WithCancel(ctx)
	u.work.Go(func() {
		u.each(func(p *postMedia) {
			defer close(p.done)
			p.err = u.upload(ctx, p)
		})
	})
	return u, nil
}

// each does something for every post with media, for the first ones first and for
// some at a time.
func (u *uploads) each(do func(*postMedia)) {
	free := make(chan struct{}, uploadsAtOnce)
	var group sync.WaitGroup
	for i := range u.t.request.Posts {
		p := u.posts[i]
		if p == nil {
			continue
		}
		free <- struct{}{}
		group.Go(func() {
			defer func() { <-free }()
			// Nobody else looks after a panic in here.
			defer func() {
				if cause := recover(); cause != nil {
					p.err = fmt.Errorf("media of post %d: panic: %v\n%s", p.index, cause, debug.Stack())
				}
			}()
			do(p)
		})
	}
	group.Wait()
}

// end stops what is under way, and closes what was read.
func (u *uploads) end() {
	u.stop()
	u.work.Wait()
	for _, p := range u.posts {
		for _, b := range p.blobs {
			if b != nil {
				_ = b.Close() // only read from
			}
		}
	}
}

// ids waits until the media of a post can be posted, and returns their ids.
func (u *uploads) ids(ctx context.Context, i int) ([]string, error) {
	p := u.posts[i]
	if p == nil {
		return nil, nil
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var hold *holdError
	if errors.As(p.err, &hold) && hold.verdict.reason.Code == jetpost.CodeMediaProcessing && !time.Now().Before(hold.verdict.reason.Until) {
		p.err = nil // earlier posts have taken that long
	}
	if p.err == nil {
		p.err = u.upload(ctx, p) // which does nothing where all is there
	}
	if p.err != nil {
		return nil, p.err
	}
	ids := make([]string, len(p.known))
	for n, m := range p.known {
		ids[n] = m.ID
	}
	return ids, nil
}

// usable tells whether an upload outlasts the post that is to be made of it.
func (u *uploads) usable(m store.Media) bool {
	return m.ID != "" && time.Now().Add(u.t.r.h.Timing.lease()).Before(m.ExpiresAt)
}

// read opens what has to be uploaded, and checks that X takes it, together.
func (u *uploads) read(ctx context.Context, p *postMedia) error {
	for n, m := range p.asked {
		if u.usable(p.known[n]) {
			continue
		}
		b, err := u.t.r.h.Media.Open(ctx, m, p.known[n].Digest)
		if err != nil {
			return p.failure(n, err)
		}
		p.blobs[n] = b
		if len(p.asked) > 1 && !xapi.IsImage(b.mime) {
			return p.failure(n, invalidMedia("it is %s, which X takes alone: up to %d images, or one GIF, or one video", b.mime, jetpost.MaxImages))
		}
	}
	return nil
}

func (p *postMedia) failure(n int, err error) error {
	return fmt.Errorf("media %d of post %d: %w", n+1, p.index+1, err)
}

// upload takes each medium of a post as far as it goes now.
func (u *uploads) upload(ctx context.Context, p *postMedia) error {
	var waits error
	for n := range p.asked {
		err := u.advance(ctx, p, n)
		var hold *holdError
		switch {
		case errors.As(err, &hold):
			waits = err // the others need not wait for it
		case err != nil:
			return p.failure(n, err)
		}
	}
	return waits
}

// advance brings one medium to X, waits for its processing, and describes it.
func (u *uploads) advance(ctx context.Context, p *postMedia, n int) error {
	m := p.known[n]
	if !u.usable(m) {
		b := p.blobs[n]
		if b == nil { // it has expired since the sources were read
			return &holdError{Hold(jetpost.CodeMediaProcessing, time.Now(), "an upload has expired")}
		}
		err := u.call(xapi.UploadEndpoints(b.mime), func() error {
			got, err := u.t.client.UploadMedia(ctx, b.reader(), b.size, b.mime)
			m = store.Media{Digest: b.digest, ID: got.ID, ExpiresAt: got.ExpiresAt.UTC(), UploadedAt: time.Now().UTC(), CheckAt: later(got.CheckAfter), Renewed: m.Renewed}
			return err
		})
		if err != nil {
			return err
		}
		if err := u.keep(ctx, p, n, m); err != nil {
			return err
		}
	}
	if !m.CheckAt.IsZero() {
		waits := u.processed(ctx, &m)
		if err := u.keep(ctx, p, n, m); err != nil {
			return err
		}
		if waits != nil {
			return waits
		}
	}
	if alt := p.asked[n].Alt; alt != "" && !m.Described {
		err := u.call([]xapi.Endpoint{xapi.EndpointMediaMetadata}, func() error { return u.t.client.SetAltText(ctx, m.ID, alt) })
		if err != nil {
			return err
		}
		m.Described = true
		return u.keep(ctx, p, n, m)
	}
	return nil
}

// processed asks whether X has processed a medium, once it is time.
func (u *uploads) processed(ctx context.Context, m *store.Media) error {
	if time.Now().Before(m.CheckAt) {
		return processing(m)
	}
	var got xapi.Media
	err := u.call([]xapi.Endpoint{xapi.EndpointMediaStatus}, func() (err error) {
		got, err = u.t.client.MediaStatus(ctx, m.ID)
		return err
	})
	var failed *xapi.ProcessingError
	switch {
	case errors.As(err, &failed):
		*m = store.Media{Digest: m.Digest, Renewed: m.Renewed} // a replay uploads it afresh
		return err
	case err != nil:
		return err
	case got.CheckAfter == 0:
		m.CheckAt = time.Time{}
		return nil
	case time.Since(m.UploadedAt) > maxProcessing:
		*m = store.Media{Digest: m.Digest, Renewed: m.Renewed}
		return invalidMedia("X has not processed it within %s", maxProcessing)
	default:
		// What takes long is asked for less often.
		m.CheckAt = later(max(got.CheckAfter, time.Since(m.UploadedAt)/8))
		return processing(m)
	}
}

func processing(m *store.Media) error {
	return &holdError{Hold(jetpost.CodeMediaProcessing, m.CheckAt, "X is still processing media "+m.ID)}
}

// later is the time after a wait; zero for none. A database keeps no nanoseconds, so
// that a hold until then would be over before it.
func later(wait time.Duration) time.Time {
	if wait == 0 {
		return time.Time{}
	}
	return time.Now().Add(wait).UTC().Truncate(time.Millisecond)
}

// keep tells the ledger what is known of a medium.
func (u *uploads) keep(ctx context.Context, p *postMedia, n int, m store.Media) error {
	if p.known[n] == m {
		return nil
	}
	p.known[n] = m
	r := u.t.r
	_, err := persist(ctx, r, "keep media", func() (struct{}, error) {
		return struct{}{}, r.h.Ledger.Uploaded(ctx, r.lane, u.t.head.ID, p.index, slices.Clone(p.known))
	})
	if errors.Is(err, store.ErrNotRunnable) {
		return &holdError{Done()} // cancelled: look again
	}
	return err
}

// call makes one call to X, unless a window that it needs is used up or the breaker
// is open.
func (u *uploads) call(endpoints []xapi.Endpoint, do func() error) error {
	for _, e := range endpoints {
		if until, limited := u.t.client.RateLimited(e); limited {
			return &holdError{Hold(jetpost.CodeRateLimited, until, string(e)+" is used up")}
		}
	}
	done, err := u.t.r.h.Gate.Allow(time.Now())
	if err != nil {
		return err
	}
	defer func() { done(err) }()
	err = do()
	return err
}
