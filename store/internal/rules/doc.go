// Package rules is what the drivers of the ledger, and they alone, have in common: the
// rules by which requests, lanes, tokens and links move, what the holder of a lane
// remembers, and how long what is stored. A driver locks and loads rows, applies a rule,
// and writes what the rule has changed. So all databases answer alike.
//
// It never talks to a database and reads no clock.
package rules
