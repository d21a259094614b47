package web_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/web"
)

func (x tampered) RequestCheck(ctx context.Context, account string, r jetpost.Request) (jetpost.CheckAnswer, error) {
	answer, err := x.Operations.RequestCheck(ctx, account, r)
	return tamper(x, answer, err)
}

// intake takes what is published into the ledger, as a worker does, and remembers it.
type intake struct {
	web.Operations
	ledger store.Store

	mu   sync.Mutex
	sent []jetpost.Request
}

func (i *intake) RequestPublish(ctx context.Context, account string, r jetpost.Request) (answer jetpost.PublishAnswer, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r.Account = account
	i.sent = append(i.sent, r)
	body, err := json.Marshal(r)
	if err != nil {
		return answer, err
	}
	decision, err := i.ledger.Accept(ctx, store.Acceptance{Request: r, Body: body, Digest: r.Digest(), Now: time.Now()})
	if decision == store.Conflict {
		answer.Refusal = &jetpost.Refusal{Code: jetpost.CodeIdentityConflict, Problems: []jetpost.Problem{{Pointer: "/id", Message: "another request has this id"}}}
	}
	return answer, err
}

func newComposer(t *testing.T) (*dashboardBundle, *intake) {
	t.Helper()
	b := newDashboard(t, nil)
	b.serve()
	_, js := natstest.Connect(t, b.nats)
	in := &intake{Operations: b.client, ledger: b.ledger}
	return b.mount(func(cfg *web.DashboardConfig) {
		cfg.Operations, cfg.Media = in, publishers.New(js, jetpost.Names{})
	}), in
}

// upload sends a form with files, by the names of their fields.
func (b *dashboardBundle) upload(path string, form url.Values, files map[string][]byte) (*http.Response, string) {
	b.Helper()
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for name, values := range form {
		testkit.Must(b.T, w.WriteField(name, values[0]))
	}
	for name, data := range files {
		part, err := w.CreateFormFile(name, "a.png")
		testkit.Must(b.T, err)
		_, err = part.Write(data)
		testkit.Must(b.T, err)
	}
	testkit.Must(b.T, w.Close())
	r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, b.url+path, &body)
	testkit.Must(b.T, err)
	r.Header.Set("Content-Type", w.FormDataContentType())
	resp, err := http.DefaultTransport.RoundTrip(r)
	testkit.Must(b.T, err)
	text, err := io.ReadAll(resp.Body)
	testkit.Must(b.T, err)
	testkit.Must(b.T, resp.Body.Close())
	return resp, string(text)
}

func pictureBytes(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	testkit.Must(t, png.Encode(&b, image.NewGray(image.Rect(0, 0, 4, 4))))
	return b.Bytes()
}

// TestDashboardComposes: a thread is written, counted, split, given a picture and sent with
// forms alone, and one form makes one request however often it is sent.
func TestDashboardComposes(t *testing.T) {
	t.Parallel()
	b, in := newComposer(t)
	page := b.want(http.StatusOK, "<option>acme</option>", http.MethodGet, "/compose", nil)
	form := b.form(page, "/compose")
	post := func(do, want string) string {
		t.Helper()
		form.Set("do", do)
		return b.want(http.StatusOK, want, http.MethodPost, "/compose", form)
	}
	form.Set("text-0", "a link https://www.example.com/a/very/long/path/that/is/cut and 漢")
	page = post("check", "37 of 280 as X counts")
	for _, part := range []string{"Nothing", "cost, about"} {
		if strings.Contains(page, part) {
			t.Errorf("without an account the page has %q\n%s", part, page)
		}
	}
	form.Set("account", "acme")
	page = post("check", `rel="noreferrer noopener">example.com/a/very/long/pat…</a>`)
	for _, part := range []string{"$0.200", "nothing that is known of", "at once", "<option selected>acme</option>"} {
		if !strings.Contains(page, part) {
			t.Errorf("the page has no %q\n%s", part, page)
		}
	}
	form.Set("text-0", strings.TrimSpace(strings.Repeat("One sentence of words. ", 20)))
	post("check", "179 too many")
	post("check", "Split into 2 posts")
	page = post("split-0", `name="text-1"`)
	if strings.Contains(page, "too many") {
		t.Errorf("a part is too long\n%s", page)
	}
	form.Set("text-0", "first")
	form.Set("text-1", "second")
	post("add", `name="text-2"`)
	post("remove-1", `id="text-0"`)
	form.Set("do", "attach")
	resp, page := b.upload("/compose", form, map[string][]byte{"file-1": pictureBytes(t)})
	object := b.form(page, "/compose").Get("object-1-0")
	if resp.StatusCode != http.StatusOK || object == "" || !strings.Contains(page, "One picture has no description") || !strings.Contains(page, `<img src="/ops/media/`+object+`" alt="Picture 1">`) {
		t.Fatalf("status %d, object %q\n%s", resp.StatusCode, object, page)
	}
	form.Set("object-1-0", object)
	form.Set("alt-1-0", "a grey <square>")
	form.Set("at", fmt.Sprintf("%d-07-01T09:30", time.Now().Year()+1))
	form.Set("do", "publish")
	to := "/ops/requests/acme/" + form.Get("operation_id") + "?done=compose"
	for range 2 {
		b.want(http.StatusSeeOther, to, http.MethodPost, "/compose", form, "Cookie", "zone=Europe/Berlin")
	}
	r := in.sent[0]
	if len(r.Posts) != 2 || r.Posts[1].Text != "second" || r.Posts[1].Media[0].Object != object || r.Posts[1].Media[0].Alt != "a grey <square>" {
		t.Errorf("sent %+v", r)
	}
	if at := r.PublishAt.UTC().Format("01-02 15:04"); at != "07-01 07:30" {
		t.Errorf("it is due at %s", at)
	}
	if in.sent[1].ID != r.ID {
		t.Errorf("a repeat has the id %s, the first one %s", in.sent[1].ID, r.ID)
	}
	page = b.want(http.StatusOK, "This page shows how it goes live", http.MethodGet, strings.TrimPrefix(to, "/ops"), nil)
	for _, part := range []string{`<img src="/ops/media/` + object + `" alt="a grey &lt;square&gt;"`, "@acme", "not sent yet"} {
		if !strings.Contains(page, part) {
			t.Errorf("the request's page has no %q\n%s", part, page)
		}
	}
	form.Set("text-0", "another text under the same id")
	b.want(http.StatusOK, "It was refused: the id was used before", http.MethodPost, "/compose", form)
}

// TestDashboardComposeRefuses: what cannot be sent is shown with the draft and nothing is
// sent; what waits is told.
func TestDashboardComposeRefuses(t *testing.T) {
	t.Parallel()
	b, in := newComposer(t)
	form := url.Values{"operation_id": {client.NewOperationID()}, "do": {"publish"}, "text-0": {""}}
	b.want(http.StatusOK, "Choose the account that posts it.", http.MethodPost, "/compose", form)
	form.Set("account", "acme")
	b.want(http.StatusOK, "Write something, or add a picture.", http.MethodPost, "/compose", form)
	form.Set("text-0", "$AAA and $BBB </textarea><pwn>")
	b.want(http.StatusOK, "Post 1: text has 2 cashtags", http.MethodPost, "/compose", form)
	form.Set("text-0", strings.Repeat("a", 25_001))
	b.want(http.StatusOK, "Post 1: text", http.MethodPost, "/compose", form)
	form.Set("text-0", "fine")
	form.Set("account", "nobody")
	form.Set("do", "check")
	b.want(http.StatusOK, "No account of that name is connected.", http.MethodPost, "/compose", form)
	_, err := b.client.AccountPause(t.Context(), "acme", jetpost.PauseRequest{Reason: "lunch"})
	testkit.Must(t, err)
	form.Set("account", "acme")
	form.Set("at", "2001-01-01T00:00")
	page := b.want(http.StatusOK, "The account is paused: somebody has paused the account.", http.MethodPost, "/compose", form)
	if !strings.Contains(page, "That time has passed: it goes out at once.") {
		t.Errorf("no warning\n%s", page)
	}
	if resp, page := b.upload("/compose", form, map[string][]byte{"file-0": []byte("<html>")}); resp.StatusCode != http.StatusBadRequest || !strings.Contains(page, "no picture that X takes") {
		t.Errorf("a file that is no picture: status %d\n%s", resp.StatusCode, page)
	}
	five := append(pictureBytes(t), make([]byte, 5<<20)...)
	if resp, page := b.upload("/compose", form, map[string][]byte{"file-0": five}); resp.StatusCode != http.StatusBadRequest || !strings.Contains(page, "X takes 5120 kB at most") {
		t.Errorf("a picture that is too large: status %d\n%s", resp.StatusCode, page)
	}
	b.want(http.StatusBadRequest, "The form has more than 4 kB", http.MethodPost, "/links", url.Values{"operation_id": {"a"}, "account": {strings.Repeat("a", 5000)}})
	if len(in.sent) > 0 {
		t.Errorf("sent %+v", in.sent)
	}
	readOnly := b.mount(func(cfg *web.DashboardConfig) { cfg.ReadOnly = true })
	readOnly.want(http.StatusForbidden, "--read-only", http.MethodGet, "/compose", nil)
	readOnly.want(http.StatusForbidden, "--read-only", http.MethodPost, "/compose", form)
}

// TestDashboardShowsPictures: the dashboard shows pictures of the object store, and no other
// file in it.
func TestDashboardShowsPictures(t *testing.T) {
	t.Parallel()
	b, _ := newComposer(t)
	_, js := natstest.Connect(t, b.nats)
	store := publishers.New(js, jetpost.Names{})
	shown, err := store.PutMedia(t.Context(), bytes.NewReader(pictureBytes(t)))
	testkit.Must(t, err)
	page, err := store.PutMedia(t.Context(), strings.NewReader("<html><script>pwn()</script>"))
	testkit.Must(t, err)
	resp, text := b.ask(http.MethodGet, "/media/"+shown, nil)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "image/png" || text != string(pictureBytes(t)) {
		t.Errorf("status %d, %q", resp.StatusCode, resp.Header)
	}
	b.want(http.StatusNotFound, "no picture that can be shown", http.MethodGet, "/media/"+page, nil)
	b.want(http.StatusNotFound, "There is no such file", http.MethodGet, "/media/none", nil)
	b.mount(nil).want(http.StatusNotFound, "Nothing is at this address", http.MethodGet, "/media/"+shown, nil)
}
