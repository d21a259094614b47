package app

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"image"
	"image/png"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/web"
	"github.com/jetpost/jetpost/web/api"
)

// door is the HTTP API of an installation that serves with walls.
type door struct {
	*served
	operator *client.Client
	url      string
}

func openDoor(t *testing.T) *door {
	t.Helper()
	s := serve(t, Walls{}, "acme", "other")
	s.work()
	// What serves HTTP has a NATS user and nothing else: no database, no keys.
	server := httptest.NewServer(api.New(s.as(operatorUser), slog.New(slog.DiscardHandler)))
	t.Cleanup(server.Close)
	return &door{served: s, operator: s.as(operatorUser), url: server.URL}
}

// token makes a token that works for so long.
func (d *door) token(name string, life time.Duration, accounts []string, verbs ...jetpost.Verb) string {
	d.t.Helper()
	token, digest := client.NewToken(name)
	_, err := d.operator.TokenCreate(d.t.Context(), jetpost.TokenCreate{
		Name: name, Digest: digest, Accounts: accounts, Verbs: verbs, ExpiresAt: time.Now().Add(life),
	})
	testkit.Must(d.t, err)
	return token
}

// reply is an answer of the API.
type reply struct {
	status int
	header http.Header
	text   string
	code   jetpost.ErrorCode
}

// call calls an operation, as "request.get/acme", with a token.
func (d *door) call(token, operation, body string) reply {
	d.t.Helper()
	return d.send(http.MethodPost, d.url+api.Path+operation, "Bearer "+token, body)
}

func (d *door) send(method, url, authorization, body string) reply {
	d.t.Helper()
	return d.sendAs(method, url, authorization, "", body)
}

// sendAs sends a body of a kind.
func (d *door) sendAs(method, url, authorization, kind, body string) reply {
	d.t.Helper()
	request, err := http.NewRequestWithContext(d.t.Context(), method, url, strings.NewReader(body))
	testkit.Must(d.t, err)
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	response, err := http.DefaultClient.Do(request)
	testkit.Must(d.t, err)
	text, err := io.ReadAll(response.Body)
	testkit.Must(d.t, err)
	testkit.Must(d.t, response.Body.Close())
	r := reply{status: response.StatusCode, header: response.Header, text: string(text)}
	var failed jetpost.ErrorAnswer
	if json.Unmarshal(text, &failed) == nil && failed.Error != nil {
		r.code = failed.Error.Code
	}
	return r
}

// wants holds an answer to a status and an error's code, "" of none.
func (d *door) wants(what string, got reply, status int, code jetpost.ErrorCode) {
	d.t.Helper()
	if got.status != status || got.code != code {
		d.t.Errorf("%s: got %d %q, want %d %q: %s", what, got.status, got.code, status, code, got.text)
	}
	if got.header.Get("Cache-Control") != "no-store" || got.header.Get("Content-Type") != "application/json" {
		d.t.Errorf("%s: got headers %v", what, got.header)
	}
}

// TestAPI: a program with curl and a token publishes, looks, pauses, resumes and cancels,
// and a change that is repeated takes effect once.
func TestAPI(t *testing.T) {
	t.Parallel()
	d := openDoor(t)
	token := d.token("shop", time.Hour, []string{"acme"}, jetpost.Verbs()...)

	const request = `{"id":"one","publish_at":"2099-01-01T00:00:00Z","posts":[{"text":"Later"}]}`
	d.wants("publish", d.call(token, "request.publish/acme", request), 200, "")
	got := d.call(token, "request.get/acme", `{"id":"one"}`)
	d.wants("get", got, 200, "")
	var details jetpost.RequestDetails
	testkit.Must(t, json.Unmarshal([]byte(got.text), &details))
	if details.Request.ID != "one" || len(details.Texts) != 1 || details.Texts[0] != "Later" {
		t.Errorf("got %+v", details)
	}
	const cancel = `{"operation_id":"op","id":"one"}`
	first := d.call(token, "request.cancel/acme", cancel)
	d.wants("cancel", first, 200, "")
	if again := d.call(token, "request.cancel/acme", cancel); again.text != first.text {
		t.Errorf("a repeat is answered %s, want %s", again.text, first.text)
	}
	d.wants("pause", d.call(token, "account.pause/acme", `{"reason":"lunch"}`), 200, "")
	d.wants("resume", d.call(token, "account.resume/acme", ``), 200, "")

	d.wants("mistakes", d.call(token, "request.publish/acme", `{"id":"a b","posts":[]}`), 400, jetpost.ErrInvalid)
	d.wants("no JSON", d.call(token, "request.get/acme", `id=one`), 400, jetpost.ErrInvalid)
	d.wants("no request", d.call(token, "request.get/acme", `{"id":"none"}`), 404, jetpost.ErrNotFound)
	d.wants("conflict", d.call(token, "request.cancel/acme", `{"operation_id":"op","id":"two"}`), 409, jetpost.ErrOperationReused)
	d.wants("large", d.call(token, "request.publish/acme", strings.Repeat(" ", api.MaxBodyBytes+1)), 413, jetpost.ErrInvalid)
	d.wants("too large for NATS", d.call(token, "request.publish/acme", strings.Repeat(" ", api.MaxBodyBytes)), 400, jetpost.ErrInvalid)
	get := d.send(http.MethodGet, d.url+api.Path+"request.get/acme", "Bearer "+token, "")
	d.wants("GET", get, 405, jetpost.ErrInvalid)
	if get.header.Get("Allow") != http.MethodPost {
		t.Errorf("Allow is %q", get.header.Get("Allow"))
	}
	d.wants("elsewhere", d.send(http.MethodGet, d.url+api.Path+"a/b/c", "", ""), 404, jetpost.ErrNotFound)
	d.wants("document", d.send(http.MethodGet, d.url+api.Path+"openapi.json", "", ""), 200, "")
}

// TestAPIWithoutToken: whoever holds no live token learns that and nothing else.
func TestAPIWithoutToken(t *testing.T) {
	t.Parallel()
	d := openDoor(t)
	live := d.token("live", time.Hour, []string{jetpost.AllAccounts}, jetpost.Verbs()...)
	d.wants("live", d.call(live, "request.list", ``), 200, "")
	ended := d.ended("ended")
	revoked := d.token("revoked", time.Hour, []string{jetpost.AllAccounts}, jetpost.Verbs()...)
	d.wants("before it is revoked", d.call(revoked, "request.list", ``), 200, "")
	_, err := d.operator.TokenRevoke(t.Context(), jetpost.TokenRevoke{Name: "revoked"})
	testkit.Must(t, err)

	guess, _ := client.NewToken("live")
	unknown, _ := client.NewToken("unknown")
	last := "A"
	if strings.HasSuffix(live, last) {
		last = "B"
	}
	for what, authorization := range map[string]string{
		"none": "", "another scheme": "Basic " + live, "no scheme": live, "empty": "Bearer ", "no token": "Bearer secret",
		"a secret of another name": "Bearer " + guess, "an unknown name": "Bearer " + unknown, "one letter off": "Bearer " + live[:len(live)-1] + last,
		"longer": "Bearer " + live + "A", "its digest": "Bearer " + digestIn(live), "revoked": "Bearer " + revoked, "ended": "Bearer " + ended,
	} {
		for _, operation := range []string{"request.list", "request.get/acme", "token.create", "nothing"} {
			got := d.send(http.MethodPost, d.url+api.Path+operation, authorization, `{}`)
			d.wants(what+" calls "+operation, got, 401, jetpost.ErrUnauthenticated)
			if !strings.HasPrefix(got.header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("%s: WWW-Authenticate is %q", what, got.header.Get("WWW-Authenticate"))
			}
		}
	}
}

// ended makes a token whose end is in the past.
func (d *door) ended(name string) string {
	d.t.Helper()
	token, digest := client.NewToken(name)
	sum, err := hex.DecodeString(digest)
	testkit.Must(d.t, err)
	testkit.Must(d.t, d.ledger.AddAPIToken(d.t.Context(), store.APIToken{
		Name: name, Digest: sum, Accounts: []string{jetpost.AllAccounts}, Verbs: jetpost.Verbs(),
		CreatedAt: time.Now().Add(-time.Hour), ExpiresAt: time.Now().Add(-time.Second),
	}))
	return token
}

func digestIn(token string) string {
	_, digest, _ := client.ReadToken(token)
	return digest
}

// given are the operations of each verb. Those on tokens have none.
var given = map[jetpost.Verb][]jetpost.Operation{
	jetpost.VerbPublish: {jetpost.OpRequestPublish, jetpost.OpRequestCheck, jetpost.OpRequestReschedule, jetpost.OpRequestCancel, jetpost.OpMediaPut},
	jetpost.VerbRead: {
		jetpost.OpRequestGet, jetpost.OpRequestList, jetpost.OpRequestCount, jetpost.OpRequestCalendar, jetpost.OpRequestHistory, jetpost.OpAccountList, jetpost.OpAccountGet, jetpost.OpAppStatus, jetpost.OpAppSeries, jetpost.OpDeadLettersGroups,
		jetpost.OpAppLimits, jetpost.OpAppForecast, jetpost.OpDeadLettersList, jetpost.OpWorkersList,
		jetpost.OpAuditList, jetpost.OpLinkGet, jetpost.OpHookList,
	},
	jetpost.VerbManage: {
		jetpost.OpRequestResolve, jetpost.OpRequestReconcile, jetpost.OpRequestReplay, jetpost.OpRequestUnpublish, jetpost.OpRequestCancelMany, jetpost.OpAccountPause,
		jetpost.OpAccountResume, jetpost.OpAccountRefresh, jetpost.OpAccountDisconnect, jetpost.OpAccountRename, jetpost.OpAccountRemove,
		jetpost.OpAccountLink, jetpost.OpAccountConsent, jetpost.OpAccountConnect, jetpost.OpAccountVerify, jetpost.OpAccountLimit,
		jetpost.OpAppPause, jetpost.OpAppResume, jetpost.OpAppPrune,
		jetpost.OpAccountErase, jetpost.OpHookCreate, jetpost.OpHookTest, jetpost.OpHookEnable, jetpost.OpHookRemove,
	},
}

// TestAPILeastPrivilege tries every operation, on each account and on none, with a token
// of each verb: it is carried out, or answered with a mistake, where the token allows it,
// and forbidden where not.
func TestAPILeastPrivilege(t *testing.T) {
	t.Parallel()
	d := openDoor(t)
	_, err := d.operator.RequestPublish(t.Context(), "other", jetpost.Request{
		ID: "one", PublishAt: time.Now().Add(time.Hour), Posts: []jetpost.Post{{Text: "Secret"}},
	})
	testkit.Must(t, err)
	for _, scope := range []string{"acme", jetpost.AllAccounts} {
		for _, verb := range jetpost.Verbs() {
			name := string(verb)
			if scope == jetpost.AllAccounts {
				name += "-all"
			}
			d.tries(d.token(name, time.Hour, []string{scope}, verb), name, func(o jetpost.Operation, account string) bool {
				return slices.Contains(given[verb], o) && (scope == jetpost.AllAccounts || account == scope && !o.Beyond())
			})
		}
	}
	// Nothing of the tries has changed anything.
	details, err := d.operator.RequestGet(t.Context(), "other", jetpost.RequestGet{ID: "one"})
	testkit.Must(t, err)
	if details.Request.State != jetpost.StateScheduled {
		t.Errorf("the request of another account is %s", details.Request.State)
	}
}

// tries calls each operation with a body that is none of its.
func (d *door) tries(token, name string, may func(o jetpost.Operation, account string) bool) {
	d.t.Helper()
	for _, o := range jetpost.Operations() {
		for _, account := range []string{"", "acme", "other"} {
			if account == "" && o.Account == jetpost.OfOne || account != "" && o.Account == jetpost.OfNone {
				continue
			}
			path := strings.TrimSuffix(string(o.Operation)+"/"+account, "/")
			status, code := http.StatusForbidden, jetpost.ErrForbidden
			if may(o.Operation, account) {
				status, code = http.StatusBadRequest, jetpost.ErrInvalid
			}
			d.wants(name+" calls "+path, d.call(token, path, `{"none":0}`), status, code)
		}
	}
	for _, path := range []string{"request.get/*", "request.get/acme.other", "request.get/%2E%2E", "request.get/ACME", "request.get.other", "request.get/>"} {
		got := d.call(token, path, `{"id":"one"}`)
		if got.status == http.StatusOK || strings.Contains(got.text, "Secret") {
			d.t.Errorf("%s calls %s: got %d %s", name, path, got.status, got.text)
		}
	}
}

// TestMediaDoors: a picture whose bytes are the body of one call is posted by its account
// alone, and nobody puts one who may not.
func TestMediaDoors(t *testing.T) {
	t.Parallel()
	d := openDoor(t)
	file := noise(t, 620)
	token := d.token("shop", time.Hour, []string{"acme"}, jetpost.VerbPublish, jetpost.VerbRead)
	upload := func(token, path, kind string, file []byte) reply {
		t.Helper()
		return d.sendAs(http.MethodPost, d.url+api.Path+path, "Bearer "+token, kind, string(file))
	}
	got := upload(token, "media.put/acme", "image/png", file)
	d.wants("put", got, 200, "")
	var stored jetpost.MediaStored
	testkit.Must(t, json.Unmarshal([]byte(got.text), &stored))
	if len(file) <= 2*jetpost.MaxMediaPart || stored.Bytes != len(file) || stored.Type != "image/png" || jetpost.ObjectOwner(stored.Object) != "acme" {
		t.Errorf("stored %+v", stored)
	}
	d.wants("publish", d.call(token, "request.publish/acme", `{"id":"one","posts":[{"text":"Look","media":[{"object":"`+stored.Object+`"}]}]}`), 200, "")
	testkit.Eventually(t, "the post with its picture", func() bool {
		details, err := d.operator.RequestGet(t.Context(), "acme", jetpost.RequestGet{ID: "one"})
		testkit.Must(t, err)
		return details.Request.Settled()
	})
	if posts := d.sim.Posts("acme"); len(posts) != 1 || len(posts[0].MediaIDs) != 1 {
		t.Errorf("posted %+v", posts)
	}
	d.wants("as JSON", d.call(token, "media.put/acme", `{"data":"`+base64.StdEncoding.EncodeToString(file[:100])+`"}`), 200, "")
	unknown, _ := client.NewToken("shop")
	reads := d.token("reads", time.Hour, []string{"acme"}, jetpost.VerbRead, jetpost.VerbManage)
	for what, try := range map[string]struct {
		reply  reply
		status int
		code   jetpost.ErrorCode
	}{
		"another account":   {upload(token, "media.put/other", "image/png", file), 403, jetpost.ErrForbidden},
		"no account":        {upload(token, "media.put", "image/png", file), 403, jetpost.ErrForbidden},
		"a token of others": {upload(reads, "media.put/acme", octetsKind, file), 403, jetpost.ErrForbidden},
		"a wrong token":     {upload(unknown, "media.put/acme", octetsKind, file), 401, jetpost.ErrUnauthenticated},
		"an ended token":    {upload(d.ended("ended"), "media.put/acme", octetsKind, file), 401, jetpost.ErrUnauthenticated},
		"nothing":           {upload(token, "media.put/acme", octetsKind, nil), 400, jetpost.ErrInvalid},
		"a page":            {upload(token, "media.put/acme", octetsKind, []byte("<html>")), 400, jetpost.ErrInvalid},
		"another kind":      {upload(token, "media.put/acme", "text/html", file), 415, jetpost.ErrInvalid},
		"another operation": {upload(token, "request.get/acme", "image/png", file), 415, jetpost.ErrInvalid},
	} {
		d.wants(what, try.reply, try.status, try.code)
	}
	entries, err := d.operator.AuditList(t.Context(), jetpost.AuditList{Operation: string(jetpost.OpMediaPut)})
	testkit.Must(t, err)
	if len(entries.Entries) != 2 || entries.Entries[1].Actor != "token:shop" || entries.Entries[1].Target != stored.Object {
		t.Errorf("noted %+v", entries.Entries)
	}
}

// noise is a picture that does not compress.
func noise(t *testing.T, width int) []byte {
	t.Helper()
	picture := image.NewNRGBA(image.Rect(0, 0, width, width))
	_, _ = rand.Read(picture.Pix)
	for i := 3; i < len(picture.Pix); i += 4 {
		picture.Pix[i] = 0xff
	}
	var file bytes.Buffer
	testkit.Must(t, png.Encode(&file, picture))
	return file.Bytes()
}

const octetsKind = "application/octet-stream"

// TestAPIWithoutWorkers: a call that no worker answers is unavailable, and not allowed.
func TestAPIWithoutWorkers(t *testing.T) {
	t.Parallel()
	s := serve(t, Walls{})
	server := httptest.NewServer(api.New(s.as(operatorUser), slog.New(slog.DiscardHandler)))
	t.Cleanup(server.Close)
	d := &door{served: s, url: server.URL}
	token, _ := client.NewToken("any")
	d.wants("call", d.call(token, "request.list", ``), 503, jetpost.ErrUnavailable)
}

// TestAPIBelowAPath: where the public address has a path, the operations are below it, as
// the pages are.
func TestAPIBelowAPath(t *testing.T) {
	t.Parallel()
	public, err := web.ParsePublicURL("https://example.com/connections")
	testkit.Must(t, err)
	pages := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	w := &Web{Site: web.Site{Public: public}, pages: pages, api: api.New(nil, slog.New(slog.DiscardHandler))}
	for path, want := range map[string]int{
		"/connections/api/v1/openapi.json": http.StatusOK,
		"/connections/api/v1/request.list": http.StatusUnauthorized,
		"/connections/connect/token":       http.StatusTeapot,
		"/api/v1/openapi.json":             http.StatusTeapot,
		"/healthz":                         http.StatusOK,
	} {
		recorder := httptest.NewRecorder()
		w.handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if recorder.Code != want {
			t.Errorf("%s: got %d, want %d", path, recorder.Code, want)
		}
	}
}
