package app

import (
	"context"
	"fmt"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
)

// Resume ends every stop of the app before its time, and the waits of those
// that it held. It returns the stops that were in force.
func (d *Desk) Resume(ctx context.Context) ([]publishers.Stop, error) {
	stops := publishers.NewStops(d.Conn.JS, d.Conn.Names)
	var ended []publishers.Stop
	for _, scope := range []string{publishers.ScopePublish, publishers.ScopeRefresh, publishers.ScopeMedia} {
		stop, ok, err := stops.Get(ctx, scope)
		if err != nil {
			return ended, err
		}
		if !ok {
			continue
		}
		if err := stops.Clear(ctx, scope); err != nil {
			return ended, err
		}
		if stop.Active(time.Now()) {
			ended = append(ended, stop)
		}
	}
	accounts, err := d.Ledger.Accounts(ctx)
	if err != nil {
		return ended, databaseError(err)
	}
	for _, account := range accounts {
		held, err := d.Ledger.EndHolds(ctx, account.Name, jetpost.CodeAppStopped, time.Now())
		if err != nil {
			return ended, databaseError(err)
		}
		if held == 0 {
			continue
		}
		if err := d.Bells.Ring(ctx, account.Name); err != nil {
			return ended, fmt.Errorf("ring lane of %s: %w", account.Name, err)
		}
	}
	return ended, nil
}
