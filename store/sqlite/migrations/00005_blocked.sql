-- Older workers stop.
-- +goose Up

-- What X said that paused an account: the code, and when it is asked again. '' where a
-- person paused it.
ALTER TABLE lanes ADD COLUMN pause_cause TEXT NOT NULL DEFAULT '';
