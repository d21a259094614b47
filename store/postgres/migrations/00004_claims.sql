-- Each claim of a lane has an id of its own. With it a worker whose claim got no answer
-- takes back what it may hold.

-- Older workers stop.
-- +goose Up

ALTER TABLE lanes ADD COLUMN claim_id uuid;

-- +goose Down

ALTER TABLE lanes DROP COLUMN claim_id;
