// Package sqlite keeps the ledger in one SQLite file: the embedded database,
// for one machine.
//
// One connection writes, in transactions that are immediate: a transaction
// that read first and wrote later would fail whenever somebody else wrote in
// between. Readers have connections of their own and never wait for it. Every
// commit is synced to the disk before it is acknowledged.
//
// It judges leases by the time that the caller passes. All workers on a file
// share the machine, so they share its clock. It never serves a file on a
// network disk.
package sqlite
