package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
)

// days is a duration that may begin with days: 90d.
type days time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *days) UnmarshalText(text []byte) error {
	read, err := duration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no duration like 90d or 2160h, nor 0", text)
	}
	*d = days(read)
	return nil
}

// keepFlag says how long finished requests are kept.
type keepFlag struct {
	KeepFinished days `default:"90d" placeholder:"DURATION" help:"Keep finished requests whole for so long; then all but their ids goes, and media objects that no request needs (${default}; 7d at least; 0 keeps all)."`
}

// pruneCmd is 'jetpost prune'.
type pruneCmd struct {
	keepFlag  `embed:""`
	DryRun    bool `env:"-" help:"Remove nothing; count what would be."`
	natsFlags `embed:""`
}

// Run prunes once and says what went.
func (c *pruneCmd) Run(e *env) error {
	keep := time.Duration(c.KeepFinished)
	if keep == 0 {
		return mistakes("cannot prune", "--keep-finished: 0 keeps everything; say for how long to keep")
	}
	return e.operate(func(ctx context.Context, workers operations) error {
		var report jetpost.Pruned
		for {
			more, err := workers.AppPrune(ctx, jetpost.AppPrune{Keep: keep.String(), DryRun: c.DryRun})
			if failedAs(err, jetpost.ErrInvalid) {
				return mistakes("cannot prune", strings.Replace(err.Error(), "keep:", "--keep-finished:", 1))
			}
			if err != nil {
				return err
			}
			more.Requests += report.Requests
			if report = more; !report.More || c.DryRun {
				return e.show(report, pruneText(report))
			}
			fmt.Fprintf(e.stderr, "pruned %s so far\n", counted(report.Requests, "finished request", "finished requests"))
		}
	})
}

// prunedText is what is left of a request.
func prunedText(s jetpost.RequestStatus) string {
	return align([]string{
		"request:\t" + s.ID, "account:\t" + s.Account, "state:\t" + string(s.State),
		"pruned:\tonly its id and its state are kept: an equal message posts nothing, and it cannot be replayed",
		"accepted:\t" + localTime(s.AcceptedAt), "changed:\t" + localTime(s.UpdatedAt),
	})
}

func pruneText(r jetpost.Pruned) string {
	verb := "pruned"
	switch {
	case r.DryRun && r.More:
		verb = "would prune at least"
	case r.DryRun:
		verb = "would prune"
	}
	text := fmt.Sprintf("%s %s and %s, %d MiB\n", verb, counted(r.Requests, "finished request", "finished requests"), counted(r.Objects, "media object", "media objects"), r.Bytes>>20)
	if r.MediaKept != "" {
		text += "media was left alone: " + r.MediaKept + "\n"
	}
	return text
}
