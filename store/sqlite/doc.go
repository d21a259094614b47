// Package sqlite stores the ledger in one SQLite file: the embedded database, for one
// machine.
//
// One connection writes, in immediate transactions: a transaction that read first and
// wrote later would fail whenever another process wrote in between. Readers have
// connections of their own and never wait for it. Every commit is synced to the disk
// before it is acknowledged.
//
// The time that the caller passes judges leases. All workers on a file share the
// machine, so they share its clock. The file must not be on a network disk.
package sqlite
