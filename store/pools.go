package store

import "time"

// Pool is a pool of connections to the database, as it stands.
type Pool struct {
	Name        string // tells it from the other pools of the store
	InUse, Idle int    // connections
	Max         int    // connections
	// Waits counts the calls that found no idle connection, and Waited is how long they
	// waited in all.
	Waits  int64
	Waited time.Duration
}
