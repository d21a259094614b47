-- What posts cost in a month by estimate, while there is a limit. Money is in millionths of
-- a US dollar.

-- Older workers go on.
-- +goose Up

-- What a month has cost; the account '' is the app.
CREATE TABLE spending (
    month   text NOT NULL CHECK (month ~ '^\d{4}-\d\d$'),
    account text NOT NULL,
    micros  bigint NOT NULL,
    -- Of the app: X has refused a call for want of money.
    billed  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (account, month)
);
-- What is set aside for requests that have begun, until their account's next one begins.
CREATE TABLE expenses (
    account    text NOT NULL,
    request_id text NOT NULL,
    month      text NOT NULL,
    micros     bigint NOT NULL,
    cost       bigint NOT NULL, -- of the whole request
    posts      integer NOT NULL,
    live       integer NOT NULL, -- posts that were live before
    PRIMARY KEY (account, request_id)
);
ALTER TABLE lanes ADD COLUMN monthly_limit bigint CHECK (monthly_limit > 0);

-- +goose Down

ALTER TABLE lanes DROP COLUMN monthly_limit;
DROP TABLE expenses;
DROP TABLE spending;
