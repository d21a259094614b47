package rules

import (
	"time"

	"github.com/jetpost/jetpost/store"
)

// ProgressRefusals is how far back a Progress counts refused messages.
const ProgressRefusals = time.Hour

// defaultListLimit is how many requests a filter without a limit lets through.
const defaultListLimit = 100

// ListLimit is how many requests a filter lets through.
func ListLimit(f store.Filter) int {
	if f.Limit <= 0 {
		return defaultListLimit
	}
	return f.Limit
}

// Stand adds an account that may post nothing. paused says whether its pause holds.
func Stand(p *store.Progress, one store.Standing, paused bool) {
	if !paused {
		one.Pause = store.Pause{}
	}
	if one.Reauth || paused {
		p.Standing = append(p.Standing, one)
	}
}
