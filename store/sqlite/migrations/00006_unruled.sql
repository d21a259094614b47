-- What X has refused lately for a reason that no rule knows, one row a request: three in
-- a row of one account, or the same words to several accounts, are more than those posts.

-- Older workers stop.
-- +goose Up

CREATE TABLE unruled (
    account    TEXT NOT NULL REFERENCES lanes (account),
    request_id TEXT NOT NULL,
    words      BLOB NOT NULL, -- their digest
    refused_at INTEGER NOT NULL,
    PRIMARY KEY (account, request_id)
) STRICT;
CREATE INDEX unruled_words ON unruled (words, account, refused_at);
