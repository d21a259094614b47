-- Users of the dashboard with their sessions, the logins that were tried, and who changed
-- what.

-- Older workers go on.
-- +goose Up

CREATE TABLE users (
    name          text PRIMARY KEY,
    role          text NOT NULL CHECK (role IN ('viewer', 'editor', 'admin')),
    password_hash text NOT NULL CHECK (password_hash <> ''),
    created_at    timestamptz NOT NULL,
    password_at   timestamptz NOT NULL
);

CREATE TABLE sessions (
    digest     bytea PRIMARY KEY CHECK (octet_length(digest) = 32), -- of the secret that the browser keeps
    user_name  text NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at timestamptz NOT NULL,
    seen_at    timestamptz NOT NULL
);
CREATE INDEX sessions_user ON sessions (user_name);
CREATE INDEX sessions_seen ON sessions (seen_at);

CREATE TABLE login_attempts (
    key   bytea PRIMARY KEY CHECK (octet_length(key) = 32), -- hash of a name, an address or both
    count integer NOT NULL,
    since timestamptz NOT NULL -- of the first in the window
);
CREATE INDEX login_attempts_since ON login_attempts (since);

CREATE TABLE audit (
    seq       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL,
    actor     text NOT NULL,
    operation text NOT NULL,
    account   text NOT NULL, -- '' where it concerns none
    target    text NOT NULL, -- of a request its id, of a user or a token the name; '' where the account is all
    outcome   text NOT NULL  -- done, or the code of an error
);
CREATE INDEX audit_at ON audit (at);

-- +goose Down

DROP TABLE audit;
DROP TABLE login_attempts;
DROP TABLE sessions;
DROP TABLE users;
