package xsim

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	accessTTLDefault  = 2 * time.Hour
	refreshTTLDefault = 180 * 24 * time.Hour

	// DefaultScope is what an account grants unless NewAccount says otherwise.
	DefaultScope = "tweet.read tweet.write users.read media.write offline.access"

	// SubscriptionNone, Basic, Premium and PremiumPlus are X's words. All but None
	// may post long texts.
	SubscriptionNone        = "None"
	SubscriptionBasic       = "Basic"
	SubscriptionPremium     = "Premium"
	SubscriptionPremiumPlus = "PremiumPlus"
)

// NewAccount asks for an account, or for new consent from one that exists.
type NewAccount struct {
	// Handle is 1 to 63 letters, digits, "_" and "-": more than X allows, so that
	// any name will do.
	Handle string `json:"handle"`

	// ID fixes the id of an account that is new; "" makes one. It is for a caller
	// that has outlived the server's memory and knows the account.
	ID string `json:"id,omitempty"`

	// Scope is what the user consents to; "" means DefaultScope. Without
	// offline.access there is no refresh token.
	Scope string `json:"scope,omitempty"`

	// AccessTokenTTL, in seconds, holds for this grant and what it is refreshed
	// to; 0 means the server's.
	AccessTokenTTL int64 `json:"access_token_ttl,omitempty"`

	// AccessToken and RefreshToken fix the values of the first pair.
	AccessToken  string `json:"access_token,omitempty"`
	RefreshToken string `json:"refresh_token,omitempty"`

	// SubscriptionType is one of the Subscription constants; "" leaves it.
	SubscriptionType string `json:"subscription_type,omitempty"`
}

// Grant is the pair that an account's consent gave.
type Grant struct {
	ID           string `json:"id"` // the account's
	Handle       string `json:"handle"`
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token,omitempty"`
	ExpiresIn    int64  `json:"expires_in"` // seconds
	Scope        string `json:"scope"`
}

// Token is the pair in force, which a checker compares with what a client stored.
type Token struct {
	AccessToken  string    `json:"access_token"`
	RefreshToken string    `json:"refresh_token"`
	ExpiresAt    time.Time `json:"expires_at"`
	Scope        string    `json:"scope"`
	Revoked      bool      `json:"revoked"`   // neither works any more
	Refreshes    int       `json:"refreshes"` // rotations since consent
}

// Account is a user of X.
type Account struct {
	ID               string    `json:"id"`
	Handle           string    `json:"handle"`
	CreatedAt        time.Time `json:"created_at"`
	SubscriptionType string    `json:"subscription_type"`
	State            string    `json:"state,omitempty"` // one of the Account constants
}

type account struct {
	Account
	posts  []*post
	texts  map[string]time.Time // when each text was last posted, for the duplicate filter
	places map[[32]byte]*post   // the account's existing posts by place, for the call log
	grant  *grant               // the one in force
	grants map[int]*grant       // all consents, by family

	families      int // consents so far
	presentations int // exchanges so far
	exchanges     ring[*presentation]
}

// grant is one consent: a family of pairs of which one is in force.
type grant struct {
	account   *account
	family    int // the account's nth consent
	scope     string
	ttl       time.Duration
	dead      bool
	access    string
	refresh   string
	expires   time.Time
	refreshes int
}

type accessToken struct {
	value   string
	grant   *grant
	expires time.Time
	revoked bool
}

type refreshToken struct {
	value    string
	grant    *grant
	rotation int // of its family, 0 for the first
	expires  time.Time
	used     bool
	answered bool  // the client has the successor
	by       *call // the exchange, while it is under way
}

// AddAccount adds an account and consents in its name. If the handle exists,
// the account consents again, which ends its earlier pairs, as a new login does.
func (s *Server) AddAccount(n NewAccount) (Grant, error) {
	if err := n.validate(); err != nil {
		return Grant{}, err
	}
	w := s.lock()
	defer s.unlock()
	if w.access[n.AccessToken] != nil || w.refresh[n.RefreshToken] != nil {
		return Grant{}, errors.New("the access_token or refresh_token was given out before")
	}
	a := w.handles[strings.ToLower(n.Handle)]
	if n.ID != "" && w.accounts[n.ID] != a {
		return Grant{}, fmt.Errorf("id %s and handle %q belong to different accounts", n.ID, n.Handle)
	}
	if a == nil {
		a = &account{
			Account: Account{ID: cmp.Or(n.ID, s.nextID()), Handle: n.Handle, CreatedAt: s.now(), SubscriptionType: SubscriptionNone},
			texts:   map[string]time.Time{},
			places:  map[[32]byte]*post{},
			grants:  map[int]*grant{},
		}
		w.accounts[a.ID], w.handles[strings.ToLower(n.Handle)] = a, a
		w.order = append(w.order, a)
	}
	if n.SubscriptionType != "" {
		a.SubscriptionType = n.SubscriptionType
	}
	g := s.newGrant(a, n.Scope, time.Duration(n.AccessTokenTTL)*time.Second)
	s.enforce(g)
	s.issue(g, n.AccessToken, n.RefreshToken)
	return Grant{a.ID, a.Handle, g.access, g.refresh, int64(g.ttl / time.Second), g.scope}, nil
}

func (n NewAccount) validate() error {
	var errs []error
	if !regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}$`).MatchString(n.Handle) {
		errs = append(errs, fmt.Errorf("handle %q: want 1 to 63 letters, digits, _ and -", n.Handle))
	}
	if n.ID != "" && !regexp.MustCompile(`^[0-9]{1,19}$`).MatchString(n.ID) {
		errs = append(errs, fmt.Errorf("id %q: want 1 to 19 digits", n.ID))
	}
	if n.AccessTokenTTL < 0 {
		errs = append(errs, errors.New("access_token_ttl cannot be negative"))
	}
	if n.SubscriptionType != "" && !isSubscription(n.SubscriptionType) {
		errs = append(errs, fmt.Errorf("unknown subscription_type %q", n.SubscriptionType))
	}
	return errors.Join(errs...)
}

// Accounts returns all accounts in order of creation.
func (s *Server) Accounts() []Account {
	w := s.lock()
	defer s.unlock()
	list := make([]Account, 0, len(w.order))
	for _, a := range w.order {
		list = append(list, a.Account)
	}
	return list
}

// CurrentToken returns the pair in force of the user, named by id or handle;
// false if there is no such user.
func (s *Server) CurrentToken(user string) (Token, bool) {
	w := s.lock()
	defer s.unlock()
	a := w.user(user)
	if a == nil {
		return Token{}, false
	}
	g := a.grant
	return Token{g.access, g.refresh, g.expires, g.scope, g.dead, g.refreshes}, true
}

// RevokeConsent ends every token of the user, as the user can in X's settings;
// false if there is no such user.
func (s *Server) RevokeConsent(user string) bool {
	w := s.lock()
	defer s.unlock()
	a := w.user(user)
	if a == nil {
		return false
	}
	a.grant.dead = true
	w.touch(a.grant)
	return true
}

func (w *world) user(name string) *account {
	if a := w.accounts[name]; a != nil {
		return a
	}
	return w.handles[strings.ToLower(name)]
}

func (s *Server) newGrant(a *account, scope string, ttl time.Duration) *grant {
	if scope == "" {
		scope = DefaultScope
	}
	if ttl == 0 {
		ttl = cmp.Or(s.AccessTokenTTL, accessTTLDefault)
	}
	a.families++
	g := &grant{account: a, family: a.families, scope: scope, ttl: ttl}
	a.grants[g.family] = g
	s.w.touch(a, g)
	return g
}

// enforce puts the grant in place of the account's earlier one.
func (s *Server) enforce(g *grant) {
	if old := g.account.grant; old != nil {
		old.dead = true
		s.w.touch(old)
	}
	g.account.grant = g
	s.w.touch(g.account)
}

// issue gives the family its next pair; empty values are made up.
func (s *Server) issue(g *grant, access, refresh string) {
	now := s.now()
	if access == "" {
		access = s.secret("access", g)
	}
	g.access, g.expires = access, now.Add(g.ttl)
	s.w.access[access] = &accessToken{value: access, grant: g, expires: g.expires}
	s.w.touch(g, s.w.access[access])
	if !g.allows([]string{"offline.access"}) {
		return
	}
	if refresh == "" {
		refresh = s.secret("refresh", g)
	}
	g.refresh = refresh
	s.w.refresh[refresh] = &refreshToken{value: refresh, grant: g, rotation: g.refreshes, expires: now.Add(cmp.Or(s.RefreshTokenTTL, refreshTTLDefault))}
	s.w.touch(s.w.refresh[refresh])
}

func (s *Server) secret(kind string, g *grant) string {
	return fmt.Sprintf("xsim-%s-%s-%016x%016x", kind, g.account.ID, s.rand.Uint64(), s.rand.Uint64())
}

func (g *grant) allows(scopes []string) bool {
	granted := strings.Fields(g.scope)
	for _, scope := range scopes {
		if !slices.Contains(granted, scope) {
			return false
		}
	}
	return true
}

// identify finds the account behind the call's token, if the token is good. On the
// app's own endpoints a token or code names its account even when it is refused, so
// that faults and the call log can use it.
func (s *Server) identify(c *call) {
	c.account, c.grant = nil, nil
	if c.endpoint == EndpointToken || c.endpoint == EndpointRevoke {
		if g := s.w.grantOf(c.form()); g != nil {
			c.account, c.grant = g.account, g
		}
		return
	}
	value, ok := strings.CutPrefix(c.r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return
	}
	if t := s.w.access[value]; t != nil && !t.revoked && !t.grant.dead && s.now().Before(t.expires) {
		c.account, c.grant = t.grant.account, t.grant
	}
}

// grantOf finds the grant whose token or code is in a form, nil for none.
func (w *world) grantOf(form url.Values) *grant {
	for _, name := range []string{"refresh_token", "token"} {
		if t := w.refresh[form.Get(name)]; t != nil {
			return t.grant
		}
	}
	if t := w.access[form.Get("token")]; t != nil {
		return t.grant
	}
	if code := w.codes[form.Get("code")]; code != nil {
		return code.grant
	}
	return nil
}

func (s *Server) badGrant(c *call, description string) answer {
	s.violate(c, ViolationMalformedRequest, c.endpoint+": "+description)
	return oauthRefusal(http.StatusBadRequest, "invalid_request", description)
}

// token serves both grants.
func (s *Server) token(c *call) answer {
	form, refused, ok := s.clientForm(c)
	if !ok {
		return refused
	}
	switch form.Get("grant_type") {
	case "refresh_token":
		return s.rotate(c, form.Get("refresh_token"))
	case "authorization_code":
		return s.exchangeCode(c, form)
	case "":
		return s.badGrant(c, "Missing required parameter [grant_type].")
	}
	s.violate(c, ViolationMalformedRequest, c.endpoint+": unsupported grant_type")
	return oauthRefusal(http.StatusBadRequest, "unsupported_grant_type", "The grant type is not supported.")
}

const formType = "application/x-www-form-urlencoded"

func (c *call) contentType() string {
	kind, _, _ := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	return kind
}

// form is the body as a form, of which some clients send the like in JSON; nil where
// it is neither.
func (c *call) form() url.Values {
	if c.contentType() != "application/json" {
		form, err := url.ParseQuery(string(c.body))
		if err != nil {
			return nil
		}
		return form
	}
	var members map[string]string
	if json.Unmarshal(c.body, &members) != nil {
		return nil
	}
	form := url.Values{}
	for name, value := range members {
		form.Set(name, value)
	}
	return form
}

// clientForm reads the form and checks the client behind it.
func (s *Server) clientForm(c *call) (url.Values, answer, bool) {
	form := c.form()
	if kind := c.contentType(); form == nil || kind != formType && (kind != "application/json" || !s.lenient(c, "a body in JSON instead of a form")) {
		return nil, s.badGrant(c, "The body must be application/x-www-form-urlencoded."), false
	}
	if s.ClientSecret != "" {
		id, secret, ok := c.r.BasicAuth()
		id, errID := url.QueryUnescape(id) // RFC 6749 2.3.1: both are form-encoded first.
		secret, errSecret := url.QueryUnescape(secret)
		if !ok || errID != nil || errSecret != nil || id != s.ClientID || secret != s.ClientSecret {
			return nil, missingBasic(), false
		}
		return form, answer{}, true
	}
	if s.ClientID != "" && form.Get("client_id") != s.ClientID {
		return nil, oauthRefusal(http.StatusBadRequest, "invalid_request", "Missing required parameter [client_id]."), false
	}
	return form, answer{}, true
}

// rotate trades a refresh token for the next pair.
func (s *Server) rotate(c *call, value string) answer {
	t := s.w.refresh[value]
	if t == nil {
		return c.refuse(invalidToken())
	}
	if t.used {
		if t.answered || t.by != nil && t.by.r.Context().Err() == nil {
			s.violate(c, ViolationRefreshTokenReused, fmt.Sprintf("a refresh token of %s came again while or after its successor was delivered", t.grant.account.Handle))
		}
		if !s.KeepFamilyOnReplay {
			t.grant.dead = true
			s.w.touch(t.grant)
		}
		return c.refuse(invalidToken())
	}
	if t.grant.dead || !c.now.Before(t.expires) {
		return c.refuse(invalidToken())
	}
	t.used, t.by, c.effect = true, c, true
	c.spent = t
	s.w.touch(t)
	if old := s.w.access[t.grant.access]; s.RevokeAccessOnRefresh && old != nil {
		old.revoked = true
		s.w.touch(old)
	}
	t.grant.refreshes++
	s.issue(t.grant, "", "")
	return pairAnswer(t.grant)
}

// refuse notes that the token or code is at fault, not the way in which it was presented.
func (c *call) refuse(a answer) answer {
	c.refused = true
	return a
}

func pairAnswer(g *grant) answer {
	return jsonAnswer(http.StatusOK, struct {
		TokenType    string `json:"token_type"`
		ExpiresIn    int64  `json:"expires_in"`
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token,omitempty"`
		Scope        string `json:"scope"`
	}{"bearer", int64(g.ttl / time.Second), g.access, g.refresh, g.scope})
}

// revoke ends an access token, or with a refresh token its whole family.
func (s *Server) revoke(c *call) answer {
	form, refused, ok := s.clientForm(c)
	if !ok {
		return refused
	}
	value := form.Get("token")
	if value == "" {
		return s.badGrant(c, "Missing required parameter [token].")
	}
	if t := s.w.access[value]; t != nil {
		t.revoked, c.effect = true, true
		s.w.touch(t)
	}
	if t := s.w.refresh[value]; t != nil {
		t.grant.dead, c.effect = true, true
		s.w.touch(t.grant)
	}
	return jsonAnswer(http.StatusOK, map[string]bool{"revoked": true})
}
