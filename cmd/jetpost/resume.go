package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jetpost/jetpost/internal/app"
)

// resumeCmd is 'jetpost resume'.
type resumeCmd struct {
	App          bool `required:"" help:"End the stops of the whole app: X was topped up, its cap raised, its settings corrected."`
	connectFlags `embed:""`
}

// Run ends the stops, and says which there were.
func (c *resumeCmd) Run(e *env) error {
	return e.withDesk(func(ctx context.Context, desk *app.Desk) error {
		ended, err := desk.Resume(ctx)
		if err != nil {
			return err
		}
		var text strings.Builder
		for _, stop := range ended {
			fmt.Fprintf(&text, "resumed %s, which was stopped: %s\n", stop.Scope, reasonText(&stop.Reason))
		}
		if len(ended) == 0 {
			text.WriteString("nothing was stopped\n")
		}
		return e.show(ended, text.String())
	})
}
