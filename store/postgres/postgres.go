package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jetpost/jetpost/store"
)

// closeBound is how long Close waits: a server that hangs lets no connection end.
const closeBound = 5 * time.Second

// Store is a ledger in a PostgreSQL database. It is safe for concurrent use by any
// number of processes.
type Store struct {
	name   string // of the database and its host, for errors
	sealer *store.Sealer
	pool   *pgxpool.Pool // for transactions
	db     querier       // for statements on their own
	tx     pgx.Tx        // whose part everything is; nil outside of an operation

	patience patience
	// callersClock makes the times that callers pass judge, instead of the server's
	// clock.
	callersClock bool
	givenUp      givenUp
	sessions     sessions
	steps        *gather[step, stepped]
	arrivals     *gather[arrival, []store.Received]
	apart        atomic.Int64 // until when calls of AcceptMany share no transaction
	marks        *gather[store.Revision, bool]
	tokens       *gather[string, *store.SealedToken]
	saves        *gather[saving, bool]
}

var _ store.Store = (*Store)(nil)

// Option changes how a store works.
type Option func(*Store)

// CallersClock is for tests only, which let time pass faster: the caller's time judges
// what is due. The server still judges leases.
func CallersClock() Option { return func(s *Store) { s.callersClock = true } }

// now is the present time for a statement. It is nil without callersClock, so that the
// statement uses the server's, coalesce($n, statement_timestamp()).
func (s *Store) now(callers time.Time) any {
	if s.callersClock {
		return callers
	}
	return nil
}

// Open connects to a ledger that Migrate has prepared. It fails with *store.SchemaError
// if the schema is missing, older or newer.
func Open(ctx context.Context, url string, sealer *store.Sealer, options ...Option) (*Store, error) {
	config, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	sessions := sessionsOf(config.ConnConfig)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", databaseName(config.ConnConfig), err)
	}
	s := &Store{name: databaseName(config.ConnConfig), sealer: sealer, pool: pool, sessions: sessions}
	for _, option := range options {
		option(s)
	}
	s.bound(patience{call: callTimeout, report: reportTimeout})
	s.steps = &gather[step, stepped]{patience: &s.patience.call, key: func(st step) string { return st.account }, send: func(group []*waitingStep) { together(group, s.execSteps) }}
	s.arrivals = &gather[arrival, []store.Received]{patience: &s.patience.call, key: func(a arrival) string { return a.lease.Name }, send: func(group []*waitingArrival) {
		together(group, func(group []*waitingArrival) error { return s.accept(group[0].ctx, group) })
	}, late: s.freeClaims}
	s.marks = &gather[store.Revision, bool]{patience: &s.patience.call, key: func(r store.Revision) string { return r.Account + "/" + r.ID }, send: s.takeMarks}
	s.tokens = &gather[string, *store.SealedToken]{patience: &s.patience.call, key: func(account string) string { return account }, send: s.takeTokens}
	s.saves = &gather[saving, bool]{patience: &s.patience.call, key: func(in saving) string { return in.claim.ID }, send: s.takeSaves}
	if err := s.checkSchema(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return s, nil
}

// parseURL reads the database's URL. Its errors never quote the URL: the mistake may be
// a character in the password.
func parseURL(text string) (*pgxpool.Config, error) {
	parsed, err := url.Parse(text)
	if err != nil || (parsed.Scheme != "postgres" && parsed.Scheme != "postgresql") {
		return nil, errors.New("read database URL: want postgres://user:password@host:port/database, " +
			"with special characters of the password percent-encoded")
	}
	config, err := pgxpool.ParseConfig(text)
	if err != nil {
		// The error first quotes the URL, and masks only one of the two places for a
		// password.
		text := err.Error()
		if _, reason, quoted := strings.Cut(text, "`: "); quoted {
			text = reason
		}
		return nil, fmt.Errorf("read database URL: %s", text)
	}
	configure(config, parsed.Query().Has)
	return config, nil
}

// bound sets the time limits of calls.
func (s *Store) bound(p patience) {
	s.patience, s.db = p, bounded{pool: s.pool, timeout: p.call}
}

// databaseName names the database, without user and password.
func databaseName(config *pgx.ConnConfig) string {
	hosts := []string{hostName(config.Host, config.Port)}
	for _, other := range config.Fallbacks {
		if name := hostName(other.Host, other.Port); !slices.Contains(hosts, name) {
			hosts = append(hosts, name)
		}
	}
	return config.Database + " on " + strings.Join(hosts, " or ")
}

func hostName(host string, port uint16) string {
	if strings.HasPrefix(host, "/") { // a directory of a Unix socket
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// Close waits for calls under way and closes every connection, within closeBound.
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

// missing turns "no rows" into the given error.
func missing(err, instead error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return instead
	}
	return err
}

// executor writes: a transaction, or one round trip of it.
type executor interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// querier is the pool or a transaction.
type querier interface {
	executor
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// changed runs a statement and returns how many rows it changed.
func changed(ctx context.Context, q querier, statement string, args ...any) (int, error) {
	tag, err := q.Exec(ctx, statement, args...)
	return int(tag.RowsAffected()), err
}

// fenced turns a conditional update that changed nothing into ErrFenced.
func fenced(n int, err error) error { return orNone(n, err, store.ErrFenced) }

// orNone returns the given error if a statement changed nothing.
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

// moment is the stored form of a time: NULL for the zero time.
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

// storable drops what PostgreSQL's text cannot hold from foreign words: the zero
// character, and bytes that are no UTF-8.
func storable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "")
}

const sqlLedgerID = `SELECT id::text FROM ledger`

// LedgerID implements store.Ledger.
func (s *Store) LedgerID(ctx context.Context) (id string, err error) {
	err = s.db.QueryRow(ctx, sqlLedgerID).Scan(&id)
	return id, s.wrap("read ledger id", err)
}

const sqlClock = `SELECT clock_timestamp()`

// Clock implements store.Ledger: the server's clock.
func (s *Store) Clock(ctx context.Context) (now time.Time, err error) {
	err = s.db.QueryRow(ctx, sqlClock).Scan(at{&now})
	return now, s.wrap("read clock", err)
}

const sqlDurability = `
SELECT name || '=' || setting FROM pg_settings
WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off' ORDER BY name`

// LosesCommits returns the settings with which a crash of PostgreSQL could lose
// commits; none if it loses nothing.
func (s *Store) LosesCommits(ctx context.Context) (settings []string, err error) {
	settings, err = collect(ctx, s.db, func(row scanner) (setting string, err error) { return setting, row.Scan(&setting) }, sqlDurability)
	return settings, s.wrap("read settings", err)
}

const (
	sqlReadKeyCheck = `SELECT id::text, coalesce(key_check, '') FROM ledger FOR UPDATE`
	sqlSetKeyCheck  = `UPDATE ledger SET key_check = $1`
	// A sealed value has the id of its key between its first two dots.
	sqlOtherKeys = `
SELECT EXISTS (SELECT FROM oauth_tokens
WHERE split_part(access_token, '.', 2) <> $1 OR split_part(refresh_token, '.', 2) <> $1)
    OR EXISTS (SELECT FROM hooks WHERE split_part(secret, '.', 2) <> $1)`
)

// CheckKeys implements store.Ledger.
func (s *Store) CheckKeys(ctx context.Context) error {
	var others bool
	err := s.report(ctx, "check keys", func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, sqlOtherKeys, s.sealer.KeyID()).Scan(&others)
	})
	if err != nil {
		return err
	}
	return s.change(ctx, "check keys", func(ctx context.Context, tx pgx.Tx) error {
		var id, keyCheck string
		if err := tx.QueryRow(ctx, sqlReadKeyCheck).Scan(&id, &keyCheck); err != nil {
			return err
		}
		sealed, err := s.sealer.MatchKeyCheck(id, keyCheck, others)
		if err != nil || sealed == "" {
			return err
		}
		_, err = tx.Exec(ctx, sqlSetKeyCheck, sealed)
		return err
	})
}

const sqlTryLease = `
INSERT INTO leases (name, owner, until) VALUES ($1, $2, clock_timestamp() + $3::interval)
ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
WHERE leases.owner = excluded.owner OR leases.until <= clock_timestamp()`

// TryLease implements store.Ledger.
func (s *Store) TryLease(ctx context.Context, name, owner string, d time.Duration, _ time.Time) (bool, error) {
	n, err := changed(ctx, s.db, sqlTryLease, name, owner, d)
	return n > 0, s.wrap("take lease", err)
}

const (
	// sqlTakeLeases skips leases that an acceptance holds at the moment. That
	// acceptance prolongs the lease.
	sqlTakeLeases = `
UPDATE leases AS l SET owner = $2, until = clock_timestamp() + $3::interval,
    fence = CASE WHEN l.owner = $2 AND l.until > clock_timestamp() THEN l.fence ELSE l.fence + 1 END
FROM (SELECT name FROM leases WHERE name = ANY ($1::text[]) AND (owner = $2 OR until <= clock_timestamp())
      ORDER BY name FOR UPDATE SKIP LOCKED) AS mine
WHERE l.name = mine.name`
	sqlAddLeases = `
INSERT INTO leases (name, owner, until) SELECT name, $2, clock_timestamp() + $3::interval FROM unnest($1::text[]) AS name
ON CONFLICT DO NOTHING`
	sqlLeases = `SELECT name, owner, fence FROM leases WHERE name = ANY ($1::text[]) AND owner = $2 AND until > clock_timestamp()`
	// sqlDropLeases does not delete the row, to preserve the fence.
	sqlDropLeases = `UPDATE leases SET until = clock_timestamp() WHERE name = ANY ($1::text[]) AND owner = $2 AND until > clock_timestamp()`
	// sqlHoldLease makes others wait to take the lease until this transaction has
	// ended. The lease is the holder's as long as nobody else took it.
	sqlHoldLease = `
UPDATE leases SET until = greatest(until, clock_timestamp() + '1s') WHERE name = $1 AND owner = $2 AND fence = $3`
)

// TakeLeases implements store.Ledger.
func (s *Store) TakeLeases(ctx context.Context, names []string, owner string, d time.Duration, _ time.Time) (held []store.Lease, err error) {
	err = s.change(ctx, "take leases", func(ctx context.Context, tx pgx.Tx) error {
		n, err := changed(ctx, tx, sqlTakeLeases, names, owner, d)
		if err != nil {
			return err
		}
		if n < len(names) {
			if _, err := tx.Exec(ctx, sqlAddLeases, names, owner, d); err != nil {
				return err
			}
		}
		held, err = collect(ctx, tx, func(row scanner) (l store.Lease, err error) {
			return l, row.Scan(&l.Name, &l.Owner, &l.Fence)
		}, sqlLeases, names, owner)
		return err
	})
	return held, err
}

// DropLeases implements store.Ledger.
func (s *Store) DropLeases(ctx context.Context, names []string, owner string, _ time.Time) error {
	_, err := s.db.Exec(ctx, sqlDropLeases, names, owner)
	return s.wrap("drop leases", err)
}
