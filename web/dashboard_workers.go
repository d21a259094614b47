package web

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost"
)

// maxName bounds a name that has no bound of its own.
const maxName = 56 // characters

type workersPage struct {
	page
	Status  jetpost.StatusReport
	Workers []worker
	More    int
	Queued  string // jobs that no worker has accepted
	Slots   int    // of those who live
	Used    int
	Causes  []jetpost.StatusCause
}

// worker is one by its last heartbeat.
type worker struct {
	jetpost.WorkerReport
	page
	Does  string
	Heard string // how long ago it was
	Disks []disk
}

type disk struct {
	jetpost.Disk
	Words string
	Used  int // per cent
}

// workers shows who lives and what waits for them.
func (d *Dashboard) workers(r *http.Request) (shown, error) {
	p := workersPage{page: d.page(r, "workers", "Workers")}
	d.follow(&p.page, jetpost.RequestName{})
	var list jetpost.Workers
	asking, ctx := errgroup.WithContext(r.Context())
	asking.Go(func() (err error) {
		p.Status, err = d.status(ctx)
		return err
	})
	asking.Go(func() (err error) {
		list, err = d.cfg.Operations.WorkersList(ctx)
		return err
	})
	if err := asking.Wait(); err != nil {
		return shown{}, err
	}
	for _, w := range list.Workers {
		if w.Alive {
			p.Slots, p.Used = p.Slots+w.Slots, p.Used+w.Used
		}
		if len(p.Workers) < pageSize/2 {
			p.Workers = append(p.Workers, p.worker(w))
		}
	}
	p.More = len(list.Workers) - len(p.Workers)
	if n := p.Status.QueuedJobs; n != nil {
		p.Queued = fmt.Sprint(*n)
	}
	p.Causes = p.Status.Causes[:min(len(p.Status.Causes), maxFew)]
	return shown{name: "workers.html", data: p}, nil
}

func (p page) worker(w jetpost.WorkerReport) worker {
	w.Worker, w.Host, w.Version = cut(w.Worker, maxName), cut(w.Host, maxName), cut(w.Version, maxName)
	is := worker{WorkerReport: w, page: p, Does: cut(strings.Join(w.Roles[:min(len(w.Roles), maxFew)], ", "), maxName)}
	is.Heard = span(time.Duration(w.AgeSeconds * float64(time.Second)))
	if w.AgeSeconds < 60 {
		is.Heard = fmt.Sprintf("%.0f s", w.AgeSeconds)
	}
	for _, of := range w.Disks[:min(len(w.Disks), maxFew)] {
		of.What, of.Path = cut(of.What, maxName), cut(of.Path, maxName)
		if words := map[string]string{"database": "the database", "lifeboat": "tokens that the database could not take"}[of.What]; words != "" {
			of.What = words
		}
		used := 0
		if of.Total > 0 {
			used = int(100 * (1 - float64(of.Free)/float64(of.Total)))
		}
		is.Disks = append(is.Disks, disk{of, size(of.Free) + " of " + size(of.Total) + " free", min(max(used, 0), 100)})
	}
	return is
}

// size is a number of bytes as people read it.
func size(bytes uint64) string {
	switch {
	case bytes >= 10<<30:
		return fmt.Sprintf("%d GiB", bytes>>30)
	case bytes >= 10<<20:
		return fmt.Sprintf("%d MiB", bytes>>20)
	default:
		return fmt.Sprintf("%d KiB", bytes>>10)
	}
}

// changeApp pauses or resumes all accounts.
func (d *Dashboard) changeApp(r *http.Request, operation string) (shown, error) {
	var err error
	action := r.PathValue("action")
	switch action {
	case "pause":
		in := jetpost.PauseRequest{OperationID: operation, Reason: strings.TrimSpace(r.PostFormValue("reason"))}
		if in.Until, err = pauseEnd(r); err == nil {
			_, err = d.cfg.Operations.AppPause(r.Context(), in)
		}
	case "resume":
		_, err = d.cfg.Operations.AppResume(r.Context(), jetpost.ResumeRequest{OperationID: operation})
	default:
		err = notThere()
	}
	return shown{to: "/limits?done=app-" + action}, err
}

// pauseEnd is when a pause ends by itself: the form has the time, so that a repeat asks for
// the same.
func pauseEnd(r *http.Request) (until time.Time, err error) {
	text := r.PostFormValue("until")
	if text == "" {
		return until, nil
	}
	if until, err = time.Parse(time.RFC3339, text); err != nil {
		return until, &jetpost.APIError{Code: jetpost.ErrInvalid, Detail: "The end of the pause is no time.", Help: "open the page again"}
	}
	return until, nil
}
