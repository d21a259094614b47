package consumers

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// judgeRow says what becomes of an error before and after the intent of a post.
type judgeRow struct {
	name          string
	err           error
	before, begun judged
	words         bool // the detail is exactly what X said
}

type judged struct {
	kind  kind
	code  jetpost.Code
	until time.Time
}

// What the rows of TestJudge have in common.
var (
	judgeNow       = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	judgeReset     = judgeNow.Add(time.Minute)
	judgeTomorrow  = judgeNow.Add(24 * time.Hour)
	judgeLater     = judgeNow.Add(backoff(3))
	judgeCheckFrom = judgeNow.Add(time.Hour)

	errEnded = errors.New("connection reset")

	judgedHeld     = judged{kindHold, jetpost.CodeXUnavailable, judgeLater}
	judgedDoubtful = judged{kindDoubtful, jetpost.CodeReconciling, judgeCheckFrom}
	judgedRefused  = judged{kindFailed, jetpost.CodeRefusedByX, time.Time{}}
)

func xSaid(status int) *xapi.APIError { return &xapi.APIError{Status: status, Detail: "X's own words"} }

// always is a row of an error that means the same before and after the intent.
func always(name string, err error, kind kind, code jetpost.Code, until time.Time) judgeRow {
	as := judged{kind, code, until}
	return judgeRow{name: name, err: err, before: as, begun: as}
}

// inXsWords is a row whose detail is exactly what X said.
func (r judgeRow) inXsWords() judgeRow {
	r.words = true
	return r
}

// judgeRefusals are of one post or token that X refuses, for good.
func judgeRefusals() []judgeRow {
	return []judgeRow{
		{"APIError", xSaid(418), judgedRefused, judgedRefused, true},
		{"AppAuthError", &xapi.AppAuthError{Err: xSaid(401)}, judgedRefused, judgedRefused, true},
		{"CodeRefusedError", &xapi.CodeRefusedError{Err: xSaid(400)}, judgedRefused, judgedRefused, true},
		{"GrantRefusedError", &xapi.GrantRefusedError{Err: xSaid(400)}, judgedRefused, judgedRefused, true},
		{"RefusedError", &xapi.RefusedError{Kind: xapi.RefusedRule, Err: xSaid(403)}, judgedRefused, judgedRefused, true},
		always("RefusedError, duplicate", &xapi.RefusedError{Kind: xapi.RefusedDuplicate, Err: xSaid(403)}, kindFailed, jetpost.CodeDuplicate, time.Time{}).inXsWords(),
		always("ProcessingError", &xapi.ProcessingError{Err: errEnded}, kindFailed, jetpost.CodeMediaInvalid, time.Time{}),
		{"ThreadError", &xapi.ThreadError{Err: &xapi.RefusedError{Kind: xapi.RefusedRule, Err: xSaid(403)}}, judgedRefused, judgedRefused, true},
	}
}

// judgeBlocks are of the whole account or the whole app.
func judgeBlocks() []judgeRow {
	var undated time.Time // no known end: it is probed
	window := xapi.Window{Endpoint: xapi.EndpointCreatePost, Kind: xapi.WindowApp24h}
	return []judgeRow{
		always("AccountError", &xapi.AccountError{Reason: xapi.AccountLocked, Err: xSaid(403)}, kindBlock, jetpost.CodeAccountLocked, time.Time{}).inXsWords(),
		always("AppError, dated", &xapi.AppError{Reason: xapi.AppSpendCapReached, Until: judgeTomorrow, Err: xSaid(403)}, kindPause, jetpost.CodeSpendCapReached, judgeTomorrow).inXsWords(),
		always("AppError, past", &xapi.AppError{Reason: xapi.AppUsageCapped, Until: judgeNow, Err: xSaid(429)}, kindPause, jetpost.CodeUsageCapped, undated).inXsWords(),
		always("AppError, undated", &xapi.AppError{Reason: xapi.AppCreditsDepleted, Err: xSaid(402)}, kindPause, jetpost.CodeCreditsDepleted, undated).inXsWords(),
		always("RateLimitError, app", &xapi.RateLimitError{Window: window, Until: judgeReset, Err: xSaid(429)}, kindPause, jetpost.CodeAppRateLimited, judgeReset),
	}
}

// judgeHolds are over by themselves.
func judgeHolds() []judgeRow {
	uploads := xapi.Window{Endpoint: xapi.EndpointUploadMedia, Kind: xapi.WindowApp24h}
	return []judgeRow{
		{"NotSentError", &xapi.NotSentError{Err: errEnded}, judgedHeld, judgedHeld, false},
		always("RateLimitError, account", &xapi.RateLimitError{Window: xapi.Window{Kind: xapi.WindowUser24h}, Until: judgeReset, Err: xSaid(429)}, kindHold, jetpost.CodeRateLimited, judgeReset),
		always("RateLimitError, app, of uploads", &xapi.RateLimitError{Window: uploads, Until: judgeReset, Err: xSaid(429)}, kindHold, jetpost.CodeRateLimited, judgeReset),
		always("RateLimitError, past", &xapi.RateLimitError{Window: xapi.Window{Kind: xapi.Window15Min}, Until: judgeNow, Err: xSaid(429)}, kindHold, jetpost.CodeRateLimited, judgeLater),
		{"UnauthorizedError", &xapi.UnauthorizedError{Err: xSaid(401)}, judgedHeld, judgedHeld, false},
		{"UnavailableError, answered", &xapi.UnavailableError{Err: xSaid(404)}, judgedHeld, judgedHeld, false},
		{"UnavailableError, lost", &xapi.UnavailableError{Err: errEnded}, judgedHeld, judgedHeld, false},
	}
}

// judgeDoubts are held before the intent, and leave the post in doubt after it.
func judgeDoubts() []judgeRow {
	return []judgeRow{
		{"AmbiguousError, answered", &xapi.AmbiguousError{Err: xSaid(503)}, judgedHeld, judgedDoubtful, false},
		{"AmbiguousError, lost", &xapi.AmbiguousError{Err: errEnded}, judgedHeld, judgedDoubtful, false},
		{"any other", errEnded, judgedHeld, judgedDoubtful, false},
		{"post taken", store.ErrPostTaken, judgedHeld, judgedDoubtful, false},
	}
}

// judgeOurs are of the worker itself.
func judgeOurs() []judgeRow {
	return []judgeRow{
		always("our hold", admission.Wait(jetpost.CodePoison, judgeTomorrow, "ours"), kindHold, jetpost.CodePoison, judgeTomorrow),
		always("our decision", &decidedError{failWith(jetpost.CodeExpired, "ours")}, kindFailed, jetpost.CodeExpired, time.Time{}),
		always("our media, for now", &mediaError{err: errEnded}, kindHold, jetpost.CodeMediaUnavailable, judgeLater),
		always("our media, for good", &mediaError{code: jetpost.CodeMediaInvalid, err: errEnded}, kindFailed, jetpost.CodeMediaInvalid, time.Time{}),
	}
}

// TestJudge has a row for each error of X's client. Each error is judged before and after
// the intent of a post, bare and wrapped as a thread wraps it.
func TestJudge(t *testing.T) {
	t.Parallel()
	rows := map[string]bool{}
	for _, row := range slices.Concat(judgeRefusals(), judgeBlocks(), judgeHolds(), judgeDoubts(), judgeOurs()) {
		name, _, _ := strings.Cut(row.name, ",")
		rows[name] = true
		for _, begun := range []bool{false, true} {
			for _, err := range []error{row.err, fmt.Errorf("post 2 of 3: %w", row.err)} {
				t.Run(fmt.Sprintf("%s, begun %t, %T", row.name, begun, err), func(t *testing.T) {
					t.Parallel()
					v := judge(err, situation{now: judgeNow, begun: begun, checkFrom: judgeCheckFrom, holds: 2})
					expect := row.before
					if begun {
						expect = row.begun
					}
					if v.kind != expect.kind || v.reason.Code != expect.code || !v.reason.Until.Equal(expect.until) {
						t.Errorf("decision is %s, %+v; want kind %d, code %s, until %v", v, v.reason, expect.kind, expect.code, expect.until)
					}
					if v.reason.Detail == "" || row.words && v.reason.Detail != "X's own words" {
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
