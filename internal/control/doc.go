// Package control carries out what people and programs ask for: it looks at requests,
// accounts and the whole installation, and changes them. The ledger decides each time;
// the wake-up and the event that follow are hints, which the sweeper makes good should
// they fail.
//
// Each operation of the contract has one method of Control. The workers' service calls it
// for whoever asks over NATS, and the command line where it has the database at hand.
package control
