-- What X has refused lately for a reason that no rule knows, one row a request. Three
-- in a row of one account, or the same words to several accounts, concern more than
-- those posts.

-- Older workers stop.
-- +goose Up

CREATE TABLE unruled (
    account    text NOT NULL REFERENCES lanes (account),
    request_id text NOT NULL,
    words      bytea NOT NULL, -- their digest
    refused_at timestamptz NOT NULL,
    PRIMARY KEY (account, request_id)
);
CREATE INDEX unruled_words ON unruled (words, account, refused_at);

-- +goose Down

DROP TABLE unruled;
