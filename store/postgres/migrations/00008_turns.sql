-- How the pause of an account changed last, where that is not told yet: a row leaves with
-- its event.

-- +goose Up

CREATE TABLE turns (
    account       text PRIMARY KEY REFERENCES lanes (account),
    event         text NOT NULL,
    turned_at     timestamptz NOT NULL,
    reason_code   text NOT NULL, -- '' of a pause that was ended, as of the detail
    reason_detail text NOT NULL,
    reason_until  timestamptz
);

-- +goose Down

DROP TABLE turns;
