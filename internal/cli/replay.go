package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/store"
)

// replayCmd is 'jetpost replay'.
type replayCmd struct {
	IDs []string `arg:"" optional:"" name:"id" help:"Ids of failed or refused requests; or use --account, --code, --since or --all."`
	accountFlag
	Code      string `env:"-" placeholder:"CODE" help:"All that failed or were refused with this reason code; 'jetpost requests list --help' lists them."`
	Since     string `env:"-" placeholder:"TIME" help:"All that failed or were refused since a time like 2026-12-01T09:00:00Z, or within a duration like 24h."`
	All       bool   `env:"-" help:"All that failed or were refused."`
	DryRun    bool   `env:"-" help:"Change nothing, and show what will be sent."`
	natsFlags `embed:""`
}

// Run replays failed and refused requests, and prints the result for each.
func (c *replayCmd) Run(e *env) error {
	query, err := c.query(time.Now())
	if err != nil {
		return err
	}
	return e.operate(func(ctx context.Context, workers operations) error {
		answer, err := workers.RequestReplay(ctx, c.Account, query)
		done := answer.Replayed
		if len(done) > 0 {
			if err := list(e, done, "ACCOUNT\tID\tRESULT", replayRow); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		return nothingFor(query.IDs, done)
	})
}

// nothingFor is an error that names the unknown ids.
func nothingFor(ids []string, done []app.Replayed) error {
	missing := slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
		return slices.ContainsFunc(done, func(r app.Replayed) bool { return r.ID == id })
	})
	switch {
	case len(missing) > 0:
		return fmt.Errorf("nothing to replay for %s: %w", strings.Join(missing, ", "), store.ErrNotFound)
	case len(done) == 0:
		return fmt.Errorf("nothing to replay: %w", store.ErrNotFound)
	default:
		return nil
	}
}

func (c *replayCmd) query(now time.Time) (jetpost.RequestReplay, error) {
	var wrong []string
	filtered := c.Code != "" || c.Since != ""
	switch {
	case len(c.IDs) > 0 && (filtered || c.All):
		wrong = append(wrong, "give either ids, or --code, --since or --all")
	case len(c.IDs) == 0 && !filtered && c.Account == "" && !c.All:
		wrong = append(wrong, "give ids, or --account, --code or --since, or --all for everything that failed")
	}
	code, err := reasonCode(c.Code)
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	since, err := moment(c.Since, true, now)
	if err != nil {
		wrong = append(wrong, "--since: "+err.Error())
	}
	query := jetpost.RequestReplay{IDs: c.IDs, Code: code, Since: since, All: c.All, DryRun: c.DryRun}
	return query, mistakes("cannot replay", wrong...)
}

func replayRow(r app.Replayed) string {
	result := r.Detail
	switch r.Action {
	case jetpost.ReplayQueued:
		result = "queued: " + r.Detail
	case jetpost.ReplayRepublished:
		result = "sent to the queue again: " + r.Detail
	}
	if r.DryRun && r.Action != jetpost.ReplayNothing {
		result = "would be " + result
	}
	return fmt.Sprintf("%s\t%s\t%s", dash(r.Account), dash(r.ID), result)
}
