package app

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
)

// TestHookOps: webhooks are made, listed, tested, enabled and removed over NATS. The secret
// is told to whoever made one, by a repeat too, and never again. A customer reaches its own
// alone.
func TestHookOps(t *testing.T) {
	t.Parallel()
	allowed := []jetpost.Operation{jetpost.OpHookCreate, jetpost.OpHookList, jetpost.OpHookTest, jetpost.OpHookRemove}
	s := serve(t, Walls{Customers: []string{"acme", "other"}, Allow: allowed}, "acme", "other")
	s.work()
	ctx, operator, acme, other := t.Context(), s.as(operatorUser), s.as("acme"), s.as("other")
	in := jetpost.HookCreate{OperationID: "add", URL: "https://127.0.0.1/in?key=query", Events: []jetpost.EventType{jetpost.EventRequestPublished}}
	made, err := acme.HookCreate(ctx, "acme", in)
	testkit.Must(t, err)
	if !strings.HasPrefix(made.Secret, "whsec_") || made.Hook.Account != "acme" || made.Hook.URL != "https://127.0.0.1/in" {
		t.Errorf("made %+v", made)
	}
	again, err := acme.HookCreate(ctx, "acme", in)
	testkit.Must(t, err)
	if again.Secret != made.Secret || again.Hook.ID != made.Hook.ID {
		t.Errorf("a repeat made %+v, want %+v", again, made)
	}
	_, err = operator.HookCreate(ctx, "", jetpost.HookCreate{URL: "https://example.com/"})
	testkit.Must(t, err)
	testkit.Eventually(t, "the consumers", func() bool {
		page, err := operator.HookList(ctx, "", jetpost.HookList{})
		testkit.Must(t, err)
		return len(page.Hooks) == 2 && page.Hooks[0].Pending != nil && page.Hooks[1].Pending != nil
	})
	page, err := acme.HookList(ctx, "acme", jetpost.HookList{})
	testkit.Must(t, err)
	if len(page.Hooks) != 1 || page.Hooks[0].ID != made.Hook.ID || strings.Contains(fmt.Sprintf("%+v", page), "query") {
		t.Errorf("acme lists %+v", page)
	}
	tested, err := acme.HookTest(ctx, "acme", jetpost.HookTest{ID: made.Hook.ID})
	if err != nil || tested.Delivered || !strings.Contains(tested.Failure, "address is not public") || strings.Contains(tested.Failure, "query") {
		t.Errorf("tested %+v, %v", tested, err)
	}
	for what, err := range map[string]error{
		"test":   second(other.HookTest(ctx, "other", jetpost.HookTest{ID: made.Hook.ID})),
		"remove": second(other.HookRemove(ctx, "other", jetpost.HookRemove{ID: made.Hook.ID})),
		"enable": second(operator.HookEnable(ctx, "other", jetpost.HookEnable{ID: made.Hook.ID})),
	} {
		if codeOf(err) != jetpost.ErrNotFound {
			t.Errorf("%s of another account's: %v", what, err)
		}
	}
	if _, err := other.HookList(ctx, "", jetpost.HookList{}); codeOf(err) != jetpost.ErrUnavailable {
		t.Errorf("a customer lists all: %v", err)
	}
	s.refusesHooks(operator)
	removed, err := acme.HookRemove(ctx, "acme", jetpost.HookRemove{OperationID: "remove", ID: made.Hook.ID})
	if err != nil || removed.ID != made.Hook.ID {
		t.Errorf("removed %+v, %v", removed, err)
	}
	if _, err := acme.HookCreate(ctx, "acme", in); codeOf(err) != jetpost.ErrNotFound {
		t.Errorf("a late repeat, when it is gone: %v", err)
	}
}

// refusesHooks: what no webhook can be is a mistake.
func (s *served) refusesHooks(operator *client.Client) {
	t := s.t
	t.Helper()
	for what, in := range map[string]jetpost.HookCreate{
		"no URL": {}, "http": {URL: "http://example.com/"}, "no host": {URL: "https:///in"}, "a password": {URL: "https://a:b@example.com/"},
		"another type":  {URL: "https://example.com/", Events: []jetpost.EventType{"request.done"}},
		"a type of app": {URL: "https://example.com/", Events: []jetpost.EventType{jetpost.EventAppPaused}},
		"a test":        {URL: "https://example.com/", Events: []jetpost.EventType{jetpost.EventHookTest}},
	} {
		if _, err := operator.HookCreate(t.Context(), "acme", in); codeOf(err) != jetpost.ErrInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestEraseOp: an account is erased by one call, with its events in the mirror that
// producers read; a repeat is answered as before, and an old id posts nothing.
func TestEraseOp(t *testing.T) {
	t.Parallel()
	const words = "words-of-one-who-leaves"
	s := serve(t, Walls{}, "leaver", "acme")
	s.work()
	ctx, operator, producer := t.Context(), s.as(operatorUser), s.connect(producerUser)
	later := time.Now().Add(time.Hour)
	post := func(account, id, text string, at time.Time) jetpost.Request {
		return jetpost.Request{ID: id, PublishAt: at, Posts: []jetpost.Post{{Text: text}}, Metadata: map[string]string{"note": text}}
	}
	for account, text := range map[string]string{"leaver": words, "acme": "stays"} {
		_, err := operator.PublishAndWait(ctx, account, post(account, "live", text, time.Time{}), nil)
		testkit.Must(t, err)
		_, err = operator.RequestPublish(ctx, account, post(account, "waits", text+" too", later))
		testkit.Must(t, err)
	}
	put, err := operator.MediaPut(ctx, "leaver", strings.NewReader("GIF89a that no request names"))
	testkit.Must(t, err)
	kept, err := operator.MediaPut(ctx, "acme", strings.NewReader("GIF89a that stays"))
	testkit.Must(t, err)
	testkit.Must(t, producer.Flush())
	testkit.Eventually(t, "the mirror to have the events", func() bool { return strings.Contains(s.files(words), "MIRROR") })

	erase := jetpost.AccountErase{OperationID: "erase"}
	erased, err := operator.AccountErase(ctx, "leaver", erase)
	testkit.Must(t, err)
	if want := (jetpost.Erased{Name: "leaver", Done: true, Requests: 2, LivePosts: 1, Revoked: true}); erased != want {
		t.Errorf("erased %+v, want %+v", erased, want)
	}
	if again, err := operator.AccountErase(ctx, "leaver", erase); err != nil || again != erased {
		t.Errorf("again: %+v, %v", again, err)
	}
	js := connectJS(t, s.server, workerUser)
	var names jetpost.Names
	for _, text := range []string{words, ".leaver"} {
		files := strings.Fields(s.files(text))
		if text == ".leaver" { // of a schedule that another one has replaced, the name stays
			files = slices.DeleteFunc(files, func(file string) bool { return strings.Contains(file, "/"+names.ScheduleStream()+"/") })
		}
		if len(files) > 0 {
			t.Errorf("%s is in %s", text, files)
		}
	}
	schedules, err := js.Stream(ctx, names.ScheduleStream())
	testkit.Must(t, err)
	if _, err := schedules.GetLastMsgForSubject(ctx, names.ScheduleWake("leaver")); !errors.Is(err, jetstream.ErrMsgNotFound) {
		t.Errorf("its schedule: %v", err)
	}
	media := publishers.New(connectJS(t, s.server, operatorUser), jetpost.Names{})
	if _, err := media.GetMedia(ctx, put.Object); !errors.Is(err, jetstream.ErrObjectNotFound) {
		t.Errorf("its picture: %v", err)
	}
	if _, err := media.GetMedia(ctx, kept.Object); err != nil {
		t.Errorf("another account's picture: %v", err)
	}
	if len(s.sim.Posts("leaver")) != 1 {
		t.Error("its post is gone from X")
	}
	if _, err := operator.AccountGet(ctx, "leaver"); codeOf(err) != jetpost.ErrNotFound {
		t.Errorf("the account: %v", err)
	}
	if _, err := operator.AccountErase(ctx, "nobody", jetpost.AccountErase{}); codeOf(err) != jetpost.ErrNotFound {
		t.Errorf("erase nobody: %v", err)
	}
	stays, err := operator.RequestGet(ctx, "acme", jetpost.RequestGet{ID: "waits"})
	if err != nil || stays.Request.State != jetpost.StateScheduled {
		t.Errorf("another account's request: %+v, %v", stays, err)
	}
}

// files are the names of those that have a text, of NATS and of the database.
func (s *served) files(text string) string {
	s.t.Helper()
	var found []string
	for _, root := range []string{s.server.StoreDir(), filepath.Dir(strings.TrimPrefix(s.cfg.DatabaseURL.Reveal(), "sqlite:"))} {
		testkit.Must(s.t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.Contains(path, "KV_") { // windows, which end by themselves
				return nil //nolint:nilerr // it is gone
			}
			if content, err := os.ReadFile(path); err == nil && bytes.Contains(content, []byte(text)) {
				found = append(found, path)
			}
			return nil
		}))
	}
	return strings.Join(found, " ")
}
