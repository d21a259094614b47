-- A request is found by its key alone: plans that were made while the ledger was empty took
-- the index of the order of acceptance instead, and read all requests of the account. That
-- order is given under the lane's lock.

-- Older workers go on.
-- +goose Up

ALTER TABLE requests DROP CONSTRAINT requests_account_seq_key;

-- +goose Down

ALTER TABLE requests ADD UNIQUE (account, seq);
