package xsim

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The kinds of fault. "Before" means that X does nothing; "after" that the
// effect is made and only the answer suffers.
const (
	// FaultLatency delays by DelayMS, before the effect or, with After, after it.
	FaultLatency = "latency"
	// FaultStatus answers Status with the body of Variant, before the effect or,
	// with After, after it.
	FaultStatus = "status"
	// FaultCut drops the connection, before the effect or, with After, after it.
	FaultCut = "cut"
	// FaultGarbage makes the effect and answers its status with half a body.
	FaultGarbage = "garbage"
	// FaultNoID makes the effect and leaves data.id out of the answer.
	FaultNoID = "no_id"
	// FaultLostAnswer makes the effect and then says nothing until the client
	// gives up, or DelayMS (60 s if 0) have passed and the connection drops.
	FaultLostAnswer = "lost_answer"
	// FaultOutage answers 503 to everything, before tokens and windows are checked.
	FaultOutage = "outage"
	// FaultRefuseText answers 403 with Detail to posts that contain Text.
	FaultRefuseText = "refuse_text"
	// FaultMediaFailed lets a medium be finalized and its processing fail. With Detail,
	// its status tells the error that X's API v1.1 told; v2 has none in its schema.
	FaultMediaFailed = "media_failed"
	// FaultTimelineLag hides posts younger than DelayMS from timelines.
	FaultTimelineLag = "timeline_lag"
	// FaultReplicaLag has posts younger than DelayMS be "deleted or not visible" to
	// replies, its author's own too.
	FaultReplicaLag = "replica_lag"
	// FaultVanish has X take a post away by itself, DelayMS after its 201: at once for 0.
	FaultVanish = "vanish"
	// FaultSlowUpload delays a call by its body's size over BytesPerSecond.
	FaultSlowUpload = "slow_upload"
)

const (
	maxFaults         = 1_000
	maxDelayMS        = int64(10 * time.Minute / time.Millisecond)
	lostAnswerDefault = time.Minute
)

// Fault is one thing that goes wrong. A call meets the faults in the order of
// the list: delays add up, and of the others the first that fires is the only one.
// The nth matching call alone is Skip n-1 with Times 1.
type Fault struct {
	Kind string `json:"kind"` // one of the Fault constants

	// Which calls: all that match every field given.
	Account  string `json:"account,omitempty"`  // id or handle
	Endpoint string `json:"endpoint,omitempty"` // one of the Endpoint constants
	Text     string `json:"text,omitempty"`     // the post's text contains it
	Query    string `json:"query,omitempty"`    // the address's query, unescaped, contains it

	// How often: after Skip matching calls, Times calls (0: all), each with
	// Probability (0: always), drawn from the server's seeded generator.
	Skip        int     `json:"skip,omitempty"`
	Times       int     `json:"times,omitempty"`
	Probability float64 `json:"probability,omitempty"`

	// What: see the kinds.
	After   bool  `json:"after,omitempty"`
	DelayMS int64 `json:"delay_ms,omitempty"` // milliseconds, ten minutes at most
	Status  int   `json:"status,omitempty"`   // 200 to 599

	BytesPerSecond int64 `json:"bytes_per_second,omitempty"` // of slow_upload

	// Variant names a body other than the status's ordinary one:
	//
	//	400  media-ids
	//	402  legacy
	//	403  app-read-only app-suspended automated cashtag client-forbidden client-not-enrolled
	//	     duplicate locked parent-gone quote-rule reply-rule spend-cap suspended user-suspended
	//	429  legacy problem usage-capped
	//	503  empty
	//
	// 404 and 413 have no body, 502 and 504 an HTML one. A 429 before the effect closes the
	// account's window for real, unless Bare or usage-capped.
	Variant string `json:"variant,omitempty"`

	// Type, Title and Code choose a body of one's own: a problem of that type (with
	// Detail), and the list of errors with a code. Body is the whole of it, as JSON or
	// as ContentType says. Each takes the place of a variant.
	Type        string `json:"type,omitempty"`
	Title       string `json:"title,omitempty"`
	Code        int    `json:"code,omitempty"`
	Body        string `json:"body,omitempty"`
	ContentType string `json:"content_type,omitempty"`

	// Detail replaces the words of a 403 or of a failure of processing, and is
	// required of refuse_text.
	Detail string `json:"detail,omitempty"`

	// Bare leaves the rate headers out, as answers of the edge do.
	Bare bool `json:"bare,omitempty"`

	// Seen and Fired count the calls that matched and that were struck. The
	// server sets them; in a list given to it they are ignored.
	Seen  int `json:"seen,omitempty"`
	Fired int `json:"fired,omitempty"`
}

// SetFaults replaces all faults. The error lists every mistake; then nothing
// has changed.
func (s *Server) SetFaults(faults []Fault) error {
	if err := validateFaults(faults); err != nil {
		return err
	}
	faults = slices.Clone(faults)
	for i := range faults {
		faults[i].Seen, faults[i].Fired = 0, 0
	}
	w := s.lock()
	defer s.unlock()
	w.faults = faults
	w.touch(&w.faults)
	return nil
}

func validateFaults(faults []Fault) error {
	errs := make([]error, 0, len(faults)+1)
	if len(faults) > maxFaults {
		errs = append(errs, fmt.Errorf("%d faults, want %d at most", len(faults), maxFaults))
	}
	for i := range faults {
		if err := faults[i].validate(); err != nil {
			errs = append(errs, fmt.Errorf("fault %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// Faults returns the faults with what they have seen and done.
func (s *Server) Faults() []Fault {
	w := s.lock()
	defer s.unlock()
	return slices.Clone(w.faults)
}

func (f *Fault) validate() error {
	switch {
	case f.Endpoint != "" && !isEndpoint(f.Endpoint):
		return fmt.Errorf("unknown endpoint %q", f.Endpoint)
	case f.Skip < 0 || f.Times < 0:
		return errors.New("skip and times cannot be negative")
	case f.Probability < 0 || f.Probability > 1:
		return fmt.Errorf("probability is %v, want 0 to 1", f.Probability)
	case f.DelayMS < 0 || f.DelayMS > maxDelayMS:
		return fmt.Errorf("delay_ms is %d, want 0 to %d", f.DelayMS, maxDelayMS)
	case f.Status != 0 && f.Kind != FaultStatus:
		return fmt.Errorf("a fault of kind %q takes no status", f.Kind)
	}
	switch f.Kind {
	case FaultCut, FaultGarbage, FaultNoID, FaultLostAnswer, FaultOutage:
		return nil
	case FaultVanish:
		return nil
	case FaultSlowUpload:
		if f.BytesPerSecond <= 0 {
			return errors.New("slow_upload needs bytes_per_second")
		}
		return nil
	case FaultLatency, FaultTimelineLag, FaultReplicaLag:
		if f.DelayMS == 0 {
			return fmt.Errorf("a fault of kind %q needs delay_ms", f.Kind)
		}
		return nil
	case FaultMediaFailed:
		if f.Endpoint != "" && f.Endpoint != EndpointFinalize {
			return fmt.Errorf("media_failed is for %q alone", EndpointFinalize)
		}
		return nil
	case FaultRefuseText:
		if f.Text == "" || f.Detail == "" {
			return errors.New("refuse_text needs text and detail")
		}
		return nil
	case FaultStatus:
		if f.ownBody() {
			return f.validateBody()
		}
		if problemAnswer(f.Status, f.Variant).status == 0 {
			return fmt.Errorf("no body is known for status %d, variant %q", f.Status, f.Variant)
		}
		return nil
	}
	return fmt.Errorf("unknown kind %q", f.Kind)
}

func (f *Fault) matches(c *call) bool {
	if f.Endpoint != "" && f.Endpoint != c.endpoint || f.Kind == FaultMediaFailed && c.endpoint != EndpointFinalize {
		return false
	}
	if (f.Kind == FaultVanish || f.Kind == FaultReplicaLag) && c.endpoint != EndpointCreatePost {
		return false
	}
	if f.Query != "" {
		if query, err := url.QueryUnescape(c.r.URL.RawQuery); err != nil || !strings.Contains(query, f.Query) {
			return false
		}
	}
	if f.Account != "" && !c.account.named(f.Account) {
		return false
	}
	return f.Text == "" || strings.Contains(c.text, f.Text)
}

// strikes reports whether a fault replaces X's answer; other faults only change when X
// does things.
func (f *Fault) strikes() bool {
	switch f.Kind {
	case FaultLatency, FaultTimelineLag, FaultReplicaLag, FaultVanish, FaultSlowUpload:
		return false
	}
	return true
}

func (f *Fault) ownBody() bool { return f.Type != "" || f.Title != "" || f.Code != 0 || f.Body != "" }

func (f *Fault) validateBody() error {
	switch {
	case f.Status < 200 || f.Status > 599:
		return fmt.Errorf("status is %d, want 200 to 599", f.Status)
	case f.Variant != "":
		return errors.New("a variant has a body already")
	case f.Body != "" && (f.Type != "" || f.Title != "" || f.Code != 0 || f.Detail != ""):
		return errors.New("body is the whole of it: leave type, title, code and detail out")
	}
	return nil
}

// written is the body that the fault chooses.
func (f *Fault) written() answer {
	if f.Body != "" {
		return answer{status: f.Status, contentType: cmp.Or(f.ContentType, jsonType), body: []byte(f.Body)}
	}
	detail := cmp.Or(f.Detail, http.StatusText(f.Status))
	if f.Code != 0 {
		a := jsonAnswer(f.Status, map[string]any{"errors": []map[string]any{{"code": f.Code, "message": detail}}})
		if f.Type == "" && f.Title == "" {
			return a
		}
	}
	problem := map[string]any{"title": cmp.Or(f.Title, http.StatusText(f.Status)), "detail": detail, "type": cmp.Or(f.Type, "about:blank"), "status": f.Status}
	if f.Code != 0 {
		problem["code"] = f.Code
	}
	return answer{status: f.Status, contentType: cmp.Or(f.ContentType, problemType), body: encode(problem)}
}

func (f *Fault) delay() time.Duration {
	if f.DelayMS == 0 && f.Kind == FaultLostAnswer {
		return lostAnswerDefault
	}
	return time.Duration(f.DelayMS) * time.Millisecond
}

// plan is what the faults hold ready for one call.
type plan struct {
	before, after time.Duration
	lag           time.Duration
	replicaLag    time.Duration
	vanish        *Fault
	fault         *Fault // the one that strikes; nil for none
}

func (w *world) plan(c *call, rnd *rand.Rand) plan {
	var p plan
	for i := range w.faults {
		f := &w.faults[i]
		strikes := f.strikes()
		if strikes && p.fault != nil || !f.matches(c) {
			continue
		}
		f.Seen++
		w.touch(&w.faults)
		if f.Seen <= f.Skip || f.Times > 0 && f.Fired >= f.Times || f.Probability > 0 && rnd.Float64() >= f.Probability {
			continue
		}
		f.Fired++
		switch {
		case f.Kind == FaultTimelineLag:
			p.lag = max(p.lag, f.delay())
		case f.Kind == FaultReplicaLag:
			p.replicaLag = max(p.replicaLag, f.delay())
		case f.Kind == FaultVanish:
			chosen := *f
			p.vanish = &chosen
		case f.Kind == FaultSlowUpload:
			p.before += min(time.Duration(len(c.body))*time.Second/time.Duration(f.BytesPerSecond), time.Duration(maxDelayMS)*time.Millisecond)
		case strikes:
			chosen := *f
			p.fault = &chosen
		case f.After:
			p.after += f.delay()
		default:
			p.before += f.delay()
		}
	}
	return p
}

func (p plan) kind() string {
	if p.fault == nil {
		return ""
	}
	return p.fault.Kind
}

// bare says that the answer carries no rate headers.
func (p plan) bare() bool {
	return p.fault != nil && (p.fault.Bare || p.fault.Kind == FaultOutage)
}

// hidesAnswer says that the client could not read what X answered.
func (p plan) hidesAnswer() bool {
	return p.kind() == FaultGarbage || p.kind() == FaultStatus && p.fault.After
}

// strike gives the answer of a fault that comes instead of the effect.
func (s *Server) strike(c *call) (answer, bool) {
	f := c.plan.fault
	if f == nil || f.After {
		return answer{}, false
	}
	switch f.Kind {
	case FaultRefuseText:
		return forbidden(f.Detail), true
	case FaultStatus:
		if f.Status == http.StatusTooManyRequests && f.Variant != "usage-capped" && !f.Bare {
			c.exhaust()
		}
		return f.answer(c), true
	}
	return answer{}, false
}

// answer is the fault's status in the form the endpoint speaks.
func (f *Fault) answer(c *call) answer {
	oauth := (c.endpoint == EndpointToken || c.endpoint == EndpointRevoke) && f.Variant == ""
	switch {
	case f.ownBody():
		return f.written()
	case oauth && f.Status == http.StatusBadRequest:
		return invalidToken()
	case oauth && f.Status == http.StatusUnauthorized:
		return missingBasic()
	case f.Status == http.StatusForbidden && f.Detail != "":
		return forbidden(f.Detail)
	}
	return problemAnswer(f.Status, f.Variant)
}

// spoil changes the answer of an effect that was made.
func (p plan) spoil(c *call, a answer) answer {
	if p.fault == nil || a.cut {
		return a
	}
	switch {
	case p.fault.Kind == FaultStatus && p.fault.After:
		return p.fault.answer(c)
	case p.fault.Kind == FaultCut && p.fault.After:
		return answer{cut: true}
	case p.fault.Kind == FaultGarbage:
		a.body = []byte(`{"data":{"`)
	case p.fault.Kind == FaultNoID:
		a.body = withoutID(a.body)
	}
	return a
}

func withoutID(body []byte) []byte {
	var top map[string]any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if dec.Decode(&top) != nil {
		return body
	}
	if data, ok := top["data"].(map[string]any); ok {
		delete(data, "id")
	}
	return encode(top)
}
