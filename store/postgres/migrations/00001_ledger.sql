-- Every rule that a row can break is a constraint here, so that a faulty worker, or a
-- person with psql, cannot write what the code never expects.
--
-- The hot tables leave room in each page for the new version of a row, and are vacuumed
-- after a fixed number of dead rows. A row of lanes or requests is rewritten several
-- times for each post. With the default of a fifth of the table, an index of a large
-- table would collect millions of dead entries.

-- Older workers stop.
-- +goose Up

CREATE TABLE ledger (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- canary is sealed with the key that was in use first. A worker that cannot open it
    -- has the wrong key.
    canary     text,
    only_row   boolean NOT NULL DEFAULT true UNIQUE CHECK (only_row)
);
INSERT INTO ledger DEFAULT VALUES;

CREATE TABLE accounts (
    name       text PRIMARY KEY,
    platform   text NOT NULL DEFAULT 'x' CHECK (platform = 'x'),
    x_user_id  text NOT NULL CHECK (x_user_id <> ''),
    username   text NOT NULL,
    created_at timestamptz NOT NULL,
    -- Two names for one X user would be two lanes and two token pairs that
    -- revoke each other.
    CONSTRAINT accounts_x_user UNIQUE (platform, x_user_id)
);

CREATE TABLE oauth_tokens (
    id                 uuid PRIMARY KEY,
    user_id            text NOT NULL UNIQUE REFERENCES accounts (name),
    platform           text NOT NULL DEFAULT 'x' CHECK (platform = 'x'),
    access_token       text NOT NULL CHECK (access_token LIKE 'jp1.%'), -- sealed, never plain
    refresh_token      text NOT NULL CHECK (refresh_token LIKE 'jp1.%'),
    expires_at         timestamptz NOT NULL, -- of the access token
    -- refresh_after is half of the lifetime after the last success.
    refresh_after      timestamptz NOT NULL,
    scope              text NOT NULL,
    version            bigint NOT NULL CHECK (version > 0),
    refreshed_at       timestamptz NOT NULL,
    lease_id           uuid,
    lease_until        timestamptz,
    -- The start of the latest exchange, until its outcome is known. Once the lease is
    -- over, the refresh token may be spent: the exchange is in doubt.
    refresh_started_at timestamptz,
    -- Claims since the pair was stored. They pace the next one.
    attempts           integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    -- A claim writes here what a lost answer would leave, so that a worker that is
    -- killed after its claim leaves the same.
    next_attempt_at    timestamptz,
    due_at             timestamptz NOT NULL GENERATED ALWAYS AS (greatest(refresh_after, next_attempt_at)) STORED,
    -- The SHA-256 of the refresh token that was imported last. It identifies a repeated
    -- import even after the token was spent. The hash of such a long random value is
    -- safe to store unsealed, because it cannot be guessed.
    imported           bytea NOT NULL CHECK (octet_length(imported) = 32),
    metadata           jsonb NOT NULL DEFAULT '{}',
    requires_reauth    boolean NOT NULL GENERATED ALWAYS AS
        (coalesce((metadata ->> 'requiresReauth')::boolean, false)) STORED,
    -- What the latest published event says of requires_reauth.
    reauth_told        boolean NOT NULL DEFAULT false,
    CHECK ((lease_id IS NULL) = (lease_until IS NULL)),
    CHECK (lease_id IS NULL OR refresh_started_at IS NOT NULL)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
-- A claim takes from its front. Claimed tokens move behind the present, so that no
-- token that may not be claimed gathers there.
CREATE INDEX oauth_tokens_due ON oauth_tokens (due_at, id) WHERE NOT requires_reauth;
CREATE INDEX oauth_tokens_untold ON oauth_tokens (user_id) WHERE requires_reauth <> reauth_told;

-- Every exchange of a token whose earlier exchange has no known outcome. The
-- entry is committed before the token is presented again.
CREATE TABLE refresh_journal (
    token_id       uuid NOT NULL REFERENCES oauth_tokens (id),
    version        bigint NOT NULL,
    attempt        integer NOT NULL,
    in_doubt_since timestamptz NOT NULL, -- the start of the exchange before
    started_at     timestamptz NOT NULL,
    PRIMARY KEY (token_id, version, attempt)
);
CREATE INDEX refresh_journal_started ON refresh_journal (started_at);

-- A round takes the tokens that were due when it was opened, and no others.
CREATE TABLE refresh_rounds (
    id         text PRIMARY KEY,
    total      integer NOT NULL CHECK (total >= 0),
    batches    integer NOT NULL CHECK (batches >= 0),
    opened_at  timestamptz NOT NULL,
    expires_by timestamptz NOT NULL, -- the latest expiry that was due
    announced  boolean NOT NULL DEFAULT false
);

-- A batch is a row, so that counting it twice is impossible.
CREATE TABLE refresh_batches (
    round     text NOT NULL REFERENCES refresh_rounds (id),
    batch     integer NOT NULL CHECK (batch >= 0),
    refreshed integer NOT NULL CHECK (refreshed >= 0),
    failed    integer NOT NULL CHECK (failed >= 0),
    skipped   integer NOT NULL CHECK (skipped >= 0),
    done_at   timestamptz NOT NULL,
    PRIMARY KEY (round, batch)
);

CREATE TABLE lanes (
    account     text PRIMARY KEY REFERENCES accounts (name),
    fence       bigint NOT NULL DEFAULT 0,
    lease_owner text,
    lease_until timestamptz,
    rings       bigint NOT NULL DEFAULT 0,
    next_seq    bigint NOT NULL DEFAULT 1,
    last_due    timestamptz, -- the latest due time given to an immediate request
    wake_at     timestamptz, -- null: with the next wake-up
    -- Claims since the last one that was released or posted something, including the
    -- present one.
    lost_claims integer NOT NULL DEFAULT 0,
    -- Calls of the app's window that its holder may still make.
    reserved    integer NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    -- The account's latest pause; one that has ended by itself stays.
    paused_at    timestamptz,
    paused_until timestamptz, -- null: until somebody resumes it
    pause_reason text NOT NULL DEFAULT '',
    CHECK ((lease_owner IS NULL) = (lease_until IS NULL)),
    CHECK (paused_at IS NOT NULL OR (paused_until IS NULL AND pause_reason = ''))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX lanes_due ON lanes (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX lanes_reserved ON lanes (account) WHERE reserved > 0;

-- X's windows that all accounts share, near their end, as X last reported them.
CREATE TABLE app_windows (
    name      text PRIMARY KEY,
    x_reset   bigint NOT NULL, -- the end by X's clock, in epoch seconds
    remaining integer NOT NULL
);

CREATE TABLE requests (
    account       text NOT NULL REFERENCES lanes (account),
    id            text NOT NULL,
    seq           bigint NOT NULL,
    state         text NOT NULL CHECK (state IN
        ('scheduled', 'queued', 'publishing', 'held', 'published', 'failed', 'unknown', 'cancelled')),
    revision      bigint NOT NULL CHECK (revision > 0),
    announced     bigint NOT NULL DEFAULT 0,
    event         text NOT NULL,
    reason_code   text,
    reason_detail text NOT NULL DEFAULT '',
    reason_until  timestamptz,
    hold_until    timestamptz,
    holds         integer NOT NULL DEFAULT 0,
    attempts      integer NOT NULL DEFAULT 0,
    began_at      timestamptz, -- the first intent
    accepted_at   timestamptz NOT NULL,
    due_at        timestamptz NOT NULL,
    publish_at    timestamptz,
    expires_at    timestamptz,
    updated_at    timestamptz NOT NULL,
    metadata      json, -- not jsonb, which refuses the escape of a zero character
    body          bytea NOT NULL,
    digest        bytea NOT NULL,
    cost_micros   bigint NOT NULL DEFAULT 0 CHECK (cost_micros >= 0), -- estimated, in millionths of a US dollar
    PRIMARY KEY (account, id),
    UNIQUE (account, seq),
    CHECK (announced <= revision),
    -- A request that waits, failed or is in doubt has a reason; no other has one.
    CHECK ((state IN ('held', 'failed', 'unknown')) = (reason_code IS NOT NULL)),
    CHECK (state = 'held' OR hold_until IS NULL),
    CHECK (began_at IS NOT NULL OR state NOT IN ('publishing', 'published', 'unknown'))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
-- An account's queue, and the begun requests in it, which go first.
CREATE INDEX requests_line ON requests (account, due_at, seq)
    WHERE state IN ('scheduled', 'queued', 'publishing', 'held', 'unknown');
CREATE INDEX requests_begun ON requests (account, due_at, seq)
    WHERE state IN ('scheduled', 'queued', 'publishing', 'held', 'unknown') AND began_at IS NOT NULL;
CREATE INDEX requests_unannounced ON requests (updated_at) WHERE announced < revision;
CREATE INDEX requests_accepted ON requests (accepted_at, seq);
CREATE INDEX requests_state ON requests (state, accepted_at, seq);

CREATE TABLE posts (
    account    text NOT NULL,
    request_id text NOT NULL,
    idx        integer NOT NULL CHECK (idx >= 0),
    state      text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sending', 'posted', 'failed')),
    parent_id  text NOT NULL DEFAULT '',
    -- One post on X belongs to one post of one request; otherwise it could explain two
    -- lost answers.
    post_id    text CONSTRAINT posts_post_id UNIQUE CHECK (post_id <> ''),
    media_ids  text[] NOT NULL DEFAULT '{}',
    media      json NOT NULL DEFAULT '[]', -- what is known of each, as store.Media
    text_hash  bytea, -- SHA-256; null if there is no text
    sent_at    timestamptz,
    not_after  timestamptz,
    attempt    bigint NOT NULL DEFAULT 0,
    -- Of a post whose answer was lost: the first such intent, how many timeline checks
    -- did not find it, and the first of them.
    doubt_since timestamptz,
    looks      integer NOT NULL DEFAULT 0,
    absent_at  timestamptz,
    PRIMARY KEY (account, request_id, idx),
    FOREIGN KEY (account, request_id) REFERENCES requests (account, id),
    CHECK ((state = 'posted') = (post_id IS NOT NULL)),
    -- A post that may be live has the time since when, and until when it may be sent.
    CHECK (state <> 'sending' OR (sent_at IS NOT NULL AND not_after IS NOT NULL AND attempt > 0))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- A thread is sent one post at a time.
CREATE UNIQUE INDEX posts_sending ON posts (account, request_id) WHERE state = 'sending';

-- The latest posts of an account that are known to be live.
CREATE INDEX posts_live ON posts (account, sent_at) WHERE state = 'posted';

-- Other accounts with the same text, and when.
CREATE INDEX posts_text ON posts (text_hash, state, sent_at) WHERE text_hash IS NOT NULL;

-- A message that never became a request, by its place in the job stream. Its body is
-- stored whole: NATS bounds its size, and the row is deleted after 30 days.
CREATE TABLE refusals (
    sequence bigint NOT NULL,
    stored   timestamptz NOT NULL,
    account  text NOT NULL,
    id       text NOT NULL,
    code     text NOT NULL,
    problems json NOT NULL,
    body     bytea NOT NULL,
    PRIMARY KEY (sequence, stored)
);
CREATE INDEX refusals_latest ON refusals (stored, sequence);

CREATE TABLE leases (
    name  text PRIMARY KEY,
    owner text NOT NULL,
    until timestamptz NOT NULL
);

-- One-time links by which people connect accounts. Token, state and browser are random
-- and long; only their SHA-256 is stored. The attempt is the newest one; taking it
-- removes its verifier.
CREATE TABLE connect_links (
    token_hash         bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    account            text NOT NULL CHECK (account <> ''), -- may not exist yet
    return_to          text NOT NULL,
    created_at         timestamptz NOT NULL,
    expires_at         timestamptz NOT NULL,
    used_at            timestamptz, -- when an account was connected by it
    attempt_state      bytea CONSTRAINT connect_links_state UNIQUE CHECK (octet_length(attempt_state) = 32),
    attempt_browser    bytea CHECK (octet_length(attempt_browser) = 32),
    attempt_verifier   text CHECK (attempt_verifier LIKE 'jp1.%'), -- sealed
    attempt_expires_at timestamptz,
    busy_until         timestamptz, -- while the attempt is being finished
    CHECK ((attempt_state IS NULL) = (attempt_browser IS NULL)),
    CHECK ((attempt_state IS NULL) = (attempt_expires_at IS NULL)),
    CHECK (attempt_verifier IS NULL OR attempt_state IS NOT NULL)
);
CREATE INDEX connect_links_expired ON connect_links (expires_at);

-- +goose Down

DROP TABLE connect_links, app_windows, leases, refusals, posts, requests, lanes, refresh_batches, refresh_rounds, refresh_journal, oauth_tokens, accounts,
    ledger;
