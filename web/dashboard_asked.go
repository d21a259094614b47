package web

import (
	"context"
	"sync"
	"time"

	"github.com/jetpost/jetpost"
)

const (
	// askedStays is how long an answer is not asked for again. What takes long is asked for
	// so rarely that the asking takes a part in askedShare of the time.
	askedStays = time.Second
	askedShare = 20
	// askedOld is how old an answer may be that is shown while the next one is on its way;
	// of what takes longer than it, an older one.
	askedOld = 15 * time.Second
	// askedWait is how long a page waits for the next answer where it has an old one, and
	// askedFirst where it has none, or one from before a change that was made here.
	askedWait  = 100 * time.Millisecond
	askedFirst = time.Second
)

// asked has the answers that any number of pages share.
type asked struct {
	ctx   context.Context
	close context.CancelFunc

	status   answer[jetpost.StatusReport]
	counts   answer[jetpost.RequestCounts]
	series   answer[jetpost.Series]
	forecast answer[jetpost.Forecast]
	groups   answer[jetpost.DeadLetterGroups]
}

func newAsked() *asked {
	a := &asked{}
	a.ctx, a.close = context.WithCancel(context.Background()) //nolint:forbidigo // it lives as long as the dashboard
	return a
}

// expire has everything asked for anew, since something was changed.
func (a *asked) expire() {
	for _, one := range []interface{ expire() }{&a.status, &a.counts, &a.series, &a.forecast, &a.groups} {
		one.expire()
	}
}

// answer is the latest answer to one question.
type answer[T any] struct {
	mu     sync.Mutex
	value  T
	at     time.Time // when it was asked for; zero before
	took   time.Duration
	err    error         // of the latest try
	asking chan struct{} // is closed once the present try has ended; nil where there is none
	// changes counts those that were made here, and knows how many of them the value knows of.
	changes, knows int
}

func (a *answer[T]) expire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changes++
}

// get returns the latest answer, and asks for a new one where it is old. One question is
// asked once at a time. Without patience, what takes longer than a page may take is told
// as not known yet: known is false and the error nil.
func (a *answer[T]) get(ctx context.Context, all *asked, patient bool, ask func(context.Context) (T, error)) (value T, known bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for tries := 0; ; tries++ {
		age, has, expired := time.Since(a.at), !a.at.IsZero(), a.knows < a.changes
		if has && !expired && (age < max(askedStays, askedShare*a.took) || tries > 0) {
			return a.value, true, nil
		}
		if a.asking == nil {
			a.begin(all, patient, ask)
		}
		wait := askedWait
		if !has || expired {
			wait = askedFirst
		}
		// usable: the old answer is better than none.
		usable := has && (!patient || !expired && age < max(askedOld, 2*askedShare*a.took))
		if !usable && patient {
			wait = readWithin
		}
		switch ended := a.await(ctx, wait); {
		case !ended && usable:
			return a.value, true, nil
		case !ended && patient:
			return a.value, false, &jetpost.APIError{Code: jetpost.ErrUnavailable, Detail: "No answer came in time.", Help: "load the page again"}
		case !ended:
			return a.value, false, nil
		case a.err != nil:
			return a.value, false, a.err
		}
	}
}

// begin asks in the background, so that the answer is there for the next page. The lock is
// held.
func (a *answer[T]) begin(all *asked, patient bool, ask func(context.Context) (T, error)) {
	ended := make(chan struct{})
	a.asking = ended
	began, changes, within := time.Now(), a.changes, longRead
	if patient {
		within = readWithin - time.Second
	}
	go func() {
		ctx, cancel := context.WithTimeout(all.ctx, within)
		defer cancel()
		value, err := ask(ctx)
		a.mu.Lock()
		defer a.mu.Unlock()
		defer close(ended)
		if a.asking, a.err = nil, err; err == nil {
			a.value, a.at, a.took, a.knows = value, began, time.Since(began), changes
		}
	}()
}

// longRead bounds a question that pages do not wait for.
const longRead = 2 * time.Minute

// await waits for the present try, and tells whether it has ended. The lock is held, but
// not meanwhile.
func (a *answer[T]) await(ctx context.Context, most time.Duration) bool {
	ended := a.asking
	a.mu.Unlock()
	defer a.mu.Lock()
	late := time.NewTimer(most)
	defer late.Stop()
	select {
	case <-ended:
		return true
	case <-late.C:
	case <-ctx.Done():
	}
	return false
}

// status is whether posts go out. Without it no page is made of it.
func (d *Dashboard) status(ctx context.Context) (jetpost.StatusReport, error) {
	status, _, err := d.asked.status.get(ctx, d.asked, true, d.cfg.Operations.AppStatus)
	return status, err
}

// counts are the requests by state.
func (d *Dashboard) counts(ctx context.Context) (jetpost.RequestCounts, error) {
	counts, _, err := d.asked.counts.get(ctx, d.asked, true, func(ctx context.Context) (jetpost.RequestCounts, error) {
		return d.cfg.Operations.RequestCount(ctx, "")
	})
	return counts, err
}

// series is how much went out; false where that is being counted.
func (d *Dashboard) series(ctx context.Context) (jetpost.Series, bool, error) {
	return d.asked.series.get(ctx, d.asked, false, d.cfg.Operations.AppSeries)
}

// groups are dead letters by reason; false where they are being counted.
func (d *Dashboard) groups(ctx context.Context) (jetpost.DeadLetterGroups, bool, error) {
	return d.asked.groups.get(ctx, d.asked, false, d.cfg.Operations.DeadLettersGroups)
}

// forecast is when what waits is out; false while that is being calculated.
func (d *Dashboard) forecast(ctx context.Context) (jetpost.Forecast, bool, error) {
	return d.asked.forecast.get(ctx, d.asked, false, func(ctx context.Context) (jetpost.Forecast, error) {
		return d.cfg.Operations.AppForecast(ctx, jetpost.ForecastRequest{Limit: maxForecast})
	})
}

// maxForecast bounds the accounts of a forecast on a page.
const maxForecast = 20
