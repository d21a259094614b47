package store

import "errors"

// SchemaError says that a database's schema does not fit this program.
type SchemaError struct {
	Database string // what was opened, without any password
	Found    int64  // the schema's version; 0 if there is none
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

// UnavailableError says that a database did not answer in time, could not be reached,
// or accepts no writes now. The call may have taken effect nevertheless, or may take
// effect later. Every write of this package can be repeated.
type UnavailableError struct {
	Database string // which one, without any password
	Err      error
}

func (e *UnavailableError) Error() string {
	return "database " + e.Database + " does not answer: " + e.Err.Error()
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// Unavailable reports whether err says that a database does not answer.
func Unavailable(err error) bool { return errors.As(err, new(*UnavailableError)) }
