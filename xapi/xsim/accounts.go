package xsim

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// The states of an account beside the ordinary one, "".
const (
	// AccountSuspended: X answers every call with the account's tokens with a 403 of
	// type user-suspended. Its tokens can still be refreshed.
	AccountSuspended = "suspended"
	// AccountLocked: the same with code 326, until its owner has unlocked it.
	AccountLocked = "locked"
	// AccountProtected: others see neither its posts nor that they exist.
	AccountProtected = "protected"
)

// AccountChange changes what X makes of an account; nil leaves a member as it is.
type AccountChange struct {
	State *string `json:"state,omitempty"` // one of the Account constants, or ""
	// Scope replaces the scope of the grant in force, tokens given out included. Naming
	// fewer drops some, as a login before the app asked for more had it.
	Scope            *string `json:"scope,omitempty"`
	SubscriptionType *string `json:"subscription_type,omitempty"`
}

// ChangeAccount changes an account, named by id or handle. The error lists every
// mistake; then nothing has changed.
func (s *Server) ChangeAccount(user string, change AccountChange) (Account, error) {
	w := s.lock()
	defer s.unlock()
	a := w.user(user)
	if a == nil {
		return Account{}, fmt.Errorf("no such user: %q", user)
	}
	if err := change.validate(); err != nil {
		return Account{}, err
	}
	if change.State != nil {
		a.State = *change.State
	}
	if change.SubscriptionType != nil {
		a.SubscriptionType = *change.SubscriptionType
	}
	if change.Scope != nil {
		a.grant.scope = *change.Scope
	}
	w.touch(a, a.grant)
	return a.Account, nil
}

func (c AccountChange) validate() error {
	var errs []error
	if c.State != nil && !isState(*c.State) {
		errs = append(errs, fmt.Errorf("unknown state %q", *c.State))
	}
	if c.SubscriptionType != nil && !isSubscription(*c.SubscriptionType) {
		errs = append(errs, fmt.Errorf("unknown subscription_type %q", *c.SubscriptionType))
	}
	if c.Scope != nil {
		if unknown := unknownScopes(*c.Scope); len(unknown) > 0 {
			errs = append(errs, fmt.Errorf("unknown scopes: %s", strings.Join(unknown, " ")))
		}
	}
	return errors.Join(errs...)
}

func isState(state string) bool {
	switch state {
	case "", AccountSuspended, AccountLocked, AccountProtected:
		return true
	}
	return false
}

func isSubscription(name string) bool {
	switch name {
	case SubscriptionNone, SubscriptionBasic, SubscriptionPremium, SubscriptionPremiumPlus:
		return true
	}
	return false
}

// barred is X's answer to an account that may do nothing, if this is one.
func (a *account) barred() (answer, bool) {
	switch a.State {
	case AccountSuspended:
		return problemAnswer(http.StatusForbidden, "user-suspended"), true
	case AccountLocked:
		return problemAnswer(http.StatusForbidden, "locked"), true
	}
	return answer{}, false
}

// hides reports whether the account hides its posts from another one.
func (a *account) hides(from *account) bool { return a.State == AccountProtected && a != from }
