-- One worker at a time reads a partition of the job stream. A lease with a fence says
-- which one. A job that fails by itself is counted by its place in the stream, so that
-- the count outlives the worker and its delivery.

-- Older workers stop.
-- +goose Up

ALTER TABLE leases ADD COLUMN fence bigint NOT NULL DEFAULT 1;

CREATE TABLE intake_failures (
    sequence bigint NOT NULL,
    stored   timestamptz NOT NULL,
    failures integer NOT NULL CHECK (failures > 0),
    error    text NOT NULL, -- the latest
    PRIMARY KEY (stored, sequence)
);

-- +goose Down

DROP TABLE intake_failures;
ALTER TABLE leases DROP COLUMN fence;
