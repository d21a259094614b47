package consumers

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// TestJudge has a row for each error of X's client. Each error is judged before and after
// the intent of a post, bare and wrapped as a thread wraps it.
func TestJudge(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	reset, tomorrow, later := now.Add(time.Minute), now.Add(24*time.Hour), now.Add(backoff(3))
	var undated time.Time // no known end: it is probed
	checkFrom := now.Add(time.Hour)
	said := func(status int) *xapi.APIError { return &xapi.APIError{Status: status, Detail: "X's own words"} }
	ended := errors.New("connection reset")
	type want struct {
		kind  kind
		code  jetpost.Code
		until time.Time
	}
	held := want{kindHold, jetpost.CodeXUnavailable, later}
	doubtful := want{kindDoubtful, jetpost.CodeReconciling, checkFrom}
	refused := want{kindFailed, jetpost.CodeRefusedByX, time.Time{}}
	tests := []struct {
		name          string
		err           error
		before, begun want
		words         bool // the detail is exactly what X said
	}{
		{"APIError", said(418), refused, refused, true},
		{"AccountError", &xapi.AccountError{Reason: xapi.AccountLocked, Err: said(403)},
			want{kindBlock, jetpost.CodeAccountLocked, time.Time{}}, want{kindBlock, jetpost.CodeAccountLocked, time.Time{}}, true},
		{"AmbiguousError, answered", &xapi.AmbiguousError{Err: said(503)}, held, doubtful, false},
		{"AmbiguousError, lost", &xapi.AmbiguousError{Err: ended}, held, doubtful, false},
		{"AppAuthError", &xapi.AppAuthError{Err: said(401)}, refused, refused, true},
		{"AppError, dated", &xapi.AppError{Reason: xapi.AppSpendCapReached, Until: tomorrow, Err: said(403)},
			want{kindPause, jetpost.CodeSpendCapReached, tomorrow}, want{kindPause, jetpost.CodeSpendCapReached, tomorrow}, true},
		{"AppError, past", &xapi.AppError{Reason: xapi.AppUsageCapped, Until: now, Err: said(429)},
			want{kindPause, jetpost.CodeUsageCapped, undated}, want{kindPause, jetpost.CodeUsageCapped, undated}, true},
		{"AppError, undated", &xapi.AppError{Reason: xapi.AppCreditsDepleted, Err: said(402)},
			want{kindPause, jetpost.CodeCreditsDepleted, undated}, want{kindPause, jetpost.CodeCreditsDepleted, undated}, true},
		{"CodeRefusedError", &xapi.CodeRefusedError{Err: said(400)}, refused, refused, true},
		{"GrantRefusedError", &xapi.GrantRefusedError{Err: said(400)}, refused, refused, true},
		{"NotSentError", &xapi.NotSentError{Err: ended}, held, held, false},
		{"RateLimitError, account", &xapi.RateLimitError{Window: xapi.Window{Kind: xapi.WindowUser24h}, Until: reset, Err: said(429)},
			want{kindHold, jetpost.CodeRateLimited, reset}, want{kindHold, jetpost.CodeRateLimited, reset}, false},
		{"RateLimitError, app, of uploads", &xapi.RateLimitError{Window: xapi.Window{Endpoint: xapi.EndpointUploadMedia, Kind: xapi.WindowApp24h}, Until: reset, Err: said(429)},
			want{kindHold, jetpost.CodeRateLimited, reset}, want{kindHold, jetpost.CodeRateLimited, reset}, false},
		{"RateLimitError, app", &xapi.RateLimitError{Window: xapi.Window{Endpoint: xapi.EndpointCreatePost, Kind: xapi.WindowApp24h}, Until: reset, Err: said(429)},
			want{kindPause, jetpost.CodeAppRateLimited, reset}, want{kindPause, jetpost.CodeAppRateLimited, reset}, false},
		{"RateLimitError, past", &xapi.RateLimitError{Window: xapi.Window{Kind: xapi.Window15Min}, Until: now, Err: said(429)},
			want{kindHold, jetpost.CodeRateLimited, later}, want{kindHold, jetpost.CodeRateLimited, later}, false},
		{"RefusedError", &xapi.RefusedError{Kind: xapi.RefusedRule, Err: said(403)}, refused, refused, true},
		{"RefusedError, duplicate", &xapi.RefusedError{Kind: xapi.RefusedDuplicate, Err: said(403)},
			want{kindFailed, jetpost.CodeDuplicate, time.Time{}}, want{kindFailed, jetpost.CodeDuplicate, time.Time{}}, true},
		{"ProcessingError", &xapi.ProcessingError{Err: ended}, want{kindFailed, jetpost.CodeMediaInvalid, time.Time{}}, want{kindFailed, jetpost.CodeMediaInvalid, time.Time{}}, false},
		{"ThreadError", &xapi.ThreadError{Err: &xapi.RefusedError{Kind: xapi.RefusedRule, Err: said(403)}}, refused, refused, true},
		{"UnauthorizedError", &xapi.UnauthorizedError{Err: said(401)}, held, held, false},
		{"UnavailableError, answered", &xapi.UnavailableError{Err: said(404)}, held, held, false},
		{"UnavailableError, lost", &xapi.UnavailableError{Err: ended}, held, held, false},

		{"our hold", admission.Wait(jetpost.CodePoison, tomorrow, "ours"), want{kindHold, jetpost.CodePoison, tomorrow}, want{kindHold, jetpost.CodePoison, tomorrow}, false},
		{"our decision", &decidedError{failWith(jetpost.CodeExpired, "ours")}, want{kindFailed, jetpost.CodeExpired, time.Time{}}, want{kindFailed, jetpost.CodeExpired, time.Time{}}, false},
		{"our media, for now", &mediaError{err: ended}, want{kindHold, jetpost.CodeMediaUnavailable, later}, want{kindHold, jetpost.CodeMediaUnavailable, later}, false},
		{"our media, for good", &mediaError{code: jetpost.CodeMediaInvalid, err: ended}, want{kindFailed, jetpost.CodeMediaInvalid, time.Time{}}, want{kindFailed, jetpost.CodeMediaInvalid, time.Time{}}, false},
		{"any other", ended, held, doubtful, false},
		{"post taken", store.ErrPostTaken, held, doubtful, false},
	}
	rows := map[string]bool{}
	for _, test := range tests {
		name, _, _ := strings.Cut(test.name, ",")
		rows[name] = true
		for _, begun := range []bool{false, true} {
			for _, err := range []error{test.err, fmt.Errorf("post 2 of 3: %w", test.err)} {
				t.Run(fmt.Sprintf("%s, begun %t, %T", test.name, begun, err), func(t *testing.T) {
					t.Parallel()
					v := judge(err, situation{now: now, begun: begun, checkFrom: checkFrom, holds: 2})
					expect := test.before
					if begun {
						expect = test.begun
					}
					if v.kind != expect.kind || v.reason.Code != expect.code || !v.reason.Until.Equal(expect.until) {
						t.Errorf("decision is %s, %+v; want kind %d, code %s, until %v", v, v.reason, expect.kind, expect.code, expect.until)
					}
					if v.reason.Detail == "" || test.words && v.reason.Detail != "X's own words" {
						t.Errorf("detail is %q", v.reason.Detail)
					}
				})
			}
		}
	}
	for _, name := range exportedErrors(t) {
		if !rows[name] {
			t.Errorf("xapi.%s has no row", name)
		}
	}
}

// TestJudgeLeavesTheErrorAlone: judge does not change the error.
func TestJudgeLeavesTheErrorAlone(t *testing.T) {
	t.Parallel()
	limit := &xapi.RateLimitError{Err: &xapi.APIError{Status: 429}}
	judge(limit, situation{now: time.Now()})
	testkit.Equal(t, "end of the window", limit.Until, time.Time{})
}

// exportedErrors reads the types that end in Error from the source of xapi.
func exportedErrors(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("../xapi/*.go")
	testkit.Must(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		testkit.Must(t, err)
		ast.Inspect(parsed, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok && spec.Name.IsExported() && strings.HasSuffix(spec.Name.Name, "Error") {
				names = append(names, spec.Name.Name)
			}
			return true
		})
	}
	if len(names) < 10 {
		t.Fatalf("xapi has but %d errors: %v", len(names), names)
	}
	return names
}

// TestJudgeDuplicateAfterDoubt: X may know the text from the attempt in doubt. If the
// request failed then, its author would write the post a second time.
func TestJudgeDuplicateAfterDoubt(t *testing.T) {
	t.Parallel()
	err := &xapi.RefusedError{Kind: xapi.RefusedDuplicate, Err: &xapi.APIError{Status: 403, Detail: "X's own words"}}
	v := judge(err, situation{now: time.Now(), begun: true, doubted: time.Now().Add(time.Minute)})
	if v.kind != kindDoubtful || !strings.Contains(v.reason.Detail, "X's own words") {
		t.Errorf("decision is %s: %s", v, v.reason.Detail)
	}
	err.Kind = xapi.RefusedRule
	testkit.Equal(t, "another refusal", judge(err, situation{now: time.Now(), begun: true, doubted: time.Now().Add(time.Minute)}).kind, kindFailed)
}

// TestJudgeEdgeGivesUp: a request fails if a routing fault lasts for a day. An outage may
// last longer.
func TestJudgeEdgeGivesUp(t *testing.T) {
	t.Parallel()
	edge := &xapi.UnavailableError{Err: &xapi.APIError{Endpoint: xapi.EndpointUploadMedia, Status: 404}}
	testkit.Equal(t, "before the last try", judge(edge, situation{holds: edgeTries - 1}).kind, kindHold)
	v := judge(edge, situation{holds: edgeTries})
	if v.kind != kindFailed || v.reason.Code != jetpost.CodeRefusedByX || !strings.Contains(v.reason.Detail, "404") {
		t.Errorf("after the last try it is %s (%s: %s)", v, v.reason.Code, v.reason.Detail)
	}
	for _, outage := range []error{errors.New("reset"), &xapi.APIError{Status: 503}} {
		testkit.Equal(t, "outage", judge(&xapi.UnavailableError{Err: outage}, situation{holds: 10 * edgeTries}).kind, kindHold)
	}
	wait := time.Duration(0)
	for n := range edgeTries {
		wait += backoff(n + 1)
	}
	testkit.Equal(t, "days of tries", wait.Round(24*time.Hour), 24*time.Hour)
}

// TestJudgeWordless: a reason has a detail even if X sends no words.
func TestJudgeWordless(t *testing.T) {
	t.Parallel()
	bare := &xapi.APIError{Endpoint: xapi.EndpointCreatePost, Status: 400}
	for _, err := range []error{
		bare, &xapi.RefusedError{Kind: xapi.RefusedInvalid, Err: bare}, &xapi.RefusedError{Kind: xapi.RefusedDuplicate, Err: bare},
		&xapi.AppError{Reason: xapi.AppCreditsDepleted, Err: bare},
	} {
		testkit.Equal(t, fmt.Sprintf("detail of %T", err), judge(err, situation{}).reason.Detail, "POST /2/tweets: 400 Bad Request")
	}
}

func TestSettled(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{
		nil: true, store.ErrFenced: true, store.ErrNotFound: true, store.ErrNotRunnable: true, store.ErrPostTaken: true,
		errAway: false, context.DeadlineExceeded: false,
	} {
		testkit.Equal(t, fmt.Sprint(err), settled(err), want)
		if err != nil {
			testkit.Equal(t, fmt.Sprint("wrapped ", err), settled(fmt.Errorf("do: %w", err)), want)
		}
	}
}

func TestJudgeMediaGivesUp(t *testing.T) {
	t.Parallel()
	err := &mediaError{err: errors.New("no such host")}
	if v := judge(err, situation{now: time.Now(), holds: mediaTries - 1}); v.kind != kindHold {
		t.Errorf("before its last try a source is %s, want hold", v)
	}
	if v := judge(err, situation{now: time.Now(), holds: mediaTries}); v.kind != kindFailed || v.reason.Code != jetpost.CodeMediaUnavailable {
		t.Errorf("after its last try a source is %s (%s), want failed, media_unavailable", v, v.reason.Code)
	}
}
