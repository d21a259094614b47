package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/tweettext"
)

const (
	composePath = "/compose"
	// maxComposeBytes bounds a thread as it is written, with the pictures that it brings.
	maxComposeBytes = 64 << 20
	// maxFormMemory is how much of a form is kept in memory; the rest is in files meanwhile.
	maxFormMemory = 1 << 20 // bytes
	// uploadWithin bounds the reading of a thread with its pictures.
	uploadWithin = 3 * time.Minute
	// maxOffered bounds the accounts that a form offers.
	maxOffered = 100
)

// bodyLimit bounds the body of a request. A form with pictures may be larger, and gets the
// time that it takes.
func (d *Dashboard) bodyLimit(w http.ResponseWriter, r *http.Request) int64 {
	if r.URL.Path != d.cfg.Base+composePath || r.Method != http.MethodPost {
		return maxBodyBytes
	}
	control := http.NewResponseController(w)
	until := time.Now().Add(uploadWithin)
	// Where the server cannot, its own limits hold.
	_, _ = control.SetReadDeadline(until), control.SetWriteDeadline(until.Add(changeWithin))
	return maxComposeBytes
}

// parseForm reads a form, also one with files.
func parseForm(r *http.Request) error {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	var err error
	if kind == "multipart/form-data" {
		err = r.ParseMultipartForm(maxFormMemory)
	} else {
		err = r.ParseForm()
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return &jetpost.APIError{Code: jetpost.ErrInvalid, Detail: fmt.Sprintf("The form has more than %d kB.", large.Limit>>10), Help: "go back, and send less at once"}
	case err != nil:
		return &jetpost.APIError{Code: jetpost.ErrInvalid, Detail: "The form cannot be read.", Help: "open its page again"}
	}
	return nil
}

// draft is a thread as somebody writes it.
type draft struct {
	ID      string // of the request that it becomes
	Account string
	Posts   []draftPost
	At      string // in the writer's zone, as the form has it
	Focus   string // the field to go on with, or ""
}

type draftPost struct {
	Text     string
	Pictures []draftPicture
}

type draftPicture struct{ Object, Alt string }

// readDraft reads a form. What has neither text nor picture is left out, but for the first
// post.
func readDraft(r *http.Request, id string) draft {
	d := draft{ID: id, Account: strings.TrimSpace(r.PostFormValue("account")), At: r.PostFormValue("at")}
	for i := range jetpost.MaxPosts {
		if !r.PostForm.Has(field("text", i)) {
			break
		}
		p := draftPost{Text: strings.ReplaceAll(r.PostFormValue(field("text", i)), "\r\n", "\n")}
		for j := range jetpost.MaxImages {
			if object := r.PostFormValue(field("object", i, j)); object != "" {
				p.Pictures = append(p.Pictures, draftPicture{object, r.PostFormValue(field("alt", i, j))})
			}
		}
		d.Posts = append(d.Posts, p)
	}
	if len(d.Posts) == 0 {
		d.Posts = []draftPost{{}}
	}
	return d
}

// field names one of several fields.
func field(name string, index ...int) string {
	for _, i := range index {
		name += "-" + strconv.Itoa(i)
	}
	return name
}

// filled are the posts that have something in them.
func (d draft) filled() []draftPost {
	return slices.DeleteFunc(slices.Clone(d.Posts), func(p draftPost) bool { return strings.TrimSpace(p.Text) == "" && len(p.Pictures) == 0 })
}

// request is what the draft becomes.
func (d draft) request(at time.Time) jetpost.Request {
	r := jetpost.Request{ID: d.ID, PublishAt: at}
	for _, p := range d.filled() {
		post := jetpost.Post{Text: p.Text}
		for _, is := range p.Pictures {
			post.Media = append(post.Media, jetpost.Media{Object: is.Object, Alt: strings.TrimSpace(is.Alt)})
		}
		r.Posts = append(r.Posts, post)
	}
	return r
}

// change carries out a button that changes the draft itself: its name, and the places that
// it is about.
func (d *draft) change(do string) {
	name, places, _ := strings.Cut(do, "-")
	first, second, _ := strings.Cut(places, "-")
	i, err := strconv.Atoi(first)
	if name == "add" {
		if len(d.Posts) < jetpost.MaxPosts {
			d.Focus = field("text", len(d.Posts))
			d.Posts = append(d.Posts, draftPost{})
		}
		return
	}
	if err != nil || i < 0 || i >= len(d.Posts) {
		return
	}
	d.Focus = field("text", i)
	switch name {
	case "remove":
		if d.Posts = slices.Delete(d.Posts, i, i+1); len(d.Posts) == 0 {
			d.Posts = []draftPost{{}}
		}
	case "split":
		d.split(i)
	case "drop":
		if j, err := strconv.Atoi(second); err == nil && j >= 0 && j < len(d.Posts[i].Pictures) {
			d.Posts[i].Pictures = slices.Delete(d.Posts[i].Pictures, j, j+1)
		}
	}
}

// split makes posts of one that is too long. Its pictures stay with the first.
func (d *draft) split(i int) {
	parts, err := tweettext.Split(d.Posts[i].Text, tweettext.MaxWeight)
	if err != nil || len(parts) < 2 || len(d.Posts)+len(parts)-1 > jetpost.MaxPosts {
		return // the page tells
	}
	var posts []draftPost
	for _, text := range parts {
		posts = append(posts, draftPost{Text: text})
	}
	posts[0].Pictures = d.Posts[i].Pictures
	d.Posts = slices.Replace(d.Posts, i, i+1, posts...)
}

// attach takes in the pictures that the form brings, and tells how many.
func (d *Dashboard) attach(r *http.Request, to *draft) (taken int, err error) {
	if r.MultipartForm == nil || d.cfg.Media == nil {
		return 0, nil
	}
	for i := range to.Posts {
		for _, header := range r.MultipartForm.File[field("file", i)] {
			if header.Size == 0 {
				continue
			}
			if len(to.Posts[i].Pictures) == jetpost.MaxImages {
				return taken, &jetpost.APIError{Code: jetpost.ErrInvalid, Detail: fmt.Sprintf("A post has %d pictures at most.", jetpost.MaxImages), Help: "go back, and put the others into another post"}
			}
			file, err := header.Open()
			if err != nil {
				return taken, err
			}
			object, err := d.take(r.Context(), file)
			if err = errors.Join(err, file.Close()); err != nil {
				return taken, err
			}
			if taken == 0 {
				to.Focus = field("alt", i, len(to.Posts[i].Pictures))
			}
			to.Posts[i].Pictures = append(to.Posts[i].Pictures, draftPicture{Object: object})
			taken++
		}
	}
	return taken, nil
}

// take stores one picture.
func (d *Dashboard) take(ctx context.Context, file io.ReadSeeker) (string, error) {
	refuse := func(text string) (string, error) {
		return "", &jetpost.APIError{Code: jetpost.ErrInvalid, Detail: text, Help: "go back, and choose a picture of the kinds PNG, JPEG, WebP or GIF"}
	}
	head := make([]byte, 512)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	kind := pictureKind(head[:n])
	if kind == "" {
		return refuse("A file is no picture that X takes.")
	}
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	if most := map[bool]int64{true: xapi.MaxGIFBytes, false: xapi.MaxImageBytes}[kind == "image/gif"]; size > most {
		return refuse(fmt.Sprintf("A picture has %d kB; X takes %d kB at most.", size>>10, most>>10))
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	object, err := d.cfg.Media.PutMedia(ctx, file)
	if err != nil {
		return "", &jetpost.APIError{Code: jetpost.ErrUnavailable, Detail: "The picture was not stored: " + err.Error(), Help: "try again in a moment"}
	}
	return object, nil
}

type composePage struct {
	page
	ID       string
	Account  string
	Accounts []string // to choose from; empty where there are more
	Editors  []editor
	Due      string // in the zone, as the form has it
	CanAdd   bool
	// Problems are why it cannot be sent as it is.
	Problems []string
	Warnings []string
	Check    *checked
	Thread   threaded
}

// editor is where one post is written.
type editor struct {
	page
	Index, Number int
	Text          string
	Focused       bool // it is what the writer goes on with
	Weight, Over  int  // Over is by how much it is too long
	Long          bool // for an account without a subscription
	Wrong         string
	Parts         int // that it would be split into
	Pictures      []editedPicture
	CanAttach     bool
	CanRemove     bool
}

type editedPicture struct {
	picture
	Object, Alt string
	Place       string // of the post and the picture
	Number      int
	Focused     bool // its description is what the writer goes on with
}

// checked is what would become of the thread.
type checked struct {
	Cost  float64
	When  time.Time
	Waits []string
}

// compose shows an empty thread.
func (d *Dashboard) compose(r *http.Request) (shown, error) {
	if d.cfg.ReadOnly {
		return shown{}, readOnly()
	}
	return d.showDraft(r, draft{ID: uuid.NewString(), Account: strings.TrimSpace(r.URL.Query().Get("account")), Posts: []draftPost{{}}}, nil)
}

// writeThread carries out a button of the thread's form: it changes the draft and shows it
// again, or sends it. The operation becomes the request's id, so that a form that is sent
// twice is one request.
func (d *Dashboard) writeThread(r *http.Request, operation string) (shown, error) {
	is := readDraft(r, operation)
	taken, err := d.attach(r, &is)
	if err != nil {
		return shown{}, err
	}
	do := r.PostFormValue("do")
	if do != "publish" || taken > 0 { // what was taken in just now has no description yet
		is.change(do)
		return d.showDraft(r, is, nil)
	}
	at, err := readTime(r, is.At)
	if err != nil {
		return shown{}, err
	}
	if problems := is.problems(); len(problems) > 0 {
		return d.showDraft(r, is, problems)
	}
	// What breaks the contract is found before anything is stored.
	if _, err := d.cfg.Operations.RequestCheck(r.Context(), is.Account, is.request(at)); err != nil {
		return d.refusedDraft(r, is, err)
	}
	answer, err := d.cfg.Operations.RequestPublish(r.Context(), is.Account, is.request(at))
	switch {
	case err != nil:
		return d.refusedDraft(r, is, err)
	case answer.Refusal != nil:
		problems := []string{"It was refused: " + reasonWords(answer.Refusal.Code) + "."}
		return d.showDraft(r, is, append(problems, problemWords(answer.Refusal.Problems)...))
	}
	return shown{to: requestPath(is.Account, is.ID) + "?done=compose"}, nil
}

// problems are those that keep a draft from being a request at all.
func (d draft) problems() (list []string) {
	if d.Account == "" {
		list = append(list, "Choose the account that posts it.")
	}
	if len(d.filled()) == 0 {
		list = append(list, "Write something, or add a picture.")
	}
	return list
}

// refusedDraft shows a draft with its mistakes. Another error it returns.
func (d *Dashboard) refusedDraft(r *http.Request, is draft, err error) (shown, error) {
	var told *jetpost.APIError
	if !errors.As(err, &told) || told.Code != jetpost.ErrInvalid {
		return shown{}, err
	}
	problems := problemWords(told.Problems)
	if len(problems) == 0 {
		problems = []string{told.Detail}
	}
	return d.showDraft(r, is, problems)
}

// problemWords are mistakes in a request as the writer reads them.
func problemWords(problems []jetpost.Problem) (list []string) {
	for _, p := range problems[:min(len(problems), jetpost.MaxPosts)] {
		where := strings.TrimPrefix(p.Pointer, "/")
		if rest, ok := strings.CutPrefix(p.Pointer, "/posts/"); ok {
			index, of, _ := strings.Cut(rest, "/")
			if i, err := strconv.Atoi(index); err == nil {
				where = fmt.Sprintf("Post %d: %s", i+1, strings.ReplaceAll(of, "/", " "))
			}
		}
		list = append(list, strings.TrimSpace(where+" "+p.Message))
	}
	return list
}

// showDraft shows a draft, with what would become of it.
func (d *Dashboard) showDraft(r *http.Request, is draft, problems []string) (shown, error) {
	p := composePage{page: d.page(r, "compose", "New thread"), ID: is.ID, Account: is.Account, Due: is.At, Problems: problems}
	p.Back, p.CanAdd = composePath, len(is.Posts) < jetpost.MaxPosts
	list, err := d.cfg.Operations.AccountList(r.Context(), jetpost.AccountList{Limit: maxOffered})
	if err != nil {
		return shown{}, err
	}
	username := ""
	for _, a := range list.Accounts {
		if a.Name == is.Account {
			username = a.Username
		}
		if list.Next == "" {
			p.Accounts = append(p.Accounts, a.Name)
		}
	}
	for i, post := range is.Posts {
		p.Editors = append(p.Editors, p.editor(i, post, is))
	}
	p.Thread = thread(is.Account, username, p.preview(is))
	p.warn(is)
	if len(problems) == 0 && len(is.problems()) == 0 {
		if err := d.check(r, is, &p); err != nil {
			return shown{}, err
		}
	}
	return shown{name: "compose.html", data: p}, nil
}

func (p *composePage) editor(i int, post draftPost, of draft) editor {
	m := tweettext.Measure(post.Text)
	e := editor{page: p.page, Index: i, Number: i + 1, Text: post.Text, Weight: m.Weight, Over: m.Weight - tweettext.MaxWeight, CanRemove: len(of.Posts) > 1}
	e.Focused = of.Focus == field("text", i)
	e.CanAttach = p.hasMedia && len(post.Pictures) < jetpost.MaxImages
	switch {
	case m.Invalid:
		e.Wrong = "It has a character that X refuses."
	case m.Weight > tweettext.MaxLongWeight:
		e.Wrong = fmt.Sprintf("X takes %d at most, of any account.", tweettext.MaxLongWeight)
	case m.Cashtags > tweettext.MaxCashtags:
		e.Wrong = fmt.Sprintf("It has %d cashtags, such as $TWTR; X takes %d.", m.Cashtags, tweettext.MaxCashtags)
	}
	if e.Long = e.Over > 0; e.Long {
		if parts, err := tweettext.Split(post.Text, tweettext.MaxWeight); err == nil && len(of.Posts)+len(parts)-1 <= jetpost.MaxPosts {
			e.Parts = len(parts)
		}
	}
	for j, is := range post.Pictures {
		alts := 0
		shows := p.pictures([]jetpost.MediaContent{{Object: is.Object}}, &alts)
		e.Pictures = append(e.Pictures, editedPicture{picture: shows[0], Object: is.Object, Alt: is.Alt, Place: fmt.Sprintf("%d-%d", i, j), Number: j + 1, Focused: of.Focus == field("alt", i, j)})
	}
	return e
}

// preview are the posts as X will show them.
func (p *composePage) preview(is draft) (list []post) {
	alts := maxShownAlts
	for i, of := range is.filled() {
		shows := post{Number: i + 1, Text: cut(of.Text, maxShownText), Known: true}
		shows.Parts, shows.Cut = segments(shows.Text), shows.Text != of.Text
		var media []jetpost.MediaContent
		for _, is := range of.Pictures {
			media = append(media, jetpost.MediaContent{Object: is.Object, Alt: is.Alt})
		}
		shows.Pictures = p.pictures(media, &alts)
		list = append(list, shows)
	}
	return list
}

// warn tells what the writer may have forgotten.
func (p *composePage) warn(is draft) {
	silent := 0
	for _, post := range is.Posts {
		for _, picture := range post.Pictures {
			if strings.TrimSpace(picture.Alt) == "" {
				silent++
			}
		}
	}
	switch silent {
	case 0:
	case 1:
		p.Warnings = append(p.Warnings, "One picture has no description: people who cannot see it learn nothing of it.")
	default:
		p.Warnings = append(p.Warnings, fmt.Sprintf("%d pictures have no description: people who cannot see them learn nothing of them.", silent))
	}
	for _, e := range p.Editors {
		if e.Long && e.Wrong == "" {
			p.Warnings = append(p.Warnings, fmt.Sprintf("Post %d is too long for an account without a subscription.", e.Number))
		}
	}
}

// check asks what would become of the draft.
func (d *Dashboard) check(r *http.Request, is draft, p *composePage) error {
	at, err := readTime(r, is.At)
	if err != nil {
		p.Problems = append(p.Problems, "The time cannot be read.")
		return nil //nolint:nilerr // the page shows it
	}
	answer, err := d.cfg.Operations.RequestCheck(r.Context(), is.Account, is.request(at))
	var told *jetpost.APIError
	switch {
	case errors.As(err, &told) && told.Code == jetpost.ErrInvalid:
		if p.Problems = problemWords(told.Problems); len(p.Problems) == 0 {
			p.Problems = []string{told.Detail}
		}
		return nil
	case err != nil:
		return err
	}
	p.Check = &checked{Cost: answer.CostEstimateUSD, When: at, Waits: waitWords(answer, p.now)}
	if !at.IsZero() && at.Before(p.now) {
		p.Warnings = append(p.Warnings, "That time has passed: it goes out at once.")
	}
	if q := answer.Queue; q != nil && q.SameText != nil {
		p.Warnings = append(p.Warnings, fmt.Sprintf("Request %s of account %s has the same text. X forbids that within a day.", cut(q.SameText.ID, maxShownWords), q.SameText.Account))
	}
	return nil
}

// waitWords tell what the thread would wait for.
func waitWords(answer jetpost.CheckAnswer, now time.Time) (list []string) {
	if answer.Pause != nil && answer.Pause.Active(now) {
		list = append(list, "No account may post: "+reasonWords(answer.Pause.Reason.Code)+".")
	}
	if q := answer.Queue; q != nil {
		switch {
		case q.State == "":
			list = append(list, "No account of that name is connected.")
		case q.State != "ok" && q.State != "renewing":
			_, words, _ := tokenWords(q.State)
			list = append(list, words)
		}
		if q.Pause.Active(now) {
			list = append(list, "The account is paused: "+reasonWords(q.Pause.Reason.Code)+".")
		}
		if len(q.Missing) > 0 {
			list = append(list, "The account was connected without "+strings.Join(q.Missing, ", ")+".")
		}
		switch {
		case q.Before == 1:
			list = append(list, "One of its requests is due before it.")
		case q.Before > 1:
			list = append(list, fmt.Sprintf("%d of its requests are due before it.", q.Before))
		}
	}
	for _, text := range answer.NotAsked {
		list = append(list, "Not known: "+cut(text, maxShownWords))
	}
	return list
}
