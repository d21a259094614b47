-- Every time is a count of microseconds since 1970, UTC; NULL is "none".
-- Every table is STRICT, so that a value of the wrong type is refused.

-- Older workers stop.
-- +goose Up

-- One row: the identity of this ledger. The canary is sealed and shows at start whether
-- the configured keys fit the database.
CREATE TABLE ledger (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    id         TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    canary     TEXT
) STRICT;

-- A version 4 UUID: SQLite has no function for one.
INSERT INTO ledger (only_row, id, created_at)
SELECT 1,
       substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-4' || substr(h, 14, 3) || '-'
           || substr('89ab', 1 + (random() & 3), 1) || substr(h, 18, 3) || '-' || substr(h, 21, 12),
       CAST(unixepoch('subsec') * 1000000 AS INTEGER)
FROM (SELECT lower(hex(randomblob(16))) AS h);

CREATE TABLE accounts (
    name       TEXT    NOT NULL PRIMARY KEY CHECK (name <> ''),
    platform   TEXT    NOT NULL DEFAULT 'x' CHECK (platform = 'x'),
    x_user_id  TEXT    NOT NULL CHECK (x_user_id <> ''),
    username   TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    -- Two names for one X user would be two lanes and two refreshers of one
    -- single-use token.
    UNIQUE (platform, x_user_id)
) STRICT;

CREATE TABLE oauth_tokens (
    id                 TEXT    NOT NULL PRIMARY KEY,
    user_id            TEXT    NOT NULL UNIQUE REFERENCES accounts (name),
    platform           TEXT    NOT NULL DEFAULT 'x' CHECK (platform = 'x'),
    -- Sealed text only: a bug that would store a token in the clear fails here.
    access_token       TEXT    NOT NULL CHECK (access_token GLOB 'jp1.*'),
    refresh_token      TEXT    NOT NULL CHECK (refresh_token GLOB 'jp1.*'),
    expires_at         INTEGER NOT NULL,
    -- refreshed_at plus half of the token's lifetime.
    refresh_after      INTEGER NOT NULL,
    scope              TEXT    NOT NULL,
    -- Grows with every stored pair; successes are fenced by it.
    version            INTEGER NOT NULL CHECK (version > 0),
    refreshed_at       INTEGER NOT NULL,
    lease_id           TEXT,
    lease_until        INTEGER,
    -- When the latest exchange began, until its outcome is known. Once the lease
    -- is over too, nobody knows whether the refresh token is spent.
    refresh_started_at INTEGER,
    -- Claims since the pair was stored: what paces the next one.
    attempts           INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    -- A claim sets it to what a lost answer would leave: a worker that dies
    -- after its claim then leaves just that.
    next_attempt_at    INTEGER,
    due_at             INTEGER NOT NULL GENERATED ALWAYS AS (max(refresh_after, coalesce(next_attempt_at, refresh_after))) VIRTUAL,
    -- The SHA-256 of the refresh token that was imported last, so that the same
    -- import is known again although refreshes have spent the token. It needs
    -- no sealing: what it hashes is random and too long to be guessed.
    imported           BLOB    NOT NULL CHECK (length(imported) = 32),
    -- lastRefreshAt, refreshError, refreshFailedAt, requiresReauth
    metadata           TEXT    NOT NULL DEFAULT '{}' CHECK (json_valid(metadata)),
    requires_reauth    INTEGER NOT NULL GENERATED ALWAYS AS (coalesce(metadata ->> '$.requiresReauth', 0)) VIRTUAL,
    -- What the latest published event says of requires_reauth.
    reauth_told        INTEGER NOT NULL DEFAULT 0,
    CHECK ((lease_id IS NULL) = (lease_until IS NULL)),
    CHECK (lease_id IS NULL OR refresh_started_at IS NOT NULL)
) STRICT;

-- Due tokens, the ones that have been due for longest first.
CREATE INDEX oauth_tokens_due ON oauth_tokens (due_at, id) WHERE requires_reauth = 0;
CREATE INDEX oauth_tokens_untold ON oauth_tokens (user_id) WHERE requires_reauth <> reauth_told;

-- Exchanges of tokens whose exchange before has no known outcome, each written
-- before the token is presented again.
CREATE TABLE refresh_journal (
    token_id       TEXT    NOT NULL REFERENCES oauth_tokens (id),
    version        INTEGER NOT NULL,
    attempt        INTEGER NOT NULL,
    in_doubt_since INTEGER NOT NULL,
    started_at     INTEGER NOT NULL,
    PRIMARY KEY (token_id, version, attempt)
) STRICT;
CREATE INDEX refresh_journal_started ON refresh_journal (started_at);

CREATE TABLE lanes (
    account     TEXT    NOT NULL PRIMARY KEY REFERENCES accounts (name),
    fence       INTEGER NOT NULL DEFAULT 0,
    lease_owner TEXT,
    lease_until INTEGER,
    -- Counts changes, so that a holder sees what came after its snapshot.
    rings       INTEGER NOT NULL DEFAULT 0,
    next_seq    INTEGER NOT NULL DEFAULT 1,
    -- The largest acceptance time handed out. Clocks of workers disagree; an
    -- account's immediate requests are due in the order of acceptance all the
    -- same.
    last_due    INTEGER NOT NULL DEFAULT 0,
    -- When the lane should next run; NULL: with the next wake-up.
    wake_at     INTEGER,
    -- Claims since the last one that was released or posted something, the
    -- present one included.
    lost_claims INTEGER NOT NULL DEFAULT 0 CHECK (lost_claims >= 0),
    -- Calls of the app's window that its holder may still make.
    reserved    INTEGER NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    -- The account's latest pause, even if it has already ended; paused_until is NULL
    -- for a pause that somebody has to end.
    paused_at    INTEGER,
    paused_until INTEGER,
    pause_reason TEXT    NOT NULL DEFAULT '',
    CHECK ((lease_owner IS NULL) = (lease_until IS NULL)),
    CHECK (paused_at IS NOT NULL OR (paused_until IS NULL AND pause_reason = ''))
) STRICT;

CREATE INDEX lanes_wake ON lanes (wake_at, account) WHERE wake_at IS NOT NULL;
CREATE INDEX lanes_reserved ON lanes (account) WHERE reserved > 0;

-- X's windows that all accounts share, near their end, as X last reported them.
CREATE TABLE app_windows (
    name      TEXT    NOT NULL PRIMARY KEY,
    x_reset   INTEGER NOT NULL, -- the end by X's clock, in epoch seconds
    remaining INTEGER NOT NULL
) STRICT;

CREATE TABLE requests (
    account       TEXT    NOT NULL REFERENCES lanes (account),
    id            TEXT    NOT NULL,
    seq           INTEGER NOT NULL, -- of acceptance, per account
    state         TEXT    NOT NULL CHECK (state IN
        ('scheduled', 'queued', 'publishing', 'held', 'published', 'failed', 'unknown', 'cancelled')),
    revision      INTEGER NOT NULL DEFAULT 1,
    announced     INTEGER NOT NULL DEFAULT 0, -- latest revision whose event was published
    event         TEXT    NOT NULL CHECK (event GLOB 'request.*'),
    reason_code   TEXT,
    reason_detail TEXT    NOT NULL DEFAULT '',
    reason_until  INTEGER, -- the end that events show
    hold_until    INTEGER, -- when the hold really ends; NULL: when something ends it
    holds         INTEGER NOT NULL DEFAULT 0 CHECK (holds >= 0),
    attempts      INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    began_at      INTEGER,
    accepted_at   INTEGER NOT NULL,
    due_at        INTEGER NOT NULL,
    publish_at    INTEGER,
    expires_at    INTEGER,
    updated_at    INTEGER NOT NULL,
    metadata      TEXT    NOT NULL DEFAULT '{}' CHECK (json_valid(metadata)),
    body          BLOB    NOT NULL,
    digest        BLOB    NOT NULL,
    cost_micros   INTEGER NOT NULL DEFAULT 0 CHECK (cost_micros >= 0), -- estimated, in millionths of a US dollar
    PRIMARY KEY (account, id),
    UNIQUE (account, seq),
    CHECK (announced BETWEEN 0 AND revision),
    -- A request that waits or failed has a reason; no other has one.
    CHECK ((reason_code IS NOT NULL) = (state IN ('held', 'failed', 'unknown'))),
    CHECK (hold_until IS NULL OR state = 'held'),
    CHECK (began_at IS NOT NULL OR state NOT IN ('publishing', 'published', 'unknown'))
) STRICT;

-- The queue of an account, and the begun requests in it, which go first.
CREATE INDEX requests_line ON requests (account, due_at, seq)
    WHERE state NOT IN ('published', 'failed', 'cancelled');
CREATE INDEX requests_begun ON requests (account, due_at, seq)
    WHERE began_at IS NOT NULL AND state NOT IN ('published', 'failed', 'cancelled');
CREATE INDEX requests_held ON requests (account, reason_code) WHERE state = 'held';
CREATE INDEX requests_unannounced ON requests (updated_at) WHERE announced < revision;
-- Lists, the latest first; counts.
CREATE INDEX requests_accepted ON requests (accepted_at DESC, seq DESC, account);
CREATE INDEX requests_state ON requests (state);

CREATE TABLE posts (
    account    TEXT    NOT NULL,
    request_id TEXT    NOT NULL,
    idx        INTEGER NOT NULL CHECK (idx >= 0),
    state      TEXT    NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sending', 'posted', 'failed')),
    parent_id  TEXT    NOT NULL DEFAULT '',
    -- Unique: no post on X is ever taken for two of ours.
    post_id    TEXT    UNIQUE CHECK (post_id <> ''),
    media_ids  TEXT    NOT NULL DEFAULT '[]' CHECK (json_valid(media_ids)),
    media      TEXT    NOT NULL DEFAULT '[]' CHECK (json_valid(media)), -- what is known of each, as store.Media
    text_hash  BLOB, -- SHA-256; NULL where there is no text
    sent_at    INTEGER, -- commit of the latest intent
    not_after  INTEGER, -- the latest moment at which it may be sent
    attempt    INTEGER, -- fence of the latest intent
    -- Of a post whose answer was lost:
    doubt_since INTEGER, -- the first such intent
    looks      INTEGER NOT NULL DEFAULT 0, -- at the account's timeline, in vain
    absent_at  INTEGER, -- the first timeline check that did not find it
    PRIMARY KEY (account, request_id, idx),
    FOREIGN KEY (account, request_id) REFERENCES requests (account, id),
    CHECK ((state = 'posted') = (post_id IS NOT NULL)),
    CHECK (state <> 'sending' OR (sent_at IS NOT NULL AND not_after IS NOT NULL AND attempt IS NOT NULL))
) STRICT, WITHOUT ROWID;

-- An account posts one thing at a time: the lane's promise, held here too.
CREATE UNIQUE INDEX posts_sending ON posts (account, request_id) WHERE state = 'sending';

-- The latest posts of an account that are known to be live.
CREATE INDEX posts_live ON posts (account, sent_at) WHERE state = 'posted';

-- Who else posts the same text, and when.
CREATE INDEX posts_text ON posts (text_hash, state, sent_at) WHERE text_hash IS NOT NULL;

-- Messages that never became requests, once per place in the stream, for 30
-- days. The body is whole: NATS bounds its size.
CREATE TABLE refusals (
    stored   INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    account  TEXT    NOT NULL,
    id       TEXT    NOT NULL,
    code     TEXT    NOT NULL,
    problems TEXT    NOT NULL CHECK (json_valid(problems)),
    body     BLOB    NOT NULL,
    PRIMARY KEY (stored, sequence)
) STRICT;

CREATE TABLE refresh_rounds (
    id         TEXT    NOT NULL PRIMARY KEY,
    opened_at  INTEGER NOT NULL,
    expires_by INTEGER NOT NULL, -- the latest expiry that was due
    total      INTEGER NOT NULL,
    batches    INTEGER NOT NULL,
    announced  INTEGER NOT NULL DEFAULT 0 CHECK (announced IN (0, 1))
) STRICT;

-- One row for each counted batch. The round's sums are read from here, so that a batch
-- reported twice counts once.
CREATE TABLE refresh_batches (
    round     TEXT    NOT NULL REFERENCES refresh_rounds (id),
    batch     INTEGER NOT NULL,
    refreshed INTEGER NOT NULL,
    failed    INTEGER NOT NULL,
    skipped   INTEGER NOT NULL,
    done_at   INTEGER NOT NULL,
    PRIMARY KEY (round, batch)
) STRICT, WITHOUT ROWID;

-- Named leases, for work that one worker does for all.
CREATE TABLE leases (
    name  TEXT    NOT NULL PRIMARY KEY,
    owner TEXT    NOT NULL,
    until INTEGER NOT NULL
) STRICT;

-- One-time links by which people connect accounts. Token, state and browser are
-- random and long: of each there is only its SHA-256. The columns of the attempt
-- are of the newest; its verifier goes when it is taken.
CREATE TABLE connect_links (
    token_hash         BLOB    NOT NULL PRIMARY KEY CHECK (length(token_hash) = 32),
    account            TEXT    NOT NULL CHECK (account <> ''), -- it need not exist yet
    return_to          TEXT    NOT NULL,
    created_at         INTEGER NOT NULL,
    expires_at         INTEGER NOT NULL,
    used_at            INTEGER, -- when an account was connected
    attempt_state      BLOB    UNIQUE CHECK (length(attempt_state) = 32),
    attempt_browser    BLOB    CHECK (length(attempt_browser) = 32),
    attempt_verifier   TEXT    CHECK (attempt_verifier GLOB 'jp1.*'), -- sealed
    attempt_expires_at INTEGER,
    busy_until         INTEGER, -- while the attempt is being finished
    CHECK ((attempt_state IS NULL) = (attempt_browser IS NULL)),
    CHECK ((attempt_state IS NULL) = (attempt_expires_at IS NULL)),
    CHECK (attempt_verifier IS NULL OR attempt_state IS NOT NULL)
) STRICT, WITHOUT ROWID;

CREATE INDEX connect_links_expired ON connect_links (expires_at);
