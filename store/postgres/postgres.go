package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jetpost/jetpost/store"
)

// The settings of a connection. Whatever the URL says goes first.
const (
	// defaultMaxConns is the size of the pool without pool_max_conns.
	defaultMaxConns = 10
	// defaultConnectTimeout bounds one attempt to connect.
	defaultConnectTimeout = 5 * time.Second
	// statementTimeout bounds a statement together with its wait for locks.
	statementTimeout = "10s"
	// idleTimeout ends a transaction whose worker was frozen in the middle of
	// it, so that its locks do not stand in everybody's way.
	idleTimeout = "10s"

	applicationName = "jetpost"
)

// closeBound is how long Close waits: a server that hangs lets no connection end.
const closeBound = 5 * time.Second

// Store is a ledger in a PostgreSQL database. It is safe for concurrent use by
// any number of processes.
type Store struct {
	name   string // of the database and its host, for errors
	sealer *store.Sealer
	pool   *pgxpool.Pool
}

var _ store.Store = (*Store)(nil)

// Open connects to a ledger that Migrate has prepared. It fails with
// *store.SchemaError where it has not, or a newer program has.
func Open(ctx context.Context, url string, sealer *store.Sealer) (*Store, error) {
	config, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	setDefault(config.ConnConfig.RuntimeParams, "statement_timeout", statementTimeout)
	setDefault(config.ConnConfig.RuntimeParams, "idle_in_transaction_session_timeout", idleTimeout)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", databaseName(config.ConnConfig), err)
	}
	s := &Store{name: databaseName(config.ConnConfig), sealer: sealer, pool: pool}
	if err := s.checkSchema(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return s, nil
}

// parseURL reads the database's URL. Its errors never quote the URL: what is
// wrong may be a character in the password.
func parseURL(text string) (*pgxpool.Config, error) {
	parsed, err := url.Parse(text)
	if err != nil || (parsed.Scheme != "postgres" && parsed.Scheme != "postgresql") {
		return nil, errors.New("read database URL: want postgres://user:password@host:port/database, " +
			"with special characters of the password percent-encoded")
	}
	config, err := pgxpool.ParseConfig(text)
	if err != nil {
		// The error first quotes the URL, where only one of its two places for
		// a password is blanked out.
		text := err.Error()
		if _, reason, quoted := strings.Cut(text, "`: "); quoted {
			text = reason
		}
		return nil, fmt.Errorf("read database URL: %s", text)
	}
	if !parsed.Query().Has("pool_max_conns") {
		config.MaxConns = defaultMaxConns
	}
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = defaultConnectTimeout
	}
	setDefault(config.ConnConfig.RuntimeParams, "application_name", applicationName)
	return config, nil
}

func setDefault(params map[string]string, name, value string) {
	if params[name] == "" {
		params[name] = value
	}
}

// databaseName says which database it is, without user and password.
func databaseName(config *pgx.ConnConfig) string {
	host := config.Host
	if !strings.HasPrefix(host, "/") { // a directory of a Unix socket
		host = fmt.Sprintf("%s:%d", host, config.Port)
	}
	return config.Database + " on " + host
}

// Close waits for calls under way and closes every connection, for closeBound at most.
func (s *Store) Close() error {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.pool.Close()
	}()
	select {
	case <-closed:
		return nil
	case <-time.After(closeBound):
		return fmt.Errorf("close database %s: connections did not end within %s", s.name, closeBound)
	}
}

// change runs a transaction at READ COMMITTED: each statement sees what was
// committed before it, so that one behind a lock sees what the lock protects.
func (s *Store) change(ctx context.Context, what string, f func(pgx.Tx) error) error {
	return s.wrap(what, pgx.BeginFunc(ctx, s.pool, f))
}

// view runs a read-only transaction, in which everything is as of one moment.
// A snapshot that only reads can never fail to serialise.
func (s *Store) view(ctx context.Context, what string, f func(pgx.Tx) error) error {
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	return s.wrap(what, pgx.BeginTxFunc(ctx, s.pool, options, f))
}

// wrap says what failed, and where.
func (s *Store) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s in database %s: %w", what, s.name, err)
}

// missing turns "no rows" into the given error.
func missing(err, instead error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return instead
	}
	return err
}

// querier is the pool or a transaction.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// changed runs a statement and returns how many rows it changed.
func changed(ctx context.Context, q querier, statement string, args ...any) (int, error) {
	tag, err := q.Exec(ctx, statement, args...)
	return int(tag.RowsAffected()), err
}

// fenced reads a conditional update that changed nothing as a lost claim.
func fenced(n int, err error) error { return orNone(n, err, store.ErrFenced) }

// orNone is the given error where a statement changed nothing.
func orNone(n int, err, none error) error {
	if err == nil && n == 0 {
		return none
	}
	return err
}

// collect scans every row of a query.
func collect[T any](ctx context.Context, q querier, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (T, error) { return scan(row) })
}

// scanner is a row or the current one of several.
type scanner interface{ Scan(dest ...any) error }

// moment is how a time is stored: NULL for the zero time.
func moment(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t
}

// at scans such a value into a time in UTC.
type at struct{ time *time.Time }

// Scan implements sql.Scanner.
func (a at) Scan(value any) error {
	switch v := value.(type) {
	case nil:
		*a.time = time.Time{}
	case time.Time:
		*a.time = v.UTC()
	default:
		return fmt.Errorf("a time is stored as %T", value)
	}
	return nil
}

// storable drops what a text of PostgreSQL cannot hold from words that come
// from elsewhere: the zero character, and bytes that are no UTF-8.
func storable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "")
}

const sqlLedgerID = `SELECT id::text FROM ledger`

// LedgerID implements store.Ledger.
func (s *Store) LedgerID(ctx context.Context) (id string, err error) {
	err = s.pool.QueryRow(ctx, sqlLedgerID).Scan(&id)
	return id, s.wrap("read ledger id", err)
}

const sqlClock = `SELECT clock_timestamp()`

// Clock implements store.Ledger: the server's clock.
func (s *Store) Clock(ctx context.Context) (now time.Time, err error) {
	err = s.pool.QueryRow(ctx, sqlClock).Scan(at{&now})
	return now, s.wrap("read clock", err)
}

const (
	sqlReadCanary = `SELECT id::text, coalesce(canary, '') FROM ledger FOR UPDATE`
	sqlSetCanary  = `UPDATE ledger SET canary = $1`
	// A sealed value carries the id of its key between its first two dots.
	sqlOtherKeys = `
SELECT EXISTS (SELECT FROM oauth_tokens
WHERE split_part(access_token, '.', 2) <> $1 OR split_part(refresh_token, '.', 2) <> $1)`
)

// CheckKeys implements store.Ledger.
func (s *Store) CheckKeys(ctx context.Context) error {
	return s.change(ctx, "check keys", func(tx pgx.Tx) error {
		var id, canary string
		if err := tx.QueryRow(ctx, sqlReadCanary).Scan(&id, &canary); err != nil {
			return err
		}
		var others bool
		if err := tx.QueryRow(ctx, sqlOtherKeys, s.sealer.KeyID()).Scan(&others); err != nil {
			return err
		}
		sealed, err := s.sealer.CheckCanary(id, canary, others)
		if err != nil || sealed == "" {
			return err
		}
		_, err = tx.Exec(ctx, sqlSetCanary, sealed)
		return err
	})
}

const sqlTryLease = `
INSERT INTO leases (name, owner, until) VALUES ($1, $2, clock_timestamp() + $3::interval)
ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
WHERE leases.owner = excluded.owner OR leases.until <= clock_timestamp()`

// TryLease implements store.Ledger.
func (s *Store) TryLease(ctx context.Context, name, owner string, d time.Duration, _ time.Time) (bool, error) {
	n, err := changed(ctx, s.pool, sqlTryLease, name, owner, d)
	return n > 0, s.wrap("take lease", err)
}
