// Package postgres stores the ledger in PostgreSQL, for any number of machines.
//
// The server's clock alone grants and judges leases, whatever the workers' clocks say.
// Transactions run at READ COMMITTED and take their locks in one order, lane before
// request before posts. They can therefore neither deadlock nor fail to serialise, and
// the package never retries.
//
// It needs PostgreSQL 15 or later. It never listens or notifies, and never holds a
// transaction open while it waits for something other than the database.
package postgres
