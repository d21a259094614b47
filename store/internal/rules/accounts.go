package rules

import "github.com/jetpost/jetpost/store"

// Whole is what decides whether an account can be renamed or removed.
type Whole struct {
	Busy       bool // a worker works on it, or something of it is not told yet
	Unfinished bool
	Reauth     bool // it is not connected
	Requests   int  // pruned ones included, counted to store.MaxMoved + 1
}

// Check returns why the account cannot be renamed, or nil.
func (w Whole) Check() error {
	switch {
	case w.Unfinished:
		return store.ErrUnfinished
	case w.Busy:
		return store.ErrAccountBusy
	case w.Requests > store.MaxMoved:
		return store.ErrManyRequests
	}
	return nil
}

// CheckRemoval returns why the account cannot be removed, or nil.
func (w Whole) CheckRemoval() error {
	if !w.Reauth {
		return store.ErrConnected
	}
	return w.Check()
}
