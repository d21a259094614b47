-- Each claim of a lane has an id of its own: a worker whose claim was never answered
-- takes back by it what it may hold.

-- +goose Up

ALTER TABLE lanes ADD COLUMN claim_id uuid;

-- +goose Down

ALTER TABLE lanes DROP COLUMN claim_id;
