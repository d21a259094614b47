-- The deletion of a request's posts: that somebody asked for it, when a lane continues
-- with it, and what was deleted.

-- Older workers stop.
-- +goose Up

ALTER TABLE requests ADD COLUMN deletion json; -- null: nobody asked for it
-- When a lane continues with it; null: never, or not before somebody asks again.
ALTER TABLE requests ADD COLUMN unpublish_at timestamptz;
CREATE INDEX requests_unpublish ON requests (account, unpublish_at) WHERE unpublish_at IS NOT NULL;
-- The earliest of the account's requests.
ALTER TABLE lanes ADD COLUMN unpublish_at timestamptz;
ALTER TABLE posts ADD COLUMN deleted_at timestamptz;

-- +goose Down

ALTER TABLE posts DROP COLUMN deleted_at;
ALTER TABLE lanes DROP COLUMN unpublish_at;
DROP INDEX requests_unpublish;
ALTER TABLE requests DROP COLUMN unpublish_at;
ALTER TABLE requests DROP COLUMN deletion;
