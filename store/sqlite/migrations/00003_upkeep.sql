-- +goose Up

-- What NATS holds a copy of: stops of the app, the refresh schedule. A copy that is
-- lost or replaced is put right by what stands here.
CREATE TABLE kept (
    name    TEXT    NOT NULL PRIMARY KEY,
    value   BLOB    NOT NULL,
    version INTEGER NOT NULL CHECK (version > 0)
) STRICT;

-- What holds up its account's line until a person acts.
CREATE INDEX requests_blocked ON requests (account, due_at, seq)
    WHERE state = 'unknown' OR (state = 'held' AND reason_code IN ('poison', 'key_unavailable', 'account_reauth_required'));
