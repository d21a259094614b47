-- The trace of a request: W3C's traceparent of the span that accepted it, or of its producer;
-- '' where nobody traces.

-- Older workers go on.
-- +goose Up

ALTER TABLE requests ADD COLUMN trace text NOT NULL DEFAULT '';

-- +goose Down

ALTER TABLE requests DROP COLUMN trace;
