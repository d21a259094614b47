// Package health judges an installation: facts in, one verdict out. What is judged is
// progress, not settings: how long the oldest job waits, when something was posted
// last, who has given a heartbeat.
//
// It never asks anybody: whoever calls it has gathered the facts.
package health
