// Package store is the ledger: accounts, their sealed tokens, lanes, requests, posts
// and refresh rounds. The ledger alone says what must happen and what has happened.
// Every message is only a hint to read it.
//
// [Store] is the union of the interfaces by role: [Intake] accepts jobs, [Lanes] is for
// the holder of a lane, [Control] is what people change, [Queries] reads, [Outbox] lists
// what is not published yet, [Tokens] stores the tokens. The package also holds the
// types, the [Sealer] and the [Lifeboat]. store/postgres serves many machines, store/sqlite
// one. Both apply the rules of store/internal/rules, by which a request moves, and both must
// pass one suite, store/internal/storetest.
//
// It never talks to NATS or to X, and it never decides what to do next. It stores what
// a worker reports if, and only if, the worker still holds the lane or the token that
// the fact belongs to.
package store
