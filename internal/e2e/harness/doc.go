// Package harness runs jetpost as people do, as processes on real servers, for system tests
// and for the chaos program. X is simulated in the process that starts the others. It knows
// what every correct program leaves at X and in the ledger; it never looks into a process.
package harness
