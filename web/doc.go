// Package web holds the pages that jetpost shows to people, as one http.Handler
// to be mounted anywhere. [New] serves the pages of one-time links, with which a
// customer connects an X account without being a user of anything of ours:
// [Site.MakeLink] makes a link. [NewDashboard] serves the operator's dashboard, which
// asks the control service for all that it shows and changes.
//
// Pages are rendered here, whole, from templates and assets in the binary. They
// need no JavaScript, and load nothing from elsewhere; with it those of the dashboard
// follow what happens. What lasts stands in the ledger, so that any number of processes may serve them. The dashboard answers only
// under the names of its own machine, unless it is told of others, and lets everybody in
// unless it is told to ask for a login ([LoginConfig]). Each of its routes needs a role.
//
// The package never talks to X, and it never shows, logs or stores a token, a code, a
// state or a verifier, except a link's own token, which is in the address of its page.
package web
