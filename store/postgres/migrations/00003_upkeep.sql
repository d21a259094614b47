-- +goose Up

-- What NATS holds a copy of: stops of the app, the refresh schedule. A copy that is
-- lost or replaced is put right by what stands here.
CREATE TABLE kept (
    name    text PRIMARY KEY,
    value   bytea NOT NULL,
    version bigint NOT NULL CHECK (version > 0)
);

-- What holds up its account's line until a person acts.
CREATE INDEX requests_blocked ON requests (account, due_at, seq)
    WHERE state = 'unknown' OR (state = 'held' AND reason_code IN ('poison', 'key_unavailable', 'account_reauth_required'));

-- +goose Down

DROP INDEX requests_blocked;
DROP TABLE kept;
