-- What is left of requests that finished long ago: their identities, so that an id which
-- comes again posts nothing again.

-- Older workers go on.
-- +goose Up

CREATE TABLE pruned (
    account     text NOT NULL,
    id          text NOT NULL,
    digest      bytea NOT NULL CHECK (octet_length(digest) <= 16), -- the first bytes of the request's
    state       text NOT NULL CHECK (state IN ('published', 'failed', 'cancelled')),
    revision    integer NOT NULL CHECK (revision > 0),
    accepted_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    PRIMARY KEY (account, id)
);

-- +goose Down

DROP TABLE pruned;
