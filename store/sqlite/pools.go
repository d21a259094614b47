package sqlite

import (
	"database/sql"

	"github.com/jetpost/jetpost/store"
)

// Pools implements store.Upkeep: one writes, and one reads.
func (s *Store) Pools() []store.Pool {
	pool := func(name string, db *sql.DB) store.Pool {
		stats := db.Stats()
		return store.Pool{
			Name: name, InUse: stats.InUse, Idle: stats.Idle, Max: stats.MaxOpenConnections,
			Waits: stats.WaitCount, Waited: stats.WaitDuration,
		}
	}
	return []store.Pool{pool("write", s.write), pool("read", s.read)}
}
