-- Tokens with which programs call operations over HTTP. The token itself is stored nowhere.

-- Older workers go on.
-- +goose Up

CREATE TABLE api_tokens (
    name       text PRIMARY KEY,
    digest     bytea NOT NULL CHECK (octet_length(digest) = 32),
    accounts   text NOT NULL, -- names with a space between them, or *
    verbs      text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX api_tokens_expired ON api_tokens (expires_at);

-- +goose Down

DROP TABLE api_tokens;
