// Package store is the ledger: accounts, their sealed tokens, lanes, requests,
// posts and refresh rounds. What must happen and what has happened is true
// here and nowhere else; every message is only a hint to look.
//
// The package holds the types, the interfaces by role, the [Sealer], and the
// rules by which a request moves, which are the same for every database.
// store/postgres serves many machines, store/sqlite one; store/storetest is
// the suite that both must pass.
//
// It never talks to NATS or to X, and it never takes a decision about what to
// do next: it keeps what it is told if, and only if, the teller still holds
// the lane or the token that the fact belongs to.
package store
