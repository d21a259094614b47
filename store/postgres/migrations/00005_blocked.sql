-- Older workers stop.
-- +goose Up

-- What X said that paused an account: the code, and when X is asked again. '' if a
-- person paused it.
ALTER TABLE lanes ADD COLUMN pause_cause text NOT NULL DEFAULT '';

-- +goose Down

ALTER TABLE lanes DROP COLUMN pause_cause;
