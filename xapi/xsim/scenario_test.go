package xsim_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

// play begins a scenario by the control API.
func (b *testBundle) play(steps string) {
	b.Helper()
	b.spec.Answers.Store(false) // those of faults are what a test makes of them
	b.want(b.control("PUT", "scenario", `{"steps":[`+steps+`]}`), 200, "")
}

// steps are the scenario's, with what has become of them.
func (b *testBundle) steps() []xsim.Step {
	b.Helper()
	var s xsim.Scenario
	if err := json.Unmarshal([]byte(b.control("GET", "scenario", "").body), &s); err != nil {
		b.Fatal(err)
	}
	return s.Steps
}

// TestScenarioOnCall: a step on a call comes before X handles that call, and once.
func TestScenarioOnCall(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	b.post(b.grant, "before the scenario", "")
	b.play(`
		{"on":{"endpoint":"POST /2/tweets","account":"ann","call":3},"do":"PUT /_sim/accounts?user=ann","body":{"state":"locked"}},
		{"on":{"endpoint":"POST /2/tweets","call":5},"do":"PUT /_sim/faults","body":[{"kind":"status","status":503,"times":1}]},
		{"on":{"endpoint":"GET /2/users/me","call":1},"do":"DELETE /_sim/tokens?user=bob"}`)
	b.post(b.grant, "one", "")
	b.post(bob, "bob's", "")
	b.post(b.grant, "one more", "")
	b.want(b.create(b.grant, `{"text":"two"}`), 403, "")
	b.want(b.control("PUT", "accounts?user=ann", `{"state":""}`), 200, "")
	b.want(b.create(b.grant, `{"text":"three"}`), 503, "")
	b.post(b.grant, "three", "")
	b.want(b.do(bob, "GET", "/2/users/me", "", ""), 401, unauthorized)
	for i, step := range b.steps() {
		if step.DoneAt.IsZero() || step.Error != "" {
			t.Errorf("step %d: %+v", i+1, step)
		}
	}
}

// TestScenarioAtTime: a step at a time comes before the first call after it, in order.
func TestScenarioAtTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.play(`
		{"do":"POST /_sim/accounts","body":{"handle":"bob","access_token":"B"}},
		{"at_ms":1000,"do":"PUT /_sim/limits","body":[{"endpoint":"GET /2/users/me","scope":"user","max":1,"window_ms":60000}]},
		{"at_ms":1000,"do":"PUT /_sim/accounts?user=bob","body":{"scope":"users.read tweet.read"}},
		{"at_ms":2000,"do":"PUT /_sim/accounts?user=carl","body":{"state":"locked"}},
		{"at_ms":3000,"do":"POST /_sim/reset"},
		{"at_ms":4000,"do":"PUT /_sim/consent","body":{"deny":true}}`)
	bob := xsim.Grant{AccessToken: "B"}
	b.post(bob, "made by the scenario", "")
	b.want(b.do(bob, "GET", "/2/users/me", "", ""), 200, "")
	b.want(b.do(bob, "GET", "/2/users/me", "", ""), 200, "")
	b.clock.pass(time.Second)
	b.want(b.do(bob, "GET", "/2/users/me", "", ""), 200, "")
	b.want(b.do(bob, "GET", "/2/users/me", "", ""), 429, tooMany)
	b.want(b.create(bob, `{"text":"no more"}`), 403, "")
	b.clock.pass(time.Second)
	if accounts := b.control("GET", "accounts", "").body; !strings.Contains(accounts, "bob") {
		t.Errorf("accounts: %s", accounts)
	}
	steps := b.steps()
	if step := steps[3]; step.DoneAt.IsZero() || step.Error != `{"error":"no such user: \"carl\""}` {
		t.Errorf("a step for nobody: %+v", step)
	}
	if step := steps[4]; !step.DoneAt.IsZero() {
		t.Errorf("a step that is to come: %+v", step)
	}
	b.clock.pass(time.Second)
	b.want(b.do(bob, "GET", "/2/users/me", "", ""), 401, unauthorized)
}

// TestScenarioResets: of the X that a step ends, a call has nothing left, nor has a journal.
func TestScenarioResets(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.jsonl")
	b := keeping(t, &clock{at: time.Now()}, path)
	ann := b.account(xsim.NewAccount{Handle: "ann"})
	b.play(`{"on":{"endpoint":"POST /2/oauth2/token","call":1},"do":"POST /_sim/reset"}`)
	b.want(b.refresh(ann.RefreshToken), 400, badToken)
	b.again(path)
}

// TestScenarioUnderWay: a call that latency holds meets what came meanwhile.
func TestScenarioUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := with(t, &xsim.Server{})
		ann := b.account(xsim.NewAccount{Handle: "ann"})
		b.faults(xsim.Fault{Kind: xsim.FaultLatency, DelayMS: 5000})
		b.play(`{"at_ms":2000,"do":"PUT /_sim/accounts?user=ann","body":{"state":"suspended"}}`)
		b.want(b.do(ann, "GET", "/2/users/me", "", ""), 403, "")
	})
}

// TestScenarioRefused: a scenario that is wrong is not begun, and the error says where.
func TestScenarioRefused(t *testing.T) {
	t.Parallel()
	step := func(text string) string {
		return "{\"steps\": [\n" + `{"do":"POST /_sim/reset"},` + "\n\n" + text + "\n]}"
	}
	for name, tt := range map[string]struct{ text, want string }{
		"no JSON":             {"{\n\nsteps", "line 3: invalid character 's'"},
		"half":                {"{\n\"steps\": [", "unexpected EOF"},
		"two":                 {`{"steps":[{"do":"POST /_sim/reset"}]} {}`, "more than one JSON value"},
		"nothing":             {`{}`, "line 1: steps: there are none"},
		"another member":      {`{"steps":[],"name":"x"}`, `unknown field "name"`},
		"steps of no kind":    {"{\n\"steps\": 7}", "line 2: json: cannot unmarshal number"},
		"unknown member":      {step(`{"do":"POST /_sim/reset","at":"5s"}`), `line 4: step 2: json: unknown field "at"`},
		"both times":          {step(`{"do":"POST /_sim/reset","at_ms":5,"on":{"endpoint":"POST /2/tweets","call":1}}`), "line 4: step 2: on, at_ms: a step has one of them"},
		"before the start":    {step(`{"do":"POST /_sim/reset","at_ms":-1}`), "at_ms: is -1, want 0 or more"},
		"done":                {step(`{"do":"POST /_sim/reset","done_at":"2026-11-23T12:00:00Z"}`), "done_at, error: a step that is to come"},
		"no call":             {step(`{"do":"POST /_sim/reset","on":{"endpoint":"POST /2/tweets"}}`), "on.call: is 0, want 1 or more"},
		"no endpoint":         {step(`{"do":"POST /_sim/reset","on":{"endpoint":"/2/tweets","call":1}}`), `on.endpoint: unknown endpoint "/2/tweets"`},
		"nothing to do":       {step(`{}`), `do: "" is no change of the control API`},
		"a look":              {step(`{"do":"GET /_sim/posts"}`), `do: "GET /_sim/posts" is no change`},
		"within itself":       {step(`{"do":"PUT /_sim/scenario","body":{"steps":[]}}`), "is no change"},
		"a call of X":         {step(`{"do":"POST /2/tweets","body":{"text":"a"}}`), "is no change"},
		"no address":          {step(`{"do":"PUT /_sim/%zz"}`), "do: parse"},
		"nobody":              {step(`{"do":"PUT /_sim/accounts","body":{"state":"locked"}}`), "the parameter user is missing"},
		"somebody":            {step(`{"do":"PUT /_sim/faults?user=ann","body":[]}`), "or does not belong there"},
		"no body":             {step(`{"do":"PUT /_sim/faults"}`), "body: EOF"},
		"a body too much":     {step(`{"do":"POST /_sim/reset","body":{}}`), "body: POST /_sim/reset takes none"},
		"another body":        {step(`{"do":"PUT /_sim/accounts?user=ann","body":{"status":"locked"}}`), `body: json: unknown field "status"`},
		"a state of no use":   {step(`{"do":"PUT /_sim/accounts?user=ann","body":{"state":"asleep"}}`), `body: unknown state "asleep"`},
		"a fault of no kind":  {step(`{"do":"PUT /_sim/faults","body":[{"kind":"rain"}]}`), `body: fault 0: unknown kind "rain"`},
		"a limit of no use":   {step(`{"do":"PUT /_sim/limits","body":[{"endpoint":"POST /2/tweets","scope":"user","max":1}]}`), "body: limit 0: window_ms is 0"},
		"a scope of no use":   {step(`{"do":"PUT /_sim/consent","body":{"scope":"all"}}`), "body: unknown scopes: all"},
		"a handle of no use":  {step(`{"do":"POST /_sim/accounts","body":{"handle":"a b"}}`), `body: handle "a b"`},
		"two mistakes in one": {step(`{"do":"POST /_sim/rest","at_ms":-1}`), "at_ms: is -1, want 0 or more\ndo: \"POST /_sim/rest\""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			_, err := xsim.ReadScenario([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
			r := b.control("PUT", "scenario", tt.text)
			if r.status != 400 || len(b.steps()) > 0 {
				t.Errorf("it is answered %d %s, and played: %v", r.status, r.body, b.steps())
			}
		})
	}
}
