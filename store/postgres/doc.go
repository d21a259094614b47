// Package postgres keeps the ledger in PostgreSQL, for any number of machines.
//
// Leases are granted and judged by the server's clock alone, whatever clocks
// the workers have. Transactions run at READ COMMITTED and take their locks in
// one order, lane before request before posts, so that they can neither
// deadlock nor fail to serialise, and nothing is ever retried here.
//
// It needs PostgreSQL 13 or later. It never listens or notifies, and never
// holds a transaction open while something other than the database is asked.
package postgres
