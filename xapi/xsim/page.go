package xsim

import (
	"bytes"
	"cmp"
	_ "embed"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS []byte

const (
	pageThreads = 50 // at most on the page, as the next two
	pageEntries = 50
	pageWindows = 100

	// maxPictureBytes bounds the images that the page can show; those of older posts
	// are dropped.
	maxPictureBytes = 32 << 20

	// pageIcon saves browsers a request for one.
	pageIcon = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#0b66c2"/><path d="M9 9l14 14M23 9L9 23" stroke="#fff" stroke-width="4" stroke-linecap="round"/></svg>`

	// pagePolicy lets the page load only its own style and images.
	pagePolicy = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// pageCallLog are what the page shows.
type pageCallLog struct {
	Now        time.Time
	Accounts   []pageAccount
	Posts      int // that exist
	Calls      int // in all
	Threads    []pageThread
	More       int // threads that are not shown
	Steps      []Step
	Faults     []Fault
	Windows    []pageWindow
	Latest     []pageCall
	Violations []pageNote
	Leniencies []pageNote
}

type pageAccount struct {
	Account
	Posts   int
	Scopes  []string
	Revoked bool
	Expires time.Time // of the access token
}

// pageThread is a post and what replies to it.
type pageThread struct{ Posts []pagePost }

type pagePost struct {
	Post
	Handle string
	Gone   bool // deleted, by its author or by X
	Media  []pageMedium
}

type pageMedium struct {
	Media
	Picture bool // whether its bytes are there to be shown
}

type pageWindow struct {
	Window
	Handle string // "" for all accounts
}

type pageCall struct {
	Call
	Handle string
}

type pageNote struct {
	Kind, Handle, Text string
	At                 time.Time
}

// callLogPage is the page on which a person sees what is on this X, and what it has seen.
func (s *Server) callLogPage() answer {
	callLog := s.pageCallLog()
	page := template.Must(template.New("call log").Funcs(template.FuncMap{
		"clock": func(t time.Time) string {
			if t.UTC().Format(time.DateOnly) != callLog.Now.Format(time.DateOnly) {
				return t.UTC().Format(time.DateTime)
			}
			return t.UTC().Format("15:04:05.000")
		},
		"counted": func(n int, what string) string {
			if n != 1 {
				what += "s"
			}
			return strconv.Itoa(n) + " " + what
		},
		"initial": func(handle string) string { return strings.ToUpper(handle[:1]) },
	}).Parse(pageHTML))
	var body bytes.Buffer
	if err := page.Execute(&body, callLog); err != nil {
		panic("xsim: write page: " + err.Error())
	}
	return answer{status: http.StatusOK, contentType: htmlType, body: body.Bytes()}
}

// picture serves the bytes of an image, for the page.
func (s *Server) picture(id string) answer {
	w := s.lock()
	defer s.unlock()
	m := w.media[id]
	if m == nil || m.picture == nil {
		return answer{status: http.StatusNotFound}
	}
	return answer{status: http.StatusOK, contentType: m.Type, body: m.picture}
}

func (s *Server) pageCallLog() pageCallLog {
	steps, windows := s.Scenario().Steps, s.Windows()
	w := s.lock()
	defer s.unlock()
	b := pageCallLog{Now: s.now(), Steps: steps, Faults: slices.Clone(w.faults)}
	for _, a := range w.order {
		live := a.live(b.Now)
		b.Posts += live
		b.Accounts = append(b.Accounts, pageAccount{a.Account, live, strings.Fields(a.grant.scope), a.grant.dead, a.grant.expires})
	}
	b.Threads, b.More = w.pageThreads(b.Now)
	for _, win := range windows[:min(len(windows), pageWindows)] {
		b.Windows = append(b.Windows, pageWindow{win, w.handle(win.Account)})
	}
	for _, byStatus := range w.callLog.counts {
		for _, n := range byStatus {
			b.Calls += n
		}
	}
	for _, call := range latest(w.callLog.calls) {
		b.Latest = append(b.Latest, pageCall{call, w.handle(call.Account)})
	}
	for _, v := range latest(w.callLog.violations) {
		b.Violations = append(b.Violations, pageNote{v.Kind, w.handle(v.Account), v.Detail, v.At})
	}
	for _, l := range latest(w.callLog.leniencies) {
		b.Leniencies = append(b.Leniencies, pageNote{l.Endpoint, w.handle(l.Account), l.What, l.At})
	}
	return b
}

// latest are the last entries, the newest first.
func latest[T any](entries ring[T]) []T {
	list := entries.list()
	list = list[max(0, len(list)-pageEntries):]
	slices.Reverse(list)
	return list
}

// handle is how people know an account, "" for none.
func (w *world) handle(id string) string {
	if a := w.accounts[id]; a != nil {
		return a.Handle
	}
	return ""
}

// pageThreads are the latest threads, that with the newest post first.
func (w *world) pageThreads(now time.Time) (threads []pageThread, more int) {
	posts := map[string][]pagePost{} // by conversation
	newest := map[string]int{}
	for i, p := range w.postOrder {
		shown := pagePost{Post: p.Post, Handle: p.author.Handle, Gone: p.gone(now)}
		for _, m := range p.media {
			shown.Media = append(shown.Media, pageMedium{m.Media, m.picture != nil})
		}
		posts[p.conversation], newest[p.conversation] = append(posts[p.conversation], shown), i
	}
	order := make([]string, 0, len(posts))
	for conversation := range posts {
		order = append(order, conversation)
	}
	slices.SortFunc(order, func(a, b string) int { return cmp.Compare(newest[b], newest[a]) })
	for _, conversation := range order[:min(len(order), pageThreads)] {
		threads = append(threads, pageThread{posts[conversation]})
	}
	return threads, len(order) - len(threads)
}

// showPicture stores the bytes of an image for the page.
func (s *Server) showPicture(m *medium, segments [][]byte) {
	if strings.HasPrefix(m.Type, "image/") {
		data := bytes.Join(segments, nil)
		s.w.keepPicture(m, data)
		s.w.touch(&keptPicture{m.ID, data})
	}
}

func (w *world) keepPicture(m *medium, data []byte) {
	m.picture = data
	w.pictures, w.pictureBytes = append(w.pictures, m), w.pictureBytes+len(data)
	for w.pictureBytes > w.mostPictures {
		w.pictureBytes -= len(w.pictures[0].picture)
		w.pictures[0].picture = nil
		w.pictures = w.pictures[1:]
	}
}
