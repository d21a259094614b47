-- Older workers stop.
-- +goose Up

-- The desired state of which NATS holds a copy: app pauses, the refresh schedule. A
-- copy that is lost or replaced is restored from here.
CREATE TABLE kept (
    name    TEXT    NOT NULL PRIMARY KEY,
    value   BLOB    NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0)
) STRICT;

-- What blocks its account's queue until a person acts.
CREATE INDEX requests_blocked ON requests (account, due_at, seq)
    WHERE state = 'unknown' OR (state = 'held' AND reason_code IN ('poison', 'key_unavailable', 'account_reauth_required'));
