package postgres

import "github.com/jetpost/jetpost/store"

// Pools implements store.Upkeep: there is one.
func (s *Store) Pools() []store.Pool {
	stat := s.pool.Stat()
	return []store.Pool{{
		Name: "all", InUse: int(stat.AcquiredConns()), Idle: int(stat.IdleConns()), Max: int(stat.MaxConns()),
		Waits: stat.EmptyAcquireCount(), Waited: stat.EmptyAcquireWaitTime(),
	}}
}
