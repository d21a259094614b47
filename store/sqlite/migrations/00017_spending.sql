-- What posts cost in a month by estimate, while there is a limit. Money is in millionths of
-- a US dollar.

-- Older workers go on.
-- +goose Up

-- What a month has cost; the account '' is the app.
CREATE TABLE spending (
    month   TEXT NOT NULL CHECK (month GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]'),
    account TEXT NOT NULL,
    micros  INTEGER NOT NULL,
    -- Of the app: X has refused a call for want of money.
    billed  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (account, month)
) STRICT, WITHOUT ROWID;
-- What is set aside for requests that have begun, until their account's next one begins.
CREATE TABLE expenses (
    account    TEXT NOT NULL,
    request_id TEXT NOT NULL,
    month      TEXT NOT NULL,
    micros     INTEGER NOT NULL,
    cost       INTEGER NOT NULL, -- of the whole request
    posts      INTEGER NOT NULL,
    live       INTEGER NOT NULL, -- posts that were live before
    PRIMARY KEY (account, request_id)
) STRICT, WITHOUT ROWID;
ALTER TABLE lanes ADD COLUMN monthly_limit INTEGER CHECK (monthly_limit > 0);

-- +goose Down

ALTER TABLE lanes DROP COLUMN monthly_limit;
DROP TABLE expenses;
DROP TABLE spending;
