package store

// DesiredOldestSchema names the entry of the desired state that says for which schema the
// oldest worker that goes on must be built. A worker that is older ends.
const DesiredOldestSchema = "oldest_schema"

// Upgrade is what migrations would do to workers that run.
type Upgrade struct {
	From int64 // the version of the present schema; 0 if there is none
	// Oldest is the schema for which the oldest worker that goes on is built.
	Oldest int64
}

// Stops reports whether the upgrade stops workers that are built for a schema.
func (u Upgrade) Stops(schema int64) bool {
	return u.From > 0 && u.From < u.Oldest && schema < u.Oldest
}
