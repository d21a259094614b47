-- Webhooks: which events are sent where, and what became of that.

-- Older workers go on.
-- +goose Up

CREATE TABLE hooks (
    id            TEXT    NOT NULL PRIMARY KEY,
    url           TEXT    NOT NULL,
    account       TEXT    NOT NULL, -- '' sends the events of all
    events        TEXT    NOT NULL, -- types with a space between them; '' sends all
    secret        TEXT    NOT NULL CHECK (secret GLOB 'jp1.*'), -- sealed
    created_at    INTEGER NOT NULL,
    delivered_at  INTEGER, -- the last event that the receiver took
    failed_at     INTEGER, -- the last delivery that failed
    error         TEXT    NOT NULL DEFAULT '', -- of it
    failing_since INTEGER, -- null: the last one did not fail
    dropped       INTEGER NOT NULL DEFAULT 0, -- events that were given up
    disabled_at   INTEGER  -- null: it is sent to
) STRICT;

-- What is left of the requests of accounts that were erased: hashes of their identities, so
-- that an id which comes again posts nothing again.
CREATE TABLE erased (
    identity  BLOB    NOT NULL PRIMARY KEY CHECK (length(identity) = 32),
    state     TEXT    NOT NULL CHECK (state IN ('published', 'failed', 'cancelled')),
    erased_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Accounts of which something may be left.
CREATE TABLE erasures (
    account  TEXT    NOT NULL PRIMARY KEY,
    asked_at INTEGER NOT NULL
) STRICT;

-- +goose Down

DROP TABLE erasures;
DROP TABLE erased;
DROP TABLE hooks;
