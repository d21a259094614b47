-- Tokens with which programs call operations over HTTP. The token itself is stored nowhere.

-- Older workers go on.
-- +goose Up

CREATE TABLE api_tokens (
    name       TEXT NOT NULL PRIMARY KEY,
    digest     BLOB NOT NULL CHECK (length(digest) = 32),
    accounts   TEXT NOT NULL, -- names with a space between them, or *
    verbs      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;
CREATE INDEX api_tokens_expired ON api_tokens (expires_at);
