package store

// SchemaError says that a database's schema does not fit this program.
type SchemaError struct {
	Database string // what was opened, without any password
	Found    int64  // the schema's version; 0 where there is none
	Want     int64  // the version that this program was built for
}

func (e *SchemaError) Error() string {
	switch {
	case e.Found == 0:
		return "database " + e.Database + " has no schema yet"
	case e.Found > e.Want:
		return "the schema of database " + e.Database + " is newer than this program"
	default:
		return "the schema of database " + e.Database + " is older than this program"
	}
}

// Hint tells the operator what to do.
func (e *SchemaError) Hint() string {
	if e.Found > e.Want {
		return "run the newer jetpost that migrated it"
	}
	return "run jetpost setup"
}
