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
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// readsAtOnce bounds the posts of one thread whose media are read at the same time:
	// spoolMax has room for two media of unknown size.
	readsAtOnce = 2
	// uploadBytes bounds the images that a worker uploads to X at the same time: a few of
	// the largest, or many small ones, each of which counts as uploadLeast.
	uploadBytes = 32 << 20
	uploadLeast = 512 << 10
	// maxSmall bounds the images of a thread that are uploaded before its first post. The
	// others are uploaded while earlier posts are sent.
	maxSmall = 20 << 20 // bytes
	// maxProcessing is how long X may process one file.
	maxProcessing = time.Hour
	// renewAfter is the wait before a file is uploaded again after X has refused its id.
	// X may not have replicated the id yet.
	renewAfter = 5 * time.Second
)

// uploads uploads the media of a thread's posts to X, while earlier posts are sent. The
// uploads of a post come before its intent, because an unused upload does no harm. The ledger
// stores finished uploads for use after a hold or by another worker.
type uploads struct {
	t      *threadRun
	client *xapi.Client
	posts  map[int]*postMedia // by index; those with media
	ctx    context.Context    // ends with the lane's claim, or once the worker is asked to stop
	stop   context.CancelFunc
	work   sync.WaitGroup
	idle   chan struct{} // closed once no upload can go on now

	writing chan struct{} // holds one element while a write of media to the ledger is under way
	mu      sync.Mutex    // of next, and of the known media of all posts
	next    *mediaWrite   // the write after it; nil if no media wait for one
}

// postMedia is the media of one post.
type postMedia struct {
	index int
	asked []jetpost.Media
	known []store.Media
	blobs []*blob // nil where nothing has to be uploaded
	done  chan struct{}
	err   error // of the uploads, once done is closed
}

// mediaWrite is one write to the ledger, of all media that became known while the write before
// was under way.
type mediaWrite struct {
	media map[int][]store.Media // of each post, by its index, all that is known
	done  chan struct{}         // closed once the ledger has answered
	err   error                 // the ledger's answer, once done is closed
}

// prepare reads the media of all unsent posts before the first one is sent, so that a thread
// with an invalid file does not begin. Then it starts the uploads.
func (t *threadRun) prepare(ctx context.Context) (*uploads, error) {
	u := &uploads{t: t, posts: map[int]*postMedia{}, idle: make(chan struct{}), writing: make(chan struct{}, 1)}
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

// small waits until the small images of the thread are uploaded, before its first post, so
// that an image that X refuses does not end the thread halfway. It waits for all of them even
// if one fails, because finished uploads are reused.
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

// fits returns an error if X's windows do not have enough calls left for the uploads, so that
// a thread is not held halfway. Uploads that need more calls than a window's limit wait for a
// full window.
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

// watch ends the uploads when the worker stops or the lane is lost.
func (u *uploads) watch() {
	select {
	case <-u.t.r.d.Stopping:
	case <-u.t.r.lost:
	case <-u.ctx.Done():
	}
	u.stop()
}

// ahead uploads what can be uploaded now: images concurrently, within the worker's budget, and
// other media one by one. X allows about two large videos in a window, so uploading several at
// once would finish none.
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

// images uploads the images in the order of the posts. A post's uploads begin once the budget
// has room for all of its images.
func (u *uploads) images(upload func(*postMedia)) {
	budget := u.t.r.h.Media.budget()
	var group sync.WaitGroup
	for i := range u.t.request.Posts {
		p := u.posts[i]
		if p == nil || p.inSegments() {
			continue
		}
		bytes := p.bytes()
		if err := budget.Acquire(u.ctx, bytes); err != nil { // the uploads were ended
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

// bytes is how much of the budget the images take.
func (p *postMedia) bytes() (sum int64) {
	for _, b := range p.blobs {
		if b != nil {
			sum += max(b.size, uploadLeast)
		}
	}
	return min(sum, uploadBytes)
}

// inSegments reports whether the post has a medium that is uploaded in segments, which takes
// long.
func (p *postMedia) inSegments() bool {
	return slices.ContainsFunc(p.blobs, func(b *blob) bool { return b != nil && !xapi.IsImage(b.mime) })
}

// each calls do for every post with media that which selects, in order, and for up to atOnce
// posts at the same time.
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

// panicError carries a panic to the goroutine of the lane, where the runner recovers it.
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

// end stops the uploads under way, and closes the files.
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

// outcome is what an error of the uploads means to the lane. If the uploads were ended for
// another worker, the lane goes on, which ends the claim.
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
	if err := u.upload(p); err != nil { // it does nothing if all media are uploaded
		return nil, u.outcome(err)
	}
	ids := make([]string, len(p.known))
	for n, m := range p.known {
		ids[n] = m.ID
	}
	return ids, nil
}

// finish waits for the uploads, because finished ones are reused.
func (u *uploads) finish() {
	select {
	case <-u.idle:
	case <-u.ctx.Done():
	}
}

// processedAt returns when to ask X again about the processing of a medium, if err is a wait
// for that.
func processedAt(err error) (until time.Time, waits bool) {
	var wait *admission.WaitError
	if !errors.As(err, &wait) || wait.Reason.Code != jetpost.CodeMediaProcessing {
		return time.Time{}, false
	}
	return wait.Reason.Until, true
}

// wait waits for X's processing while other uploads go on, because a hold would end them. If
// none goes on, it returns false, and the request is held.
func (u *uploads) wait(until time.Time) bool {
	if !time.Now().Before(until) {
		return true // the time has passed while earlier posts were sent
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

// usable reports whether an upload is valid for long enough to be posted.
func (u *uploads) usable(m store.Media) bool {
	return m.ID != "" && time.Now().Add(u.t.r.h.Timing.lease()).Before(m.ExpiresAt)
}

// read opens the media that have to be uploaded, and checks that X accepts them together.
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
			return p.failure(n, invalidMedia("it is %s, which X accepts only alone: a post may have up to %d images, or one GIF, or one video", b.mime, jetpost.MaxImages))
		}
	}
	return nil
}

func (p *postMedia) failure(n int, err error) error {
	return fmt.Errorf("media %d of post %d: %w", n+1, p.index+1, err)
}

// upload advances all media of a post concurrently, as far as possible now. If one fails, the
// others go on.
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
			waits = err // a failure of another medium comes first
		case err != nil:
			return p.failure(n, err)
		}
	}
	return waits
}

// advance uploads one medium, checks its processing, and sets its description.
func (u *uploads) advance(p *postMedia, n int) error {
	m := p.known[n]
	if !u.usable(m) {
		lifetime := m.ExpiresAt.Sub(m.UploadedAt)
		b := p.blobs[n]
		switch {
		case !m.CheckAt.IsZero() && lifetime < maxProcessing: // another upload would not be processed in time either
			err := invalidMedia("X has not processed it within %s, when the upload expired", lifetime)
			return errors.Join(err, u.keep(p, n, forgotten(m)))
		case b == nil: // it has expired since the sources were read: read the ledger again
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

// forgotten is a medium without an upload. A replay uploads it again.
func forgotten(m store.Media) store.Media { return store.Media{Digest: m.Digest, Renewed: m.Renewed} }

// processed asks X whether it has processed a medium, once it is time.
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
		// The longer the processing takes, the less often X is asked.
		m.CheckAt = later(max(got.CheckAfter, time.Since(m.UploadedAt)/8))
		return processing(m)
	}
}

func processing(m *store.Media) error {
	return admission.Wait(jetpost.CodeMediaProcessing, m.CheckAt, "X is still processing media "+m.ID)
}

// later is the time after a wait; zero for none. It is truncated to milliseconds, because a
// database stores no nanoseconds, and a hold would end before this time.
func later(wait time.Duration) time.Time {
	if wait == 0 {
		return time.Time{}
	}
	return time.Now().Add(wait).UTC().Truncate(time.Millisecond)
}

// keep stores in the ledger what is known of a medium. Writes of one lane wait for one another
// in the ledger. So while a write is under way, all media that become known gather for the
// next one.
func (u *uploads) keep(p *postMedia, n int, m store.Media) error {
	if p.known[n] == m {
		return nil
	}
	w, first := u.gather(p, n, m)
	if first {
		u.write(w)
	}
	<-w.done
	return w.err
}

// gather adds a medium to the next write. The first to do so makes that write.
func (u *uploads) gather(p *postMedia, n int, m store.Media) (w *mediaWrite, first bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p.known[n] = m
	if first = u.next == nil; first {
		u.next = &mediaWrite{media: map[int][]store.Media{}, done: make(chan struct{})}
	}
	u.next.media[p.index] = slices.Clone(p.known)
	return u.next, first
}

// write makes the next write once the write before has ended, so that an older list of media
// does not replace a newer one.
func (u *uploads) write(w *mediaWrite) {
	u.writing <- struct{}{}
	defer func() { <-u.writing }()
	defer close(w.done)
	u.mu.Lock()
	u.next = nil // what becomes known from now on is not in this write
	u.mu.Unlock()
	w.err = caught(func() error { return u.store(w.media) })
}

// store stores media of several posts in the ledger, all of them or none.
func (u *uploads) store(media map[int][]store.Media) error {
	r := u.t.r
	_, err := persist(u.ctx, r, "store media", func() (struct{}, error) {
		return struct{}{}, r.h.Ledger.Uploaded(u.ctx, r.lane, u.t.head.ID, media)
	})
	if errors.Is(err, store.ErrNotRunnable) {
		return &decidedError{goOn()} // cancelled: read the ledger again
	}
	return err
}

// call makes one call to X if it is admitted.
func (u *uploads) call(e xapi.Endpoint, do func() error) error {
	_, err := admission.Call(u.ctx, u.t.r.pass, admission.Calls{Endpoint: e, N: 1}, func() (struct{}, error) { return struct{}{}, do() })
	return err
}
