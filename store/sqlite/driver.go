package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"

	"modernc.org/sqlite"
)

// maxKept bounds the statements that a connection keeps: more than there are.
const maxKept = 256

// connector makes connections that keep their statements: SQLite takes longer to read
// most of ours than to run them.
type connector struct{ driver.Connector }

func newConnector(dsn string) (driver.Connector, error) {
	c, err := sqlite.NewConnector(dsn)
	return connector{c}, err
}

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	full, ok := conn.(fullConn)
	if !ok {
		return nil, errors.Join(errors.New("the driver of SQLite lacks a method"), conn.Close())
	}
	return &stmtCache{fullConn: full, kept: map[string]driver.Stmt{}}, nil
}

// fullConn is what database/sql asks of a connection. It prepares what it runs, since
// there is no driver.ExecerContext among it.
type fullConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.SessionResetter
	driver.Validator
}

// stmtCache is a connection that keeps its statements. Like any, it is used by one
// goroutine at a time.
type stmtCache struct {
	fullConn
	kept map[string]driver.Stmt // those that nobody uses just now
}

// PrepareContext implements driver.ConnPrepareContext.
func (k *stmtCache) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if stmt := k.kept[query]; stmt != nil {
		delete(k.kept, query)
		return stmt, nil
	}
	stmt, err := k.fullConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	full, ok := stmt.(fullStmt)
	if !ok {
		return stmt, nil
	}
	return &keptStmt{fullStmt: full, stmtCache: k, query: query}, nil
}

// Close implements driver.Conn.
func (k *stmtCache) Close() error {
	var errs []error
	for _, stmt := range k.kept {
		errs = append(errs, stmt.(*keptStmt).fullStmt.Close())
	}
	k.kept = nil
	return errors.Join(append(errs, k.fullConn.Close())...)
}

type fullStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// keptStmt goes back to its connection when it is closed.
type keptStmt struct {
	fullStmt
	stmtCache *stmtCache
	query     string
}

// Close implements driver.Stmt.
func (s *keptStmt) Close() error {
	k := s.stmtCache
	if k.kept == nil || k.kept[s.query] != nil || len(k.kept) >= maxKept {
		return s.fullStmt.Close()
	}
	k.kept[s.query] = s
	return nil
}
