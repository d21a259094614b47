-- A calendar shows the requests of all accounts by the time at which they are or were due. The
-- condition, which always holds, keeps the index from the queries of one account's queue.

-- Older workers go on.
-- +goose Up

CREATE INDEX requests_due ON requests (due_at, account, seq) WHERE seq > 0;
