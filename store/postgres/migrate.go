package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	// schemaVersion is the version of the newest migration.
	schemaVersion = 19

	// A process that finds another one migrating tries again every lockPeriodSeconds,
	// at most lockTries times.
	lockPeriodSeconds = 1
	lockTries         = 300

	undefinedTable = "42P01" // PostgreSQL's code for a missing table

	// desiredSince is the migration since which the table desired has its name.
	desiredSince = 9
)

// SchemaVersion is the version of the schema for which this program is built.
const SchemaVersion int64 = schemaVersion

//go:embed migrations/*.sql
var migrations embed.FS

// Migrate brings the schema up to date. Any number of processes may call it at once:
// one migrates, the others wait for it.
func Migrate(ctx context.Context, url string) error {
	config, err := parseURL(url)
	if err != nil {
		return err
	}
	if err := migrate(ctx, config.ConnConfig); err != nil {
		return fmt.Errorf("migrate database %s: %w", databaseName(config.ConnConfig), err)
	}
	return nil
}

// Upgrade returns what Migrate would do to workers that run.
func Upgrade(ctx context.Context, url string) (store.Upgrade, error) {
	config, err := parseURL(url)
	if err != nil {
		return store.Upgrade{}, err
	}
	db := stdlib.OpenDB(*config.ConnConfig)
	defer func() { _ = db.Close() }() // only read from
	upgrade, err := upgradeOf(ctx, db)
	if err != nil {
		return upgrade, fmt.Errorf("read schema of database %s: %w", databaseName(config.ConnConfig), err)
	}
	return upgrade, nil
}

func upgradeOf(ctx context.Context, db *sql.DB) (u store.Upgrade, err error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return u, err
	}
	if u.Oldest, err = rules.OldestSchema(files); err != nil {
		return u, err
	}
	var refused *pgconn.PgError
	if err := db.QueryRowContext(ctx, sqlVersion).Scan(&u.From); err != nil && (!errors.As(err, &refused) || refused.Code != undefinedTable) {
		return u, err
	}
	return u, nil
}

const sqlSetOldest = `
INSERT INTO desired (name, value, version) VALUES ($1, $2, 1)
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

func migrate(ctx context.Context, config *pgx.ConnConfig) (err error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	options := []goose.ProviderOption{goose.WithDisableGlobalRegistry(true)}
	tries := 1
	if sessionsOf(config).pooled {
		// A session lock has no meaning behind a pooler. Each migration is one
		// transaction, and one that lost a race fails because its tables exist. Every
		// failed try therefore means that another process is at least one version
		// further.
		tries = schemaVersion + 2
	} else {
		delete(config.RuntimeParams, paramStatement) // a migration has no time limit
		delete(config.RuntimeParams, paramIdle)
		locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(lockPeriodSeconds, lockTries))
		if err != nil {
			return err
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	db := stdlib.OpenDB(*config)
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := tellWorkers(ctx, db); err != nil {
		return err
	}
	for range tries {
		if err = migrateOnce(ctx, db, files, options); err == nil || ctx.Err() != nil {
			break
		}
	}
	return err
}

func migrateOnce(ctx context.Context, db *sql.DB, files fs.FS, options []goose.ProviderOption) error {
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, options...)
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

const sqlVersion = `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`

func (s *Store) checkSchema(ctx context.Context) error {
	var version int64
	err := s.db.QueryRow(ctx, sqlVersion).Scan(&version)
	var refused *pgconn.PgError
	switch {
	case errors.As(err, &refused) && refused.Code == undefinedTable:
		version = 0
	case err != nil:
		return s.wrap("open", err)
	}
	if version != schemaVersion {
		return &store.SchemaError{Database: s.name, Found: version, Want: schemaVersion}
	}
	return nil
}

const sqlOldestSchema = `SELECT convert_from(value, 'UTF8')::bigint FROM desired WHERE name = 'oldest_schema'`

// Fits implements store.Ledger.
func (s *Store) Fits(ctx context.Context) error {
	var oldest int64
	switch err := s.db.QueryRow(ctx, sqlOldestSchema).Scan(&oldest); {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return s.wrap("read schema", err)
	case oldest > schemaVersion:
		return &store.SchemaError{Database: s.name, Found: oldest, Want: schemaVersion}
	}
	return nil
}
