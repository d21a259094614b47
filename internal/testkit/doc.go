// Package testkit is what the tests of several packages share: what a helper asks of a
// test, how a test waits for a fact, and how it compares. It knows nothing of jetpost, and
// it does not link package testing: the chaos program uses it, too.
package testkit
