-- Operations that were done, by the ids of those who asked for them, with their answers.

-- Older workers stop.
-- +goose Up

CREATE TABLE operations (
    id      text PRIMARY KEY,
    digest  bytea NOT NULL,
    answer  bytea NOT NULL,
    done_at timestamptz NOT NULL
);
CREATE INDEX operations_done ON operations (done_at);

-- +goose Down

DROP TABLE operations;
