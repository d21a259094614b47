-- What is left of requests that finished long ago: their identities, so that an id which
-- comes again posts nothing again.

-- Older workers go on.
-- +goose Up

CREATE TABLE pruned (
    account     TEXT    NOT NULL,
    id          TEXT    NOT NULL,
    digest      BLOB    NOT NULL CHECK (length(digest) <= 16), -- the first bytes of the request's
    state       TEXT    NOT NULL CHECK (state IN ('published', 'failed', 'cancelled')),
    revision    INTEGER NOT NULL CHECK (revision > 0),
    accepted_at INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    PRIMARY KEY (account, id)
) STRICT, WITHOUT ROWID;
