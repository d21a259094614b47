package consumers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers/admission"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// readsAtOnce bounds the posts of one thread whose media are read at the same time:
	// the worker's room for media holds two of which nobody has told the size.
	readsAtOnce = 2
	// uploadBytes bounds the images that a worker brings to X at the same time: some of
	// the largest, or many small ones, each of which counts as uploadLeast.
	uploadBytes = 32 << 20
	uploadLeast = 512 << 10
	// maxSmall bounds the images of a thread that are at X before its first post; the rest
	// is uploaded beside the earlier posts.
	maxSmall = 20 << 20 // bytes
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
	t      *threadRun
	client *xapi.Client
	posts  map[int]*postMedia // by index; those with media
	ctx    context.Context    // ends with the lane's claim, or once the worker is asked to stop
	stop   context.CancelFunc
	work   sync.WaitGroup
	idle   chan struct{} // closed once all is done that can be done now
}

// postMedia is what one post needs of X.
type postMedia struct {
	index int
	asked []jetpost.Media
	known []store.Media
	blobs []*blob // nil where nothing has to be uploaded
	done  chan struct{}
	err   error // of the uploads, once done is closed

	mu sync.Mutex // of known, which is kept as a whole
}

// prepare reads the media of the posts that are still to be sent, all of them before
// the first is: a thread does not begin that some file would end. Then their way to
// X begins.
func (t *threadRun) prepare(ctx context.Context) (*uploads, error) {
	u := &uploads{t: t, posts: map[int]*postMedia{}, idle: make(chan struct{})}
	u.client = t.client.Guarded(u.call)
	for i := t.from; i < len(t.request.Posts); i++ {
		asked := t.request.Posts[i].Media
		if len(asked) == 0 {
			continue
		}
		p := &postMedia{index: i, asked: asked, blobs: make([]*blob, len(asked)), done: make(chan struct{})}
		p.known = append(slices.Clone(t.head.Posts[i].Media), make([]store.Media, len(asked))...)[:len(asked)]
		u.posts[i] = p
	}
	u.ctx, u.stop = context.WithCancel(ctx)
	u.work.Go(u.watch)
	u.each(readsAtOnce, func(*postMedia) bool { return true }, func(p *postMedia) {
		p.err = caught(func() error { return u.read(p) })
	})
	for i := t.from; i < len(t.request.Posts); i++ {
		if p := u.posts[i]; p != nil && p.err != nil {
			defer u.end()
			return nil, u.outcome(p.err)
		}
	}
	if err := u.fits(); t.from == 0 && err != nil {
		u.end()
		return nil, err
	}
	u.work.Go(u.ahead)
	if t.from == 0 {
		if err := u.small(); err != nil {
			defer u.end()
			return nil, u.outcome(err)
		}
	}
	return u, nil
}

// small waits until the small images of the thread are at X, before its first post: what
// X does not take of them does not end the thread halfway. What is whole need not be
// uploaded again, so that none is cut short for another one.
func (u *uploads) small() (first error) {
	var bytes int64
	for i := range u.t.request.Posts {
		p := u.posts[i]
		if p == nil || p.inSegments() {
			continue
		}
		for _, b := range p.blobs {
			if b != nil {
				bytes += b.size
			}
		}
		if bytes > maxSmall {
			break
		}
		select {
		case <-p.done:
		case <-u.ctx.Done():
			return u.ctx.Err()
		}
		if _, waits := processedAt(p.err); first == nil && !waits {
			first = p.err
		}
	}
	return first
}

// fits tells whether X's windows leave the uploads enough calls: a thread is not begun
// that they would hold halfway. What needs more than a window ever takes waits for a
// full one.
func (u *uploads) fits() error {
	need := map[xapi.Endpoint]int{}
	for _, p := range u.posts {
		for n, b := range p.blobs {
			if b != nil {
				for e, calls := range xapi.UploadCalls(b.size, b.mime) {
					need[e] += calls
				}
			}
			if p.asked[n].Alt != "" && !p.known[n].Described {
				need[xapi.EndpointMediaMetadata]++
			}
		}
	}
	for _, e := range slices.Sorted(maps.Keys(need)) {
		if err := u.t.r.pass.Ask(u.ctx, admission.Calls{Endpoint: e, N: need[e]}); err != nil {
			return err
		}
	}
	return nil
}

// watch ends the uploads where another worker is to go on with them.
func (u *uploads) watch() {
	select {
	case <-u.t.r.d.Stopping:
	case <-u.t.r.lost:
	case <-u.ctx.Done():
	}
	u.stop()
}

// ahead uploads what can be uploaded now: images together, as far as the worker's budget
// goes, and the rest one by one. X allows about two large videos in a window, which
// several at once would only ever begin.
func (u *uploads) ahead() {
	defer close(u.idle)
	upload := func(p *postMedia) {
		defer close(p.done)
		p.err = caught(func() error { return u.upload(p) })
	}
	var rest sync.WaitGroup
	rest.Go(func() { u.each(1, (*postMedia).inSegments, upload) })
	rest.Go(func() { u.images(upload) })
	rest.Wait()
}

// images uploads those of the first posts first, each post once the budget has room for
// all of its own.
func (u *uploads) images(upload func(*postMedia)) {
	budget := u.t.r.h.Media.budget()
	var group sync.WaitGroup
	for i := range u.t.request.Posts {
		p := u.posts[i]
		if p == nil || p.inSegments() {
			continue
		}
		bytes := p.bytes()
		if err := budget.Acquire(u.ctx, bytes); err != nil { // the uploads are at their end
			p.err = err
			close(p.done)
			continue
		}
		group.Go(func() {
			defer budget.Release(bytes)
			upload(p)
		})
	}
	group.Wait()
}

// bytes is what its images take of the budget.
func (p *postMedia) bytes() (sum int64) {
	for _, b := range p.blobs {
		if b != nil {
			sum += max(b.size, uploadLeast)
		}
	}
	return min(sum, uploadBytes)
}

// inSegments tells a post whose media take long to upload.
func (p *postMedia) inSegments() bool {
	return slices.ContainsFunc(p.blobs, func(b *blob) bool { return b != nil && !xapi.IsImage(b.mime) })
}

// each does something for every such post with media, for the first ones first and for
// some at a time.
func (u *uploads) each(atOnce int, which func(*postMedia) bool, do func(*postMedia)) {
	free := make(chan struct{}, atOnce)
	var group sync.WaitGroup
	for i := range u.t.request.Posts {
		p := u.posts[i]
		if p == nil || !which(p) {
			continue
		}
		free <- struct{}{}
		group.Go(func() {
			defer func() { <-free }()
			do(p)
		})
	}
	group.Wait()
}

// panicError is a panic on its way to the goroutine of the lane, where the Runner
// looks after it.
type panicError struct {
	cause any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.cause, e.stack) }

func caught(do func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = &panicError{cause, debug.Stack()}
		}
	}()
	return do()
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

// outcome is what an error of the uploads means to the lane: nothing where it ended
// them itself, for another worker.
func (u *uploads) outcome(err error) error {
	var thrown *panicError
	switch {
	case u.ctx.Err() != nil:
		return &decidedError{goOn()}
	case errors.As(err, &thrown):
		panic(thrown)
	default:
		return err
	}
}

// ids waits until the media of a post can be posted, and returns their ids.
func (u *uploads) ids(i int) ([]string, error) {
	p := u.posts[i]
	if p == nil {
		return nil, nil
	}
	select {
	case <-p.done:
	case <-u.ctx.Done():
		return nil, &decidedError{goOn()}
	}
	for p.err != nil {
		until, waits := processedAt(p.err)
		if !waits || !u.wait(until) {
			return nil, u.outcome(p.err)
		}
		p.err = u.upload(p)
	}
	if err := u.upload(p); err != nil { // which does nothing where all is there
		return nil, u.outcome(err)
	}
	ids := make([]string, len(p.known))
	for n, m := range p.known {
		ids[n] = m.ID
	}
	return ids, nil
}

// finish lets uploads come to their end: what is whole need not be uploaded again.
func (u *uploads) finish() {
	select {
	case <-u.idle:
	case <-u.ctx.Done():
	}
}

// processedAt is when to ask again whether X has processed a medium, if that is what
// an error says.
func processedAt(err error) (until time.Time, waits bool) {
	var wait *admission.WaitError
	if !errors.As(err, &wait) || wait.Reason.Code != jetpost.CodeMediaProcessing {
		return time.Time{}, false
	}
	return wait.Reason.Until, true
}

// wait waits for X's processing while others are uploaded, which a hold would cut
// short. Where none is, that is a hold.
func (u *uploads) wait(until time.Time) bool {
	if !time.Now().Before(until) {
		return true // earlier posts have taken that long
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-u.idle:
	case <-u.ctx.Done():
	}
	return false
}

// usable tells whether an upload outlasts the post that is to be made of it.
func (u *uploads) usable(m store.Media) bool {
	return m.ID != "" && time.Now().Add(u.t.r.h.Timing.lease()).Before(m.ExpiresAt)
}

// read opens what has to be uploaded, and checks that X takes it, together.
func (u *uploads) read(p *postMedia) error {
	for n, m := range p.asked {
		if u.usable(p.known[n]) {
			continue
		}
		b, err := u.t.r.h.Media.Open(u.ctx, m, p.known[n].Digest)
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

// upload takes each medium of a post as far as it goes now, side by side. One that
// fails cuts no other short.
func (u *uploads) upload(p *postMedia) error {
	errs := make([]error, len(p.asked))
	var group sync.WaitGroup
	for n := range p.asked {
		group.Go(func() { errs[n] = caught(func() error { return u.advance(p, n) }) })
	}
	group.Wait()
	var waits error
	for n, err := range errs {
		switch {
		case ours(err):
			waits = err // the others need not wait for it
		case err != nil:
			return p.failure(n, err)
		}
	}
	return waits
}

// advance brings one medium to X, waits for its processing, and describes it.
func (u *uploads) advance(p *postMedia, n int) error {
	m := p.known[n]
	if !u.usable(m) {
		lifetime := m.ExpiresAt.Sub(m.UploadedAt)
		b := p.blobs[n]
		switch {
		case !m.CheckAt.IsZero() && lifetime < maxProcessing: // nor will another one be
			err := invalidMedia("X has not processed it within the %s for which it keeps it", lifetime)
			return errors.Join(err, u.keep(p, n, forgotten(m)))
		case b == nil: // it has expired since the sources were read: look again
			return &decidedError{goOn()}
		}
		got, err := u.client.UploadMedia(u.ctx, b.reader(), b.size, b.mime)
		if err != nil {
			return err
		}
		m = store.Media{Digest: b.digest, ID: got.ID, ExpiresAt: got.ExpiresAt.UTC(), UploadedAt: time.Now().UTC(), CheckAt: later(got.CheckAfter), Renewed: m.Renewed}
		if err := u.keep(p, n, m); err != nil {
			return err
		}
	}
	if !m.CheckAt.IsZero() {
		waits := u.processed(&m)
		if err := u.keep(p, n, m); err != nil {
			return err
		}
		if waits != nil {
			return waits
		}
	}
	if alt := p.asked[n].Alt; alt != "" && !m.Described {
		if err := u.client.SetAltText(u.ctx, m.ID, alt); err != nil {
			return err
		}
		m.Described = true
		return u.keep(p, n, m)
	}
	return nil
}

// forgotten is a medium of which X has nothing that can be posted: a replay uploads it
// afresh.
func forgotten(m store.Media) store.Media { return store.Media{Digest: m.Digest, Renewed: m.Renewed} }

// processed asks whether X has processed a medium, once it is time.
func (u *uploads) processed(m *store.Media) error {
	if time.Now().Before(m.CheckAt) {
		return processing(m)
	}
	got, err := u.client.MediaStatus(u.ctx, m.ID)
	var failed *xapi.ProcessingError
	switch {
	case errors.As(err, &failed):
		*m = forgotten(*m)
		return err
	case err != nil:
		return err
	case got.CheckAfter == 0:
		m.CheckAt = time.Time{}
		return nil
	case time.Since(m.UploadedAt) > maxProcessing:
		*m = forgotten(*m)
		return invalidMedia("X has not processed it within %s", maxProcessing)
	default:
		// What takes long is asked for less often.
		m.CheckAt = later(max(got.CheckAfter, time.Since(m.UploadedAt)/8))
		return processing(m)
	}
}

func processing(m *store.Media) error {
	return admission.Wait(jetpost.CodeMediaProcessing, m.CheckAt, "X is still processing media "+m.ID)
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
func (u *uploads) keep(p *postMedia, n int, m store.Media) error {
	if p.known[n] == m {
		return nil
	}
	p.mu.Lock() // until the ledger has it, or an older list would replace a newer one
	defer p.mu.Unlock()
	p.known[n] = m
	r := u.t.r
	_, err := persist(u.ctx, r, "keep media", func() (struct{}, error) {
		return struct{}{}, r.h.Ledger.Uploaded(u.ctx, r.lane, u.t.head.ID, p.index, slices.Clone(p.known))
	})
	if errors.Is(err, store.ErrNotRunnable) {
		return &decidedError{goOn()} // cancelled: look again
	}
	return err
}

// call makes one call to X, if it is admitted.
func (u *uploads) call(e xapi.Endpoint, do func() error) error {
	_, err := admission.Call(u.ctx, u.t.r.pass, admission.Calls{Endpoint: e, N: 1}, func() (struct{}, error) { return struct{}{}, do() })
	return err
}
