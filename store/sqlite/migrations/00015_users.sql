-- Users of the dashboard with their sessions, the logins that were tried, and who changed
-- what.

-- Older workers go on.
-- +goose Up

CREATE TABLE users (
    name          TEXT NOT NULL PRIMARY KEY,
    role          TEXT NOT NULL CHECK (role IN ('viewer', 'editor', 'admin')),
    password_hash TEXT NOT NULL CHECK (password_hash <> ''),
    created_at    INTEGER NOT NULL,
    password_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE sessions (
    digest     BLOB NOT NULL PRIMARY KEY CHECK (length(digest) = 32), -- of the secret that the browser keeps
    user_name  TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_user ON sessions (user_name);
CREATE INDEX sessions_seen ON sessions (seen_at);

CREATE TABLE login_attempts (
    key   BLOB NOT NULL PRIMARY KEY CHECK (length(key) = 32), -- hash of a name, an address or both
    count INTEGER NOT NULL,
    since INTEGER NOT NULL -- of the first in the window
) STRICT;
CREATE INDEX login_attempts_since ON login_attempts (since);

CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    actor     TEXT NOT NULL,
    operation TEXT NOT NULL,
    account   TEXT NOT NULL, -- '' where it concerns none
    target    TEXT NOT NULL, -- of a request its id, of a user or a token the name; '' where the account is all
    outcome   TEXT NOT NULL  -- done, or the code of an error
) STRICT;
CREATE INDEX audit_at ON audit (at);

-- +goose Down

DROP TABLE audit;
DROP TABLE login_attempts;
DROP TABLE sessions;
DROP TABLE users;
