package publishers

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/jetpost/jetpost"
)

// deadLetterTime is when the jobs of dead letters were accepted.
var deadLetterTime = time.Date(2026, 11, 23, 12, 0, 0, 5, time.UTC)

func failedRequest(account, id string, code jetpost.Code) jetpost.RequestStatus {
	return jetpost.RequestStatus{
		Account: account, ID: id, State: jetpost.StateFailed,
		Reason: &jetpost.Reason{Code: code, Detail: "X said:\n no"},
		Posted: 2, Total: 5, Attempts: 3,
		AcceptedAt: deadLetterTime, UpdatedAt: deadLetterTime.Add(time.Minute),
	}
}

func rejectedMessage(account string, sequence uint64) jetpost.Refusal {
	return jetpost.Refusal{
		Account: account, ID: "r", Code: jetpost.CodeInvalidRequest, Sequence: sequence, Stored: deadLetterTime,
		Problems: []jetpost.Problem{{Pointer: "/posts", Message: "is missing"}, {Message: "is no object"}},
	}
}

// setupDeadLetters leaves six messages: three dead letters of two accounts, two
// rejections, and a failed refresh, which is no job.
func setupDeadLetters(t *testing.T) (*testBundle, *DeadLetters) {
	t.Helper()
	tb := setup(t)
	deadLetters := NewDeadLetters(tb.js, tb.names)
	for _, err := range []error{
		deadLetters.Failed(t.Context(), failedRequest("acme", "a", jetpost.CodeDuplicate), []byte("body a")),
		deadLetters.Refused(t.Context(), rejectedMessage("acme", 7), "test.publish.request.acme", []byte("not json")),
		deadLetters.Failed(t.Context(), failedRequest("acme", "b", jetpost.CodeExpired), []byte("body b")),
		deadLetters.RefreshFailed(t.Context(), "acme", jetpost.Reason{Code: jetpost.CodeTokenRefreshFailed}),
		deadLetters.Refused(t.Context(), rejectedMessage("", 8), "test.publish.request", nil),
		deadLetters.Failed(t.Context(), failedRequest("zeta", "a", jetpost.CodeExpired), []byte("body z")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return tb, deadLetters
}

func listDeadLetters(t *testing.T, deadLetters *DeadLetters, f DeadLetterFilter) []DeadLetter {
	t.Helper()
	found, err := deadLetters.List(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestDeadLettersDrop deletes one, and never a newer one.
func TestDeadLettersDrop(t *testing.T) {
	t.Parallel()
	_, deadLetters := setupDeadLetters(t)
	listed := listDeadLetters(t, deadLetters, DeadLetterFilter{Account: "acme", ID: "a"})
	if len(listed) != 1 {
		t.Fatalf("got %+v", listed)
	}
	// The request fails once more before the dead letter is dropped.
	if err := deadLetters.Failed(t.Context(), failedRequest("acme", "a", jetpost.CodeExpired), []byte("again")); err != nil {
		t.Fatal(err)
	}
	if err := deadLetters.Drop(t.Context(), listed[0]); err != nil {
		t.Fatalf("drop of a dead letter that is gone: %v", err)
	}
	newer := listDeadLetters(t, deadLetters, DeadLetterFilter{Account: "acme", ID: "a"})
	if len(newer) != 1 || string(newer[0].Body) != "again" {
		t.Fatalf("got %+v, want only the newer dead letter", newer)
	}
	for range 2 {
		if err := deadLetters.Drop(t.Context(), newer[0]); err != nil {
			t.Fatal(err)
		}
	}
	if left := listDeadLetters(t, deadLetters, DeadLetterFilter{}); len(left) != 4 {
		t.Errorf("%d dead letters are left, want 4", len(left))
	}
	if err := deadLetters.Drop(t.Context(), DeadLetter{Sequence: 999}); err != nil {
		t.Errorf("drop of a dead letter that never existed: %v", err)
	}
}

// TestDeadLettersListFailed has the facts of a failed request.
func TestDeadLettersListFailed(t *testing.T) {
	t.Parallel()
	tb, deadLetters := setupDeadLetters(t)
	want := []DeadLetter{{
		Subject: tb.names.PublishFailed("acme", "b"), Account: "acme", ID: "b",
		Code: jetpost.CodeExpired, Detail: "X said: no", Posted: "2/5", Attempts: 3,
		Accepted: deadLetterTime, Failed: deadLetterTime.Add(time.Minute), Body: []byte("body b"),
	}}
	got := listDeadLetters(t, deadLetters, DeadLetterFilter{ID: "b"})
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(DeadLetter{}, "Sequence", "Time")); diff != "" {
		t.Error(diff)
	}
}

// TestDeadLettersListRefused has the facts of a rejected message.
func TestDeadLettersListRefused(t *testing.T) {
	t.Parallel()
	tb, deadLetters := setupDeadLetters(t)
	want := []DeadLetter{{
		Subject: tb.names.PublishRefused("", "8"), Refused: true, ID: "r", Code: jetpost.CodeInvalidRequest,
		Detail: "/posts is missing; is no object", Problems: rejectedMessage("", 8).Problems,
		Accepted: deadLetterTime, Origin: "test.publish.request",
	}}
	got := listDeadLetters(t, deadLetters, DeadLetterFilter{ID: "r"})[1:]
	ignore := cmpopts.IgnoreFields(DeadLetter{}, "Sequence", "Time", "Failed")
	if diff := cmp.Diff(want, got, ignore, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

func TestDeadLettersListPicks(t *testing.T) {
	t.Parallel()
	_, deadLetters := setupDeadLetters(t)
	all := listDeadLetters(t, deadLetters, DeadLetterFilter{})
	for _, tt := range []struct {
		filter DeadLetterFilter
		want   string
	}{
		{DeadLetterFilter{}, "acme/a acme/r acme/b /r zeta/a"},
		{DeadLetterFilter{Account: "acme"}, "acme/a acme/r acme/b"},
		{DeadLetterFilter{Account: "acme", ID: "b"}, "acme/b"},
		{DeadLetterFilter{Account: "nobody"}, ""},
		{DeadLetterFilter{Code: jetpost.CodeExpired}, "acme/b zeta/a"},
		{DeadLetterFilter{ID: "*"}, ""},
		{DeadLetterFilter{ID: "a"}, "acme/a zeta/a"},
		{DeadLetterFilter{ID: "r"}, "acme/r /r"},
		{DeadLetterFilter{Limit: 2}, "acme/a acme/r"},
		{DeadLetterFilter{Since: all[2].Time}, "acme/b /r zeta/a"},
	} {
		var got []string
		for _, r := range listDeadLetters(t, deadLetters, tt.filter) {
			got = append(got, r.Account+"/"+r.ID)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%+v: got %v, want %s", tt.filter, got, tt.want)
		}
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                           "",
		" two\r\nlines\tand tabs ":   "two lines and tabs",
		"\xff":                       "\uFFFD",
		"exactly 20 bytes....":       "exactly 20 bytes....",
		"more than 20 bytes, so cut": "more than 20 byte…",
		"éééééééééééééé":             "éééééééé…",
	} {
		got := oneLine(in, 20)
		if got != want || len(got) > 20 || !utf8.ValidString(got) {
			t.Errorf("oneLine(%q): %q, want %q", in, got, want)
		}
	}
}

func TestEncodeProblems(t *testing.T) {
	t.Parallel()
	var problems []jetpost.Problem
	for i := range 500 {
		problems = append(problems, jetpost.Problem{Pointer: fmt.Sprintf("/posts/%d", i), Message: "is missing"})
	}
	if got := encodeProblems(problems); len(got) > maxErrorsBytes || !strings.HasPrefix(got, `[{"pointer":"/posts/0"`) || !strings.HasSuffix(got, "]") {
		t.Errorf("got %d bytes: %.60s", len(got), got)
	}
	if got := encodeProblems(nil); got != "" {
		t.Errorf("no problems: %q", got)
	}
}
