// Package health judges an installation: facts in, one verdict out. What is judged is
// progress, not settings: how long the oldest job waits, when something was posted
// last, who has given a sign of life.
//
// It never asks anybody: whoever calls it has gathered the facts.
package health
