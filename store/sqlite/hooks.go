package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
)

const (
	hookColumns = `id, url, account, events, secret, created_at, delivered_at, failed_at, error, failing_since, dropped, disabled_at`

	sqlHooks   = `SELECT ` + hookColumns + ` FROM hooks ORDER BY created_at, id`
	sqlAddHook = `
INSERT INTO hooks (id, url, account, events, secret, created_at) SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE (SELECT count(*) FROM hooks) < ?7`
	sqlRemoveHook    = `DELETE FROM hooks WHERE id = ?1 RETURNING ` + hookColumns
	sqlEnableHook    = `UPDATE hooks SET disabled_at = NULL, failing_since = NULL WHERE id = ?1 RETURNING ` + hookColumns
	sqlHookDelivered = `UPDATE hooks SET delivered_at = max(coalesce(delivered_at, 0), ?2), failing_since = NULL WHERE id = ?1`
	sqlHookFailed    = `
UPDATE hooks
SET failed_at = ?2, error = ?3, failing_since = coalesce(failing_since, ?2), dropped = dropped + ?4,
    disabled_at = CASE WHEN ?5 THEN coalesce(disabled_at, ?2) ELSE disabled_at END
WHERE id = ?1`
	sqlResealHook = `UPDATE hooks SET secret = ?3 WHERE id = ?1 AND secret = ?2`
)

func scanHook(row scanner) (h store.Hook, err error) {
	err = row.Scan(&h.ID, &h.URL, &h.Account, wordsOf(&h.Events), &h.Sealed, at{&h.CreatedAt}, at{&h.DeliveredAt}, at{&h.FailedAt},
		&h.Error, at{&h.FailingSince}, &h.Dropped, at{&h.DisabledAt})
	return h, err
}

// AddHook implements store.Hooks.
func (s *Store) AddHook(ctx context.Context, h store.Hook, plain secret.String) error {
	return s.change(ctx, "add webhook", func(ctx context.Context, tx *sql.Tx) error {
		sealed, err := s.sealer.SealHookSecret(h.ID, plain)
		if err != nil {
			return err
		}
		n, err := changed(ctx, tx, sqlAddHook, h.ID, h.URL, h.Account, wordsOf(&h.Events).String(), sealed, micros(h.CreatedAt), jetpost.MaxHooks)
		if err == nil && n == 0 {
			err = store.ErrTooManyHooks
		}
		return err
	})
}

// RemoveHook implements store.Hooks.
func (s *Store) RemoveHook(ctx context.Context, id string) (store.Hook, error) {
	return s.changeHook(ctx, "remove webhook", sqlRemoveHook, id)
}

// EnableHook implements store.Hooks.
func (s *Store) EnableHook(ctx context.Context, id string) (store.Hook, error) {
	return s.changeHook(ctx, "enable webhook", sqlEnableHook, id)
}

func (s *Store) changeHook(ctx context.Context, what, statement, id string) (h store.Hook, err error) {
	err = s.change(ctx, what, func(ctx context.Context, tx *sql.Tx) error {
		h, err = scanHook(tx.QueryRowContext(ctx, statement, id))
		return missing(err, store.ErrNotFound)
	})
	return h, err
}

// Hooks implements store.Hooks.
func (s *Store) Hooks(ctx context.Context) (hooks []store.Hook, err error) {
	err = s.view(ctx, "list webhooks", func(ctx context.Context, tx *sql.Tx) error {
		hooks, err = collect(ctx, tx, scanHook, sqlHooks)
		return err
	})
	return hooks, err
}

// HookSecret implements store.Hooks.
func (s *Store) HookSecret(h store.Hook) (secret.String, error) { return s.sealer.OpenHookSecret(h) }

// HookDelivered implements store.Hooks.
func (s *Store) HookDelivered(ctx context.Context, id string, now time.Time) error {
	return s.noteHook(ctx, "note delivery", sqlHookDelivered, id, micros(now))
}

// HookFailed implements store.Hooks.
func (s *Store) HookFailed(ctx context.Context, id string, f store.HookFailure) error {
	dropped := 0
	if f.Dropped {
		dropped = 1
	}
	return s.noteHook(ctx, "note failed delivery", sqlHookFailed, id, micros(f.At), f.Error, dropped, f.Disable)
}

func (s *Store) noteHook(ctx context.Context, what, statement string, args ...any) error {
	return s.change(ctx, what, func(ctx context.Context, tx *sql.Tx) error {
		n, err := changed(ctx, tx, statement, args...)
		if err == nil && n == 0 {
			err = store.ErrNotFound
		}
		return err
	})
}

// ResealHook implements store.Keys.
func (s *Store) ResealHook(ctx context.Context, h store.Hook, sealed string) (done bool, err error) {
	err = s.change(ctx, "seal secret of webhook anew", func(ctx context.Context, tx *sql.Tx) error {
		n, err := changed(ctx, tx, sqlResealHook, h.ID, h.Sealed, sealed)
		done = n > 0
		return err
	})
	return done, err
}
