package xsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Scenario is what happens to an X in the course of a run, so that the run can be
// repeated. Its steps are calls of the control API.
type Scenario struct {
	Steps []Step `json:"steps"`
}

// Step is one change, made once. It comes AtMS after the scenario began, or on a call.
type Step struct {
	AtMS int64           `json:"at_ms,omitempty"` // milliseconds; 0 is at once
	On   *Cue            `json:"on,omitempty"`    // in place of at_ms
	Do   string          `json:"do"`              // "PUT /_sim/accounts?user=acme"
	Body json.RawMessage `json:"body,omitempty"`  // as the control takes it

	// DoneAt and Error say when the step was made, and why it failed. The server sets
	// them; a scenario that is read has none.
	DoneAt time.Time `json:"done_at,omitzero"`
	Error  string    `json:"error,omitempty"`
}

// Cue is the nth call of an endpoint, and of an account if one is named. The step is
// made before X handles the call.
type Cue struct {
	Endpoint string `json:"endpoint"`          // one of the Endpoint constants
	Account  string `json:"account,omitempty"` // id or handle
	Call     int    `json:"call"`              // 1 is the first since the scenario began
}

// scenario is one that is being played. Its server's stage guards it.
type scenario struct {
	steps []Step
	seen  []int // calls that matched each step's cue
	began time.Time
}

// ReadScenario reads a scenario strictly. Its errors name the line and the step, and
// all mistakes of a step.
func ReadScenario(data []byte) (Scenario, error) {
	var s Scenario
	var file struct {
		Steps []json.RawMessage `json:"steps"`
	}
	if err := strictly(data, &file); err != nil {
		return s, fmt.Errorf("line %d: %w", lineOf(data, errorOffset(err)), err)
	}
	if len(file.Steps) == 0 {
		return s, errors.New("line 1: steps: there are none")
	}
	from := 0
	for i, raw := range file.Steps {
		from += bytes.Index(data[from:], raw)
		line := lineOf(data, int64(from))
		from += len(raw)
		var step Step
		err := strictly(raw, &step)
		if err == nil {
			err = step.validate()
		}
		if err != nil {
			return s, fmt.Errorf("line %d: step %d: %w", line, i+1, err)
		}
		s.Steps = append(s.Steps, step)
	}
	return s, nil
}

// errorOffset is where the decoder met the mistake, as far as it reports that.
func errorOffset(err error) int64 {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return syntax.Offset
	case errors.As(err, &kind):
		return kind.Offset
	}
	return 0
}

func lineOf(data []byte, offset int64) int {
	return 1 + bytes.Count(data[:min(max(offset, 0), int64(len(data)))], []byte("\n"))
}

func (s *Step) validate() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch {
	case !s.DoneAt.IsZero() || s.Error != "":
		wrong("done_at, error: a step that is to come has neither")
	case s.On != nil && s.AtMS != 0:
		wrong("on, at_ms: a step has one of them")
	case s.AtMS < 0:
		wrong("at_ms: is %d, want 0 or more", s.AtMS)
	}
	if s.On != nil && !isEndpoint(s.On.Endpoint) {
		wrong("on.endpoint: unknown endpoint %q", s.On.Endpoint)
	}
	if s.On != nil && s.On.Call < 1 {
		wrong("on.call: is %d, want 1 or more", s.On.Call)
	}
	errs = append(errs, s.validateControl())
	return errors.Join(errs...)
}

// validateControl checks as much of the control call as is possible without the X that
// it will meet.
func (s *Step) validateControl() error {
	method, target, _ := strings.Cut(s.Do, " ")
	u, err := url.Parse(target)
	if err != nil {
		return fmt.Errorf("do: %w", err)
	}
	var check func([]byte) error
	switch method + " " + u.Path {
	case "POST /_sim/accounts":
		check = checked(NewAccount.validate)
	case "PUT /_sim/accounts":
		check = checked(AccountChange.validate)
	case "PUT /_sim/faults":
		check = checked(validateFaults)
	case "PUT /_sim/limits":
		check = checked(validateLimits)
	case "PUT /_sim/consent":
		check = checked(Consent.validate)
	case "DELETE /_sim/media", "DELETE /_sim/tokens", "POST /_sim/reset":
		if s.Body != nil {
			return fmt.Errorf("body: %s takes none", s.Do)
		}
	default:
		return fmt.Errorf("do: %q is no change of the control API", s.Do)
	}
	if nobody := !slices.Contains([]string{"PUT /_sim/accounts", "DELETE /_sim/media", "DELETE /_sim/tokens"}, method+" "+u.Path); nobody == (u.Query().Get("user") != "") {
		return fmt.Errorf("do: %q: the parameter user is missing, or does not belong there", s.Do)
	}
	if check == nil {
		return nil
	}
	if err := check(s.Body); err != nil {
		return fmt.Errorf("body: %w", err)
	}
	return nil
}

// checked reads a body and validates it.
func checked[T any](validate func(T) error) func([]byte) error {
	return func(body []byte) error {
		var v T
		if err := strictly(body, &v); err != nil {
			return err
		}
		return validate(v)
	}
}

// Play begins a scenario, in place of one that is under way. Steps that are due by time are
// made before the first call, of X or of the control API, that comes after it. It fails,
// and nothing begins, where a step is wrong.
func (s *Server) Play(play Scenario) error {
	for i := range play.Steps {
		if err := play.Steps[i].validate(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	s.stage.Lock()
	defer s.stage.Unlock()
	s.scenario = &scenario{steps: slices.Clone(play.Steps), seen: make([]int, len(play.Steps)), began: s.now()}
	return nil
}

// Scenario returns the scenario that was begun last, with what has become of each step.
func (s *Server) Scenario() Scenario {
	s.stage.Lock()
	defer s.stage.Unlock()
	if s.scenario == nil {
		return Scenario{Steps: []Step{}}
	}
	return Scenario{Steps: slices.Clone(s.scenario.steps)}
}

// keepTime makes the steps whose time has come.
func (s *Server) keepTime() {
	s.stage.Lock()
	defer s.stage.Unlock()
	s.step(nil)
}

// step makes the steps that are due, by time or by a call. The caller holds the stage.
func (s *Server) step(c *call) {
	if s.scenario == nil {
		return
	}
	for i := range s.scenario.steps {
		step := &s.scenario.steps[i]
		if !step.DoneAt.IsZero() {
			continue
		}
		due := step.On == nil && !s.now().Before(s.scenario.began.Add(time.Duration(step.AtMS)*time.Millisecond))
		if step.On != nil && c != nil && step.On.matches(c) {
			s.scenario.seen[i]++
			due = s.scenario.seen[i] == step.On.Call
		}
		if due {
			s.make(step)
		}
	}
}

func (s *Server) make(step *Step) {
	method, target, _ := strings.Cut(step.Do, " ")
	u, err := url.Parse(target)
	if err != nil {
		panic("xsim: a step was checked: " + err.Error())
	}
	step.DoneAt = s.now()
	a := s.controlAnswer(&http.Request{Method: method, URL: u}, step.Body)
	if a.status >= http.StatusBadRequest {
		step.Error = string(a.body)
	}
	if s.Logger != nil {
		s.Logger.Info("xsim.step", "do", step.Do, "status", a.status, "error", step.Error)
	}
}

func (q *Cue) matches(c *call) bool {
	return q.Endpoint == c.endpoint && (q.Account == "" || c.account.named(q.Account))
}

// named reports whether that id or handle is the account's; no account has none.
func (a *account) named(user string) bool {
	return a != nil && (user == a.ID || strings.EqualFold(user, a.Handle))
}
