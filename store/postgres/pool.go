package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/jetpost/jetpost/store"
)

// The settings of a connection. Settings in the URL override them.
const (
	// defaultMaxConns is the size of the pool without pool_max_conns.
	defaultMaxConns = 10
	// defaultConnectTimeout bounds one attempt to connect to one host. It is less than
	// callTimeout, so that a second host is tried.
	defaultConnectTimeout = 3 * time.Second
	// defaultConnLifetime bounds the use of a connection. After the database has moved,
	// no connection to its old place stays for longer.
	defaultConnLifetime = 10 * time.Minute
	// lifetimeJitter keeps connections that were opened together from ending together.
	lifetimeJitter = time.Minute
	// pingTimeout bounds the check whether an idle connection is alive. One callTimeout
	// has room for several checks of dead connections.
	pingTimeout = time.Second
	// A lost peer is noticed on an idle connection after keepAliveIdle plus
	// keepAliveCount times keepAliveInterval.
	keepAliveIdle     = 10 * time.Second
	keepAliveInterval = 5 * time.Second
	keepAliveCount    = 3

	// callTimeout bounds each call, from the wait for a connection to the last answer
	// of its commit. A worker whose database does not answer must notice that and
	// return what it holds within 10 s.
	callTimeout = 5 * time.Second
	// reportTimeout bounds a call that reads much, for a person who waits for it.
	reportTimeout = time.Minute
	// statementTimeout bounds a statement together with its wait for locks. It is less
	// than callTimeout, so that the database reports that it did nothing, and does not
	// finish what its caller has given up.
	statementTimeout = "4s"
	// reportStatementTimeout is statementTimeout for reports.
	reportStatementTimeout = "55s"
	// idleTimeout ends a transaction whose worker froze in the middle of it, so that
	// its locks do not block others.
	idleTimeout = "5s"

	applicationName = "jetpost"
)

// configure adds to the settings of the URL those of the pool and its connections.
func configure(config *pgxpool.Config, given func(setting string) bool) {
	if !given("pool_max_conns") {
		config.MaxConns = defaultMaxConns
	}
	if !given("pool_max_conn_lifetime") {
		config.MaxConnLifetime = defaultConnLifetime
		config.MaxConnLifetimeJitter = lifetimeJitter
	}
	if !given("pool_ping_timeout") {
		config.PingTimeout = pingTimeout
	}
	conn := config.ConnConfig
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = defaultConnectTimeout
	}
	conn.DialFunc = (&net.Dialer{
		Timeout:         conn.ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount},
	}).DialContext
	conn.OnPgError = func(_ *pgconn.PgConn, err *pgconn.PgError) bool {
		return !leads(nowhere, err) && err.Severity != "FATAL"
	}
	setDefault(conn.RuntimeParams, "application_name", applicationName)
}

func setDefault(params map[string]string, name, value string) {
	if params[name] == "" {
		params[name] = value
	}
}

// patience bounds the calls of a store. Tests use shorter bounds.
type patience struct{ call, report time.Duration }

// bounded is the pool with a deadline for each call, including the wait for a
// connection. A connection without an answer is never used again.
type bounded struct {
	pool    *pgxpool.Pool
	timeout time.Duration
}

func (b bounded) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	return b.pool.Exec(ctx, sql, args...)
}

func (b bounded) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	rows, err := b.pool.Query(ctx, sql, args...) //nolint:rowserrcheck // the caller checks rows.Err
	return boundedRows{rows, cancel}, err
}

func (b bounded) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	return boundedRow{b.pool.QueryRow(ctx, sql, args...), cancel}
}

// boundedRows end their deadline when they are closed, a boundedRow when it is read.
type (
	boundedRows struct {
		pgx.Rows
		cancel context.CancelFunc
	}
	boundedRow struct {
		pgx.Row
		cancel context.CancelFunc
	}
)

func (r boundedRows) Close() {
	r.Rows.Close()
	r.cancel()
}

func (r boundedRow) Scan(dest ...any) error {
	defer r.cancel()
	return r.Row.Scan(dest...)
}

// change runs a transaction at READ COMMITTED: each statement sees what was committed
// before it, so that a statement that waited for a lock sees what the lock protects.
// The transaction holds its locks until its end, even if its caller gives up: if the
// answer to the commit is lost, later calls see all of it or nothing.
func (s *Store) change(ctx context.Context, what string, f func(context.Context, pgx.Tx) error) error {
	return s.transact(ctx, what, s.patience.call, s.sessions.begin("begin"), f)
}

// view runs a read-only transaction that reads everything as of one moment. A read-only
// snapshot can never fail to serialise.
func (s *Store) view(ctx context.Context, what string, f func(context.Context, pgx.Tx) error) error {
	return s.transact(ctx, what, s.patience.call, s.sessions.begin(beginView), f)
}

// report is view for calls that read much.
func (s *Store) report(ctx context.Context, what string, f func(context.Context, pgx.Tx) error) error {
	settings := sessions{statement: reportStatementTimeout, idle: s.sessions.idle, plans: "force_custom_plan", pooled: true}
	return s.transact(ctx, what, s.patience.report, settings.begin(beginView), f)
}

// reportAll is a report of the rows of one query.
func reportAll[T any](ctx context.Context, s *Store, what string, scan func(scanner) (T, error), query string, args ...any) (all []T, err error) {
	err = s.report(ctx, what, func(ctx context.Context, tx pgx.Tx) error {
		all, err = collect(ctx, tx, scan, query, args...)
		return err
	})
	return all, err
}

const beginView = "begin isolation level repeatable read read only"

func (s *Store) transact(ctx context.Context, what string, timeout time.Duration, begin string, f func(context.Context, pgx.Tx) error) error {
	if s.tx != nil {
		return s.wrap(what, pgx.BeginFunc(ctx, s.tx, func(tx pgx.Tx) error { return f(ctx, tx) })) // a savepoint
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	options := pgx.TxOptions{BeginQuery: begin}
	return s.wrap(what, pgx.BeginTxFunc(ctx, s.pool, options, func(tx pgx.Tx) error { return f(ctx, tx) }))
}

// sqlCommit is the commit of a pipeline.
const sqlCommit = `commit`

// pipeline is change with as few round trips as it has steps. The last step queues the
// commit. Statements queued after the commit are a transaction of their own.
func (s *Store) pipeline(ctx context.Context, steps ...func(context.Context, *pgx.Batch) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.patience.call)
	defer cancel()
	return s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) (err error) {
		for i, step := range steps {
			batch := &pgx.Batch{}
			if i == 0 {
				for _, statement := range s.sessions.opening("begin") {
					batch.Queue(statement)
				}
			}
			if err = step(ctx, batch); err == nil {
				err = conn.SendBatch(ctx, batch).Close()
			}
			if err != nil {
				break
			}
		}
		if err != nil && conn.Conn().PgConn().TxStatus() != idle {
			_, _ = conn.Exec(ctx, "rollback") // else the pool closes the connection
		}
		return err
	})
}

// idle is the state of a connection without a transaction.
const idle = 'I'

// queue scans each row of a query once its answer has arrived.
func queue[T any](batch *pgx.Batch, scan func(scanner) (T, error), query string, args ...any) {
	batch.Queue(query, args...).Query(func(rows pgx.Rows) error {
		_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (T, error) { return scan(row) })
		return err
	})
}

// queued sends statements in a batch with others. The end of the batch returns their
// errors.
type queued struct{ batch *pgx.Batch }

func (q queued) Exec(_ context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	q.batch.Queue(sql, args...)
	return pgconn.CommandTag{}, nil
}

// sessions are the settings of each session.
type sessions struct {
	statement, idle string // timeouts
	plans           string // plan_cache_mode, "" for the server's
	// pooled tells that a pooler stands before the database, which gives a session
	// to another client after each transaction: settings then have to end with it.
	pooled bool
}

// sessionsOf takes the settings from the URL's parameters, which win, or adds them
// there. A URL by which pgx does not name its prepared statements has a pooler.
func sessionsOf(conn *pgx.ConnConfig) sessions {
	s := sessions{
		statement: cmp.Or(conn.RuntimeParams[paramStatement], statementTimeout),
		idle:      cmp.Or(conn.RuntimeParams[paramIdle], idleTimeout),
		pooled:    conn.DefaultQueryExecMode != pgx.QueryExecModeCacheStatement,
	}
	if s.pooled {
		delete(conn.RuntimeParams, paramStatement)
		delete(conn.RuntimeParams, paramIdle)
	} else {
		conn.RuntimeParams[paramStatement], conn.RuntimeParams[paramIdle] = s.statement, s.idle
		setDefault(conn.RuntimeParams, paramPlans, plannedOnce)
		for _, whole := range paramsWhole {
			setDefault(conn.RuntimeParams, whole, "off")
		}
		setDefault(conn.RuntimeParams, paramCompile, "off")
	}
	return s
}

const (
	paramStatement, paramIdle = "statement_timeout", "idle_in_transaction_session_timeout"
	paramPlans                = "plan_cache_mode"
	// plannedOnce has each statement of a session planned once. The server would plan those
	// over arrays anew for each call, since it takes short arrays to be worth that: it
	// takes longer than all that the statement of a lane's step does.
	plannedOnce = "force_generic_plan"
	// paramCompile is off, because paramsWhole make the planner's cost of a scan huge, and
	// the server compiles expensive statements: for 70 ms and more, anew for each call.
	paramCompile = "jit"
)

// paramsWhole are off, since they read a whole table or index, which may be small as a
// statement is planned, as the outbox mostly is, and large by the time it is run.
var paramsWhole = []string{"enable_seqscan", "enable_hashjoin", "enable_mergejoin"}

// begin adds the settings to the statement that begins a transaction, if the session
// does not have them. Both go in one message.
func (s sessions) begin(statement string) string { return strings.Join(s.opening(statement), "; ") }

// opening is begin as separate statements.
func (s sessions) opening(statement string) []string {
	if !s.pooled {
		return []string{statement}
	}
	quoted := func(value string) string { return "'" + strings.ReplaceAll(value, "'", "''") + "'" }
	settings := []string{statement, "set local " + paramStatement + " = " + quoted(s.statement), "set local " + paramIdle + " = " + quoted(s.idle)}
	if s.plans != "" {
		settings = append(settings, "set local "+paramPlans+" = "+quoted(s.plans))
		for _, whole := range paramsWhole {
			settings = append(settings, "set local "+whole+" = on")
		}
	}
	return settings
}

// wrap says what failed, and in which database. If the database did not answer, the
// error becomes a *store.UnavailableError.
func (s *Store) wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case unavailable(err):
		return fmt.Errorf("%s: %w", what, &store.UnavailableError{Database: s.name, Err: err})
	}
	return fmt.Errorf("%s in database %s: %w", what, s.name, err)
}

// Codes of PostgreSQL's errors, or their prefixes.
var (
	// nowhere are the errors after which a connection is useless: it is lost, its
	// server ends or starts, or the server no longer takes writes.
	nowhere = []string{"08", "57P", "25006"}
	// away are the errors of a database that does nothing at the moment.
	away = append([]string{
		"57014", // statement_timeout
		lockNotAvailable,
		"25P03", // idle_in_transaction_session_timeout
		"53",    // no connection, memory or disk left
		"58",    // a fault of its machine
	}, nowhere...)
)

// lockNotAvailable is the code of lock_timeout.
const lockNotAvailable = "55P03"

// lockTaken reports whether a statement met a lock that somebody holds for long.
func lockTaken(err error) bool {
	refused, is := errors.AsType[*pgconn.PgError](err)
	return is && refused.Code == lockNotAvailable
}

// leads reports whether an error has one of the codes.
func leads(codes []string, err *pgconn.PgError) bool {
	for _, code := range codes {
		if strings.HasPrefix(err.Code, code) {
			return true
		}
	}
	return false
}

// unavailable reports whether an error says that the database did not answer, or did
// not do what it does at other times.
func unavailable(err error) bool {
	var refused *pgconn.PgError
	var network net.Error
	switch {
	case errors.As(err, &refused):
		return leads(away, refused)
	case errors.Is(err, context.Canceled):
		return false // the caller's own end
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.As(err, &network), errors.As(err, new(*pgconn.ConnectError)):
		return true
	default:
		return pgconn.SafeToRetry(err) // the connection was closed before anything was sent
	}
}
