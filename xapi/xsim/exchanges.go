package xsim

import (
	"maps"
	"slices"
	"time"
	"unique"
)

// maxExchanges bounds the stored exchanges of one account; older ones are dropped. An
// account that is refreshed four times a day reaches it in half a year.
const maxExchanges = 1_000

// Exchange is one presentation of a refresh token, or of an authorization code, at the
// token endpoint. It names the token by its place and never holds its value.
type Exchange struct {
	Account  string    `json:"account"`         // the account's id
	Family   int       `json:"family"`          // the account's nth consent, from 1
	Rotation int       `json:"rotation"`        // which refresh token of the family: 0 is the one that consent gave
	Code     bool      `json:"code,omitempty"`  // the family's authorization code was presented, no refresh token
	At       time.Time `json:"at"`              // when the call arrived
	Host     string    `json:"host"`            // the address that the client called
	Fault    string    `json:"fault,omitempty"` // the kind of fault that struck, or else FaultLatency where one delayed
	Open     bool      `json:"open,omitempty"`  // still under way: what follows is not final
	Status   int       `json:"status"`          // 0 where no answer was given
	Effect   bool      `json:"effect"`          // the token was taken, and a successor made
	Refused  bool      `json:"refused"`         // the token is spent, has expired or was withdrawn
	// Answered says that the client got X's answer, be it a pair or a refusal: it was
	// neither cut, lost nor spoiled, and the client had not gone.
	Answered bool `json:"answered"`
}

// presentation is an exchange by its number among the account's, from 1.
type presentation struct {
	Exchange
	number int
}

// Exchanges returns the last 1,000 presentations of the user's refresh tokens and
// codes, oldest first; nil if there is no such user. With "" it returns those of all
// users, one user after the other. What names no token that was ever given out is in
// [Server.Calls] alone.
func (s *Server) Exchanges(user string) []Exchange {
	w := s.lock()
	defer s.unlock()
	if user == "" {
		list := []Exchange{}
		for _, a := range w.order {
			list = append(list, a.presented()...)
		}
		return list
	}
	if a := w.user(user); a != nil {
		return a.presented()
	}
	return nil
}

// Locate returns which token a refresh token is, used or not: the one after that many
// rotations of the account's nth consent.
func (s *Server) Locate(refreshToken string) (family, rotation int, ok bool) {
	w := s.lock()
	defer s.unlock()
	t := w.refresh[refreshToken]
	if t == nil {
		return 0, 0, false
	}
	return t.grant.family, t.rotation, true
}

// IssuedTokens returns every access token, refresh token and code that was given out
// since the last Reset, sorted. It is for tests that search what a program wrote for
// secrets; no control call returns it.
func (s *Server) IssuedTokens() []string {
	w := s.lock()
	defer s.unlock()
	list := make([]string, 0, len(w.access)+len(w.refresh)+len(w.codes))
	list = slices.AppendSeq(list, maps.Keys(w.access))
	list = slices.AppendSeq(list, maps.Keys(w.refresh))
	list = slices.AppendSeq(list, maps.Keys(w.codes))
	slices.Sort(list)
	return list
}

func (a *account) presented() []Exchange {
	list := make([]Exchange, 0, len(a.exchanges.entries))
	for _, e := range a.exchanges.list() {
		list = append(list, e.Exchange)
	}
	return list
}

// present opens the record of a call to the token endpoint that names a token of X's.
func (w *world) present(c *call) {
	if c.endpoint != EndpointToken {
		return
	}
	form := c.form()
	// The request's own string would keep its whole header in memory.
	e := &presentation{Exchange: Exchange{At: c.arrived, Host: unique.Make(c.r.Host).Value(), Fault: c.plan.kind(), Open: true}}
	if e.Fault == "" && c.plan.before+c.plan.after > 0 {
		e.Fault = FaultLatency
	}
	g := c.grant
	if t := w.refresh[form.Get("refresh_token")]; t != nil {
		e.Rotation = t.rotation
	} else if code := w.codes[form.Get("code")]; code != nil {
		g, e.Code = code.grant, true
	}
	if g == nil {
		return
	}
	e.Account, e.Family = g.account.ID, g.family
	c.exchange = e
	g.account.presentations++
	e.number = g.account.presentations
	g.account.exchanges.add(e, maxExchanges)
}

// decided notes what X made of the exchange, and left whether its client knows.
func (e *presentation) decided(c *call, a answer) {
	if e == nil {
		return
	}
	e.Status, e.Effect, e.Refused = a.status, c.effect, c.refused
	if e.Fault == FaultLostAnswer {
		e.Status = 0
	}
	c.touch(e)
}

func (e *presentation) left(c *call, answered bool) {
	if e != nil {
		e.Open, e.Answered = false, answered
		c.touch(e)
	}
}
