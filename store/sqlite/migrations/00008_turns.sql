-- The latest change of an account's pause that no event has reported yet. Its event
-- deletes the row.

-- Older workers stop.
-- +goose Up

CREATE TABLE turns (
    account       TEXT NOT NULL PRIMARY KEY REFERENCES lanes (account),
    event         TEXT NOT NULL,
    turned_at     INTEGER NOT NULL,
    reason_code   TEXT NOT NULL, -- '' of a pause that was ended, as of the detail
    reason_detail TEXT NOT NULL,
    reason_until  INTEGER
) STRICT;
