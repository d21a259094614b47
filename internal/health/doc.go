// Package health judges an installation: facts in, one verdict out. It judges progress,
// not settings: how long the oldest job waits, when something was last posted, which
// workers have given a heartbeat.
//
// It makes no calls: the caller has gathered the facts.
package health
