-- Webhooks: which events are sent where, and what became of that.

-- Older workers go on.
-- +goose Up

CREATE TABLE hooks (
    id            text PRIMARY KEY,
    url           text NOT NULL,
    account       text NOT NULL, -- '' sends the events of all
    events        text NOT NULL, -- types with a space between them; '' sends all
    secret        text NOT NULL CHECK (secret LIKE 'jp1.%'), -- sealed
    created_at    timestamptz NOT NULL,
    delivered_at  timestamptz, -- the last event that the receiver took
    failed_at     timestamptz, -- the last delivery that failed
    error         text NOT NULL DEFAULT '', -- of it
    failing_since timestamptz, -- null: the last one did not fail
    dropped       integer NOT NULL DEFAULT 0, -- events that were given up
    disabled_at   timestamptz  -- null: it is sent to
);

-- What is left of the requests of accounts that were erased: hashes of their identities, so
-- that an id which comes again posts nothing again.
CREATE TABLE erased (
    identity  bytea PRIMARY KEY CHECK (octet_length(identity) = 32),
    state     text NOT NULL CHECK (state IN ('published', 'failed', 'cancelled')),
    erased_at timestamptz NOT NULL
);

-- Accounts of which something may be left.
CREATE TABLE erasures (
    account  text PRIMARY KEY,
    asked_at timestamptz NOT NULL
);

-- +goose Down

DROP TABLE erasures;
DROP TABLE erased;
DROP TABLE hooks;
