// Command bench measures jetpost against the floor (the least that any program
// with the same guarantees has to do) and against what else a Go program would
// use: River, Asynq and DBOS Transact. It writes docs/BENCHMARKS.md and its plots.
//
// It is a module of its own, so that its peers' libraries never become jetpost's. It
// drives jetpost as its users do: as a process, over NATS subjects and the command
// line, never through a package of jetpost. It can therefore measure any revision.
//
// It never asserts how long something took. What it holds by tests are counts.
package main
