package main

import (
	"context"
	"fmt"
	"io"

	"github.com/jetpost/jetpost/internal/app"
)

// resumeCmd is 'jetpost resume'.
type resumeCmd struct {
	App bool `required:"" help:"End the stops of the whole app: X was topped up, its cap raised, its settings corrected."`
}

// Run ends the stops, and says which there were.
func (c *resumeCmd) Run(e *env) error {
	return e.withDesk(func(ctx context.Context, desk *app.Desk) error {
		ended, err := desk.Resume(ctx)
		if err != nil {
			return err
		}
		return e.show(ended, func(w io.Writer) {
			for _, stop := range ended {
				fmt.Fprintf(w, "resumed %s, which was stopped: %s\n", stop.Scope, reasonText(&stop.Reason))
			}
			if len(ended) == 0 {
				fmt.Fprintln(w, "nothing was stopped")
			}
		})
	})
}
