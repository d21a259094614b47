package web

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/jetpost/jetpost"
)

const (
	// liveEvery is how often a reader is told of changes at most. With many readers it is
	// livePerReader times their number: all of them together ask for a bounded number of
	// pages.
	liveEvery     = 500 * time.Millisecond
	livePerReader = 20 * time.Millisecond
	// liveAgain is when a reader is told once more of the latest change: what a page shows
	// may have been remembered for that long, here or by a worker.
	liveAgain = 3 * time.Second
	// liveBeat is how long a stream is silent at most, so that whatever is between it and
	// its reader keeps it.
	liveBeat = 15 * time.Second
	// liveWrite is how long a reader may take to read.
	liveWrite = 10 * time.Second
	// liveFor is how long a stream lasts: its reader asks for the next one, and so has to be
	// let in again.
	liveFor = 10 * time.Minute
	// liveRetry is how long nobody is asked for changes after that has failed.
	liveRetry = 2 * time.Second
	// liveKept is how many changes are kept at least for readers that come back.
	liveKept = 4096
	// maxReaders bounds the streams at once.
	maxReaders = 2000
)

// Changes yields what happens from now on, and tells the place of the latest change before.
type Changes func(ctx context.Context) (last uint64, changes iter.Seq2[jetpost.Change, error], err error)

// feed tells any number of readers that something has changed. It reads the changes once for
// all of them, and only while somebody reads. Readers look at what was kept in their own
// time, so that none of them holds up another one or the reading.
type feed struct {
	changes Changes
	log     *slog.Logger
	// The constants of those names, shorter in tests.
	every, perReader, again, beat, write, retry time.Duration

	closing chan struct{} // is closed by close
	close   func()
	running sync.WaitGroup

	mu      sync.Mutex
	readers int
	stop    context.CancelFunc // of the one who reads; nil while nobody does
	up      bool               // changes come
	last    uint64             // the place of the latest change
	from    uint64             // each later one is kept
	kept    []jetpost.Change
}

func newFeed(changes Changes, log *slog.Logger) *feed {
	l := &feed{
		changes: changes, log: log, closing: make(chan struct{}),
		every: liveEvery, perReader: livePerReader, again: liveAgain, beat: liveBeat, write: liveWrite, retry: liveRetry,
	}
	l.close = sync.OnceFunc(func() { close(l.closing) })
	return l
}

// join adds a reader, and begins to read where it is the first one; false where there are
// too many.
func (l *feed) join() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closing:
		return false
	default:
	}
	if l.readers == maxReaders {
		return false
	}
	if l.readers++; l.stop == nil {
		ctx, stop := context.WithCancel(context.Background()) //nolint:forbidigo // it lives as long as there are readers
		l.stop = stop
		l.running.Go(func() { l.read(ctx) })
	}
	return true
}

// leave ends the reading with the last reader.
func (l *feed) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.readers--; l.readers == 0 {
		l.stop()
		l.stop, l.up, l.kept = nil, false, nil
	}
}

// read keeps what happens until ctx ends.
func (l *feed) read(ctx context.Context) {
	for ctx.Err() == nil {
		last, changes, err := l.changes(ctx)
		if err == nil {
			l.set(ctx, func() { l.up, l.last, l.from, l.kept = true, last, last, nil })
			for change, failed := range changes {
				if err = failed; err != nil {
					break
				}
				l.set(ctx, func() { l.keep(change) })
			}
		}
		l.set(ctx, func() { l.up = false })
		if ctx.Err() == nil {
			l.log.Warn("dashboard.not_live", "error", err)
		}
		again := time.NewTimer(l.retry)
		select {
		case <-ctx.Done():
			again.Stop()
		case <-again.C:
		}
	}
}

// set changes what readers see, unless another one reads by now.
func (l *feed) set(ctx context.Context, change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() == nil {
		change()
	}
}

func (l *feed) keep(change jetpost.Change) {
	l.last = change.Sequence
	if l.kept = append(l.kept, change); len(l.kept) >= 2*liveKept {
		l.kept = append(make([]jetpost.Change, 0, 2*liveKept), l.kept[liveKept:]...)
		l.from = l.kept[0].Sequence - 1
	}
}

// seen is what a reader finds.
type seen struct {
	up      bool
	last    uint64
	changed bool // something that it follows, or nobody knows any more
	wait    time.Duration
}

// look tells what has changed behind a place.
func (l *feed) look(after uint64, follows jetpost.RequestName) seen {
	l.mu.Lock()
	defer l.mu.Unlock()
	is := seen{up: l.up, last: l.last, wait: max(l.every, time.Duration(l.readers)*l.perReader)}
	is.changed = after < l.from || after > l.last
	for i := len(l.kept) - 1; i >= 0 && !is.changed && l.kept[i].Sequence > after; i-- {
		of := l.kept[i]
		is.changed = (follows.Account == "" || of.Account == "" || of.Account == follows.Account) &&
			(follows.ID == "" || of.ID == "" || of.ID == follows.ID)
	}
	return is
}

// query begins a stream where the page that is made now ends, or from what is known when it
// begins.
func (l *feed) query(follows jetpost.RequestName) url.Values {
	query := url.Values{}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.up {
		query.Set("after", strconv.FormatUint(l.last, 10))
	}
	for name, value := range map[string]string{"account": follows.Account, "id": follows.ID} {
		if value != "" {
			query.Set(name, value)
		}
	}
	return query
}

// follow has a page refresh what it marks as live whenever a request changes, or only when
// one of that account, or that one, does.
func (d *Dashboard) follow(p *page, follows jetpost.RequestName) {
	if d.feed != nil {
		p.Live = d.cfg.Base + "/live?" + d.feed.query(follows).Encode()
	}
}

// Close ends the streams of live pages, which are served for as long as they are read. The
// pages themselves go on.
func (d *Dashboard) Close() {
	if d.feed != nil {
		d.feed.close()
		d.feed.running.Wait()
	}
	d.asked.close()
}

// serveLive tells a page of changes. Its events are live and paused, which say whether
// changes are heard of, and changed.
func (d *Dashboard) serveLive(w http.ResponseWriter, r *http.Request) {
	if d.feed == nil {
		d.fail(w, r, notThere())
		return
	}
	s := stream{feed: d.feed, w: w, rc: http.NewResponseController(w), follows: jetpost.RequestName{Account: r.FormValue("account"), ID: r.FormValue("id")}}
	for _, place := range []string{r.FormValue("after"), r.Header.Get("Last-Event-ID")} {
		if n, err := strconv.ParseUint(place, 10, 64); err == nil {
			s.after, s.knows = n, true
		}
	}
	if !d.feed.join() {
		d.fail(w, r, &jetpost.APIError{Code: jetpost.ErrBusy, Detail: "Too many pages are live.", Help: "close some, or load the page again by hand"})
		return
	}
	defer d.feed.leave()
	s.serve(r.Context())
}

// stream is what one page reads.
type stream struct {
	*feed
	w       http.ResponseWriter
	rc      *http.ResponseController
	follows jetpost.RequestName
	after   uint64 // the latest change that the page knows of
	knows   bool   // after was told
	told    string // live or paused, once it was told
	again   time.Time
	wrote   time.Time
}

func (s *stream) serve(ctx context.Context) {
	_ = s.rc.SetReadDeadline(time.Time{}) // else the server takes the reader for gone
	s.w.Header().Set("Content-Type", "text/event-stream")
	s.w.Header().Set("X-Accel-Buffering", "no")
	ends := time.NewTimer(liveFor)
	defer ends.Stop()
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.closing:
			return
		case <-ends.C:
			return
		case <-next.C:
		}
		wait, err := s.step(time.Now())
		if err != nil { // it is gone, or does not read: it may come back
			s.log.Debug("dashboard.reader_dropped", "error", err)
			return
		}
		next.Reset(wait)
	}
}

// step tells the page what it does not know yet.
func (s *stream) step(now time.Time) (wait time.Duration, err error) {
	is := s.look(s.after, s.follows)
	text := ""
	if mark := map[bool]string{true: "live", false: "paused"}[is.up]; mark != s.told {
		s.told = mark
		text = is.message(mark)
	}
	if is.up {
		late := !s.again.IsZero() && !now.Before(s.again)
		switch {
		case is.changed || !s.knows:
			text += is.message("changed")
			s.again = now.Add(s.feed.again)
		case late:
			text += is.message("changed")
			s.again = time.Time{}
		}
		s.after, s.knows = is.last, true
	}
	switch {
	case text != "":
	case now.Sub(s.wrote) < s.beat:
		return is.wait, nil
	default:
		text = ":\n\n" // a comment
	}
	s.wrote = now
	_ = s.rc.SetWriteDeadline(now.Add(s.write)) // a server without deadlines sets none
	if _, err := s.w.Write([]byte(text)); err != nil {
		return 0, err
	}
	return is.wait, s.rc.Flush()
}

// message is an event, with the place that its reader comes back with.
func (is seen) message(event string) string {
	id := ""
	if is.up {
		id = fmt.Sprintf("id: %d\n", is.last)
	}
	return fmt.Sprintf("%sevent: %s\ndata: %s\n\n", id, event, event)
}
