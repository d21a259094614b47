-- Operations that were done, by the ids of those who asked for them, with their answers.

-- Older workers stop.
-- +goose Up

CREATE TABLE operations (
    id      TEXT NOT NULL PRIMARY KEY,
    digest  BLOB NOT NULL,
    answer  BLOB NOT NULL,
    done_at INTEGER NOT NULL
) STRICT;
CREATE INDEX operations_done ON operations (done_at);
