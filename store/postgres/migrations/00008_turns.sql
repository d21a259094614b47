-- The latest change of an account's pause that no event has reported yet. Its event
-- deletes the row.

-- Older workers stop.
-- +goose Up

CREATE TABLE turns (
    account       text PRIMARY KEY REFERENCES lanes (account),
    event         text NOT NULL,
    turned_at     timestamptz NOT NULL,
    reason_code   text NOT NULL, -- '' for a pause that was ended, as the detail
    reason_detail text NOT NULL,
    reason_until  timestamptz
);

-- +goose Down

DROP TABLE turns;
