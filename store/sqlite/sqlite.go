package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/pressly/goose/v3"
	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	// schemaVersion is the version of the newest migration.
	schemaVersion = 18
	// callTimeout bounds each call, from the wait for a connection on: a worker whose
	// database does not answer has to notice and give back what it holds within 10 s.
	// Only a disk that does not answer the kernel is waited for beyond that.
	callTimeout = 5 * time.Second
	// reportTimeout bounds a call that reads much, for a person who waits for it.
	reportTimeout = time.Minute
	// busyTimeoutMillis is how long a statement waits for a lock that another process
	// holds. It is less than callTimeout, so that SQLite reports why.
	busyTimeoutMillis = 4_000
	maxReaders        = 4 // connections of the read pool
	// desiredSince is the migration since which the table desired has its name.
	desiredSince = 9
)

// SchemaVersion is the version of the schema for which this program is built.
const SchemaVersion int64 = schemaVersion

//go:embed migrations/*.sql
var migrations embed.FS

// Store is a ledger in a SQLite file. It is safe for concurrent use, also by
// several processes on the same machine.
type Store struct {
	path   string
	sealer *store.Sealer
	write  *sql.DB // one connection, immediate transactions
	read   *sql.DB // query-only
	tx     *sql.Tx // whose part everything is; nil outside of an operation
	group  *group
}

var _ store.Store = (*Store)(nil)

// Open opens a ledger that Migrate has prepared. It fails with *store.SchemaError if
// the schema is missing, older or newer.
func Open(ctx context.Context, path string, sealer *store.Sealer) (*Store, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, &store.SchemaError{Database: path, Want: schemaVersion}
	}
	write, err := open(path, "rw")
	if err != nil {
		return nil, err
	}
	if err := checkSchema(ctx, write, path); err != nil {
		return nil, errors.Join(err, write.Close())
	}
	read, err := open(path, "rw", "query_only(1)")
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	read.SetMaxOpenConns(maxReaders)
	read.SetMaxIdleConns(maxReaders)
	return &Store{group: &group{}, path: path, sealer: sealer, write: write, read: read}, nil
}

// open makes a pool of one connection. It creates the file only in mode rwc.
func open(path, mode string, pragmas ...string) (*sql.DB, error) {
	query := url.Values{"mode": {mode}, "_pragma": append([]string{
		fmt.Sprintf("busy_timeout(%d)", busyTimeoutMillis),
		"journal_mode(WAL)",
		"synchronous(FULL)",
		"foreign_keys(1)",
		"secure_delete(1)", // what is deleted is overwritten, so that an erased account is
	}, pragmas...)}
	if len(pragmas) == 0 {
		query.Set("_txlock", "immediate")
	}
	// Escaping the path keeps a question mark in it from starting the query.
	connector, err := newConnector("file:" + url.PathEscape(path) + "?" + query.Encode())
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(1)
	return db, nil
}

const (
	sqlHasVersions = `SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'goose_db_version'`
	sqlVersion     = `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`
)

// versionOf reads the version of the schema; 0 if there is none.
func versionOf(ctx context.Context, db *sql.DB) (version int64, err error) {
	var tables int
	err = db.QueryRowContext(ctx, sqlHasVersions).Scan(&tables)
	if err == nil && tables > 0 {
		err = db.QueryRowContext(ctx, sqlVersion).Scan(&version)
	}
	return version, err
}

func checkSchema(ctx context.Context, db *sql.DB, path string) error {
	switch version, err := versionOf(ctx, db); {
	case err != nil:
		return fmt.Errorf("open database %s: %w", path, err)
	case version != schemaVersion:
		return &store.SchemaError{Database: path, Found: version, Want: schemaVersion}
	}
	return nil
}

// Upgrade returns what Migrate would do to workers that run.
func Upgrade(ctx context.Context, path string) (store.Upgrade, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return store.Upgrade{}, nil
	}
	db, err := open(path, "rw")
	if err != nil {
		return store.Upgrade{}, err
	}
	upgrade, err := upgradeOf(ctx, db)
	if err != nil {
		err = fmt.Errorf("read schema of database %s: %w", path, err)
	}
	return upgrade, errors.Join(err, db.Close())
}

func upgradeOf(ctx context.Context, db *sql.DB) (u store.Upgrade, err error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return u, err
	}
	if u.Oldest, err = rules.OldestSchema(files); err != nil {
		return u, err
	}
	u.From, err = versionOf(ctx, db)
	return u, err
}

const sqlSetOldest = `
INSERT INTO desired (name, value, version) VALUES (?1, ?2, 1)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, version = desired.version + 1`

// tellWorkers has workers end that do not survive the migrations to come.
func tellWorkers(ctx context.Context, db *sql.DB) error {
	upgrade, err := upgradeOf(ctx, db)
	if err != nil || upgrade.From < desiredSince || !upgrade.Stops(upgrade.From) {
		return err
	}
	_, err = db.ExecContext(ctx, sqlSetOldest, store.DesiredOldestSchema, []byte(strconv.FormatInt(upgrade.Oldest, 10)))
	return err
}

const sqlOldestSchema = `SELECT CAST(CAST(value AS TEXT) AS INTEGER) FROM desired WHERE name = 'oldest_schema'`

// Fits implements store.Ledger.
func (s *Store) Fits(ctx context.Context) error {
	var oldest int64
	switch err := s.row(ctx, sqlOldestSchema).Scan(&oldest); {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return s.wrap("read schema", err)
	case oldest > schemaVersion:
		return &store.SchemaError{Database: s.path, Found: oldest, Want: schemaVersion}
	}
	return nil
}

// Migrate creates the file if there is none, and brings its schema up to date. Several
// processes may call it at once.
func Migrate(ctx context.Context, path string) error {
	db, err := open(path, "rwc")
	if err != nil {
		return err
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return errors.Join(err, db.Close())
	}
	// Each migration is one transaction, and one that lost a race fails because its
	// tables exist. Every failed try therefore means that another process is at least
	// one version further, or had the file locked while it switched the journal.
	for range schemaVersion + 2 {
		if err = tellWorkers(ctx, db); err == nil {
			err = migrateOnce(ctx, db, files)
		}
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("migrate database %s: %w", path, err)
	}
	return errors.Join(err, db.Close())
}

func migrateOnce(ctx context.Context, db *sql.DB, files fs.FS) error {
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// Close closes both pools.
func (s *Store) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

// change makes a change in a write transaction, which others may share. All errors of a method are wrapped here:
// what names the method, and what SQLite itself reports (a full disk, a file
// that is no database) also names the path.
func (s *Store) change(ctx context.Context, what string, f func(context.Context, *sql.Tx) error) error {
	if s.tx != nil {
		return s.wrap(what, s.within(ctx, f))
	}
	return s.wrap(what, s.together(ctx, f))
}

// view runs a read transaction that reads everything as of one moment.
func (s *Store) view(ctx context.Context, what string, f func(context.Context, *sql.Tx) error) error {
	if s.tx != nil {
		return s.wrap(what, f(ctx, s.tx))
	}
	return s.wrap(what, transact(ctx, callTimeout, s.read, &sql.TxOptions{ReadOnly: true}, f))
}

// report is view for calls that read much.
func (s *Store) report(ctx context.Context, what string, f func(context.Context, *sql.Tx) error) error {
	return s.wrap(what, transact(ctx, reportTimeout, s.read, &sql.TxOptions{ReadOnly: true}, f))
}

// transact returns only once the outcome of the transaction is known: one that is given
// up is rolled back and takes no effect later.
func transact(ctx context.Context, timeout time.Duration, db *sql.DB, options *sql.TxOptions, f func(context.Context, *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tx, err := db.BeginTx(ctx, options)
	if err != nil {
		return err
	}
	if err := f(ctx, tx); err != nil {
		_ = tx.Rollback() // the first error says more
		return err
	}
	return tx.Commit()
}

// row reads one row outside of a transaction.
func (s *Store) row(ctx context.Context, query string, args ...any) boundedRow {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	if s.tx != nil {
		return boundedRow{s.tx.QueryRowContext(ctx, query, args...), cancel}
	}
	return boundedRow{s.read.QueryRowContext(ctx, query, args...), cancel}
}

// boundedRow ends its deadline when it is read.
type boundedRow struct {
	row    *sql.Row
	cancel context.CancelFunc
}

func (r boundedRow) Scan(dest ...any) error {
	defer r.cancel()
	return r.row.Scan(dest...)
}

func (s *Store) wrap(what string, err error) error {
	var own *driver.Error
	switch {
	case err == nil:
		return nil
	case unavailable(err):
		return fmt.Errorf("%s: %w", what, &store.UnavailableError{Database: s.path, Err: err})
	case errors.As(err, &own):
		return fmt.Errorf("%s: database %s: %w", what, s.path, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// primaryCode is the part of an error's code that all errors of a kind share.
const primaryCode = 0xff

// unavailable reports whether an error comes from a database that is locked, or whose
// disk is full or fails.
func unavailable(err error) bool {
	var own *driver.Error
	if !errors.As(err, &own) {
		return errors.Is(err, context.DeadlineExceeded)
	}
	switch own.Code() & primaryCode {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT,
		sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOTADB:
		return true
	default:
		return false
	}
}

// missing turns "no rows" into the given error.
func missing(err, instead error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return instead
	}
	return err
}

// violatesUnique reports whether a unique constraint refused a row.
func violatesUnique(err error) bool {
	var own *driver.Error
	return errors.As(err, &own) && own.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE
}

// changed runs a statement and returns how many rows it changed.
func changed(ctx context.Context, tx *sql.Tx, statement string, args ...any) (int, error) {
	result, err := tx.ExecContext(ctx, statement, args...)
	if err != nil {
		return 0, err
	}
	n, err := result.RowsAffected()
	return int(n), err
}

// collect scans every row of a query.
func collect[T any](ctx context.Context, tx *sql.Tx, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err reports every error
	var all []T
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// scanner is a row or the current one of several.
type scanner interface{ Scan(dest ...any) error }

// scanText scans the only column of a row.
func scanText(row scanner) (text string, err error) {
	err = row.Scan(&text)
	return text, err
}

// micros is the stored form of a time: microseconds since 1970, NULL for the zero time.
func micros(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

// at scans such a value into a time in UTC.
type at struct{ time *time.Time }

// Scan implements sql.Scanner.
func (a at) Scan(value any) error {
	switch v := value.(type) {
	case nil:
		*a.time = time.Time{}
	case int64:
		*a.time = time.UnixMicro(v).UTC()
	default:
		return fmt.Errorf("a time is stored as %T", value)
	}
	return nil
}

const sqlLedgerID = `SELECT id FROM ledger`

// LedgerID implements store.Ledger.
func (s *Store) LedgerID(ctx context.Context) (id string, err error) {
	err = s.row(ctx, sqlLedgerID).Scan(&id)
	return id, s.wrap("read ledger id", err)
}

// Clock implements store.Ledger: the machine's own clock.
func (s *Store) Clock(ctx context.Context) (time.Time, error) {
	return time.Now().UTC(), ctx.Err()
}

const (
	sqlReadKeyCheck = `SELECT id, coalesce(key_check, '') FROM ledger`
	sqlSetKeyCheck  = `UPDATE ledger SET key_check = ?1`
	// A sealed value has its key id from the fifth character on.
	sqlCountOtherKeys = `
SELECT (SELECT count(*) FROM oauth_tokens WHERE substr(access_token, 5, 8) <> ?1 OR substr(refresh_token, 5, 8) <> ?1) +
       (SELECT count(*) FROM hooks WHERE substr(secret, 5, 8) <> ?1)`
)

// CheckKeys implements store.Ledger.
func (s *Store) CheckKeys(ctx context.Context) error {
	// Mostly nothing changes, and a read does not wait for the write lock: beside a worker
	// that hangs in a change, status can still tell what is wrong.
	var stored string
	if err := s.view(ctx, "check keys", func(ctx context.Context, tx *sql.Tx) (err error) {
		stored, err = s.matchKeys(ctx, tx)
		return err
	}); err != nil || stored == "" {
		return err
	}
	return s.change(ctx, "check keys", func(ctx context.Context, tx *sql.Tx) error {
		stored, err := s.matchKeys(ctx, tx)
		if err != nil || stored == "" {
			return err
		}
		_, err = tx.ExecContext(ctx, sqlSetKeyCheck, stored)
		return err
	})
}

// matchKeys opens the key check value. It returns the value to store instead, or "".
func (s *Store) matchKeys(ctx context.Context, tx *sql.Tx) (string, error) {
	var id, keyCheck string
	if err := tx.QueryRowContext(ctx, sqlReadKeyCheck).Scan(&id, &keyCheck); err != nil {
		return "", err
	}
	var others int
	if err := tx.QueryRowContext(ctx, sqlCountOtherKeys, s.sealer.KeyID()).Scan(&others); err != nil {
		return "", err
	}
	return s.sealer.MatchKeyCheck(id, keyCheck, others > 0)
}

const sqlTryLease = `
INSERT INTO leases (name, owner, until) VALUES (?1, ?2, ?3)
ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
WHERE leases.owner = excluded.owner OR leases.until <= ?4`

// TryLease implements store.Ledger.
func (s *Store) TryLease(ctx context.Context, name, owner string, d time.Duration, now time.Time) (ok bool, err error) {
	err = s.change(ctx, "take lease", func(ctx context.Context, tx *sql.Tx) error {
		n, err := changed(ctx, tx, sqlTryLease, name, owner, micros(now.Add(d)), micros(now))
		ok = n > 0
		return err
	})
	return ok, err
}

const (
	sqlTakeLease = `
INSERT INTO leases (name, owner, until) VALUES (?1, ?2, ?3)
ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until,
    fence = CASE WHEN leases.owner = excluded.owner AND leases.until > ?4 THEN leases.fence ELSE leases.fence + 1 END
WHERE leases.owner = excluded.owner OR leases.until <= ?4
RETURNING name, owner, fence`
	// sqlDropLease does not delete the row, to preserve the fence.
	sqlDropLease = `UPDATE leases SET until = ?3 WHERE name = ?1 AND owner = ?2 AND until > ?3`
	// sqlHoldLease finds out who has the lease: it is the holder's as long as nobody
	// else took it.
	sqlHoldLease = `UPDATE leases SET owner = owner WHERE name = ?1 AND owner = ?2 AND fence = ?3`
)

// TakeLeases implements store.Ledger.
func (s *Store) TakeLeases(ctx context.Context, names []string, owner string, d time.Duration, now time.Time) (held []store.Lease, err error) {
	err = s.change(ctx, "take leases", func(ctx context.Context, tx *sql.Tx) error {
		held = nil
		for _, name := range names {
			var l store.Lease
			err := tx.QueryRowContext(ctx, sqlTakeLease, name, owner, micros(now.Add(d)), micros(now)).Scan(&l.Name, &l.Owner, &l.Fence)
			switch {
			case err == nil:
				held = append(held, l)
			case !errors.Is(err, sql.ErrNoRows):
				return err
			}
		}
		return nil
	})
	return held, err
}

// DropLeases implements store.Ledger.
func (s *Store) DropLeases(ctx context.Context, names []string, owner string, now time.Time) error {
	return s.change(ctx, "drop leases", func(ctx context.Context, tx *sql.Tx) error {
		for _, name := range names {
			if _, err := changed(ctx, tx, sqlDropLease, name, owner, micros(now)); err != nil {
				return err
			}
		}
		return nil
	})
}
