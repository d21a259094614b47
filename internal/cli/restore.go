package cli

import (
	"fmt"
	"strings"

	"github.com/jetpost/jetpost/internal/app"
)

// restoredText says what a restored database has and lacks.
func restoredText(r app.RestoreReport) string {
	var b strings.Builder
	fmt.Fprintf(&b, "restored from %s: events told of %s: %d changed, %d added, %d known\n",
		localTime(r.Since), counted(r.Updated+r.Added+r.Known+len(r.BodyLost), "request", "requests"), r.Updated, r.Added, r.Known)
	fmt.Fprintf(&b, "%s: X is asked for their posts before anything of them is sent\n", counted(r.InDoubt, "unfinished request may have been sent", "unfinished requests may have been sent"))
	if !r.EventsFrom.IsZero() {
		fmt.Fprintf(&b, "NATS has no events before %s: what was accepted and settled until then is not known\n", localTime(r.EventsFrom))
	}
	lostList(&b, "accepted since, and their bodies are lost: have their producers send them again under their ids", r.BodyLost)
	lostList(&b, "could not be rebuilt", r.NotRebuilt)
	if len(r.TokensLost) > 0 {
		fmt.Fprintf(&b, "%s may be spent, %d exchanges were told: X refuses those that are, and jetpost status names the accounts to connect again\n  %s\n",
			counted(len(r.TokensLost), "account's token", "accounts' tokens"), r.Exchanged, strings.Join(r.TokensLost, ", "))
	}
	return b.String()
}

func lostList(b *strings.Builder, what string, list []app.LostRequest) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(b, "%s %s\n", counted(len(list), "request,", "requests,"), what)
	for _, l := range list {
		fmt.Fprintf(b, "  %s  %s  was %s, %d of %d posts live  %s\n", l.Account, l.ID, l.State, l.Posted, l.Total, l.Why)
	}
}
