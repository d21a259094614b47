-- The field's terms in place of our own.

-- Older workers stop.
-- +goose Up

ALTER TABLE ledger RENAME COLUMN canary TO key_check;
ALTER TABLE lanes RENAME COLUMN rings TO generation;
ALTER TABLE kept RENAME TO desired;
ALTER TABLE turns RENAME TO pause_changes;
ALTER TABLE pause_changes RENAME COLUMN turned_at TO changed_at;

UPDATE desired SET name = 'signing_key' WHERE name = 'seal';
UPDATE desired
SET name = 'pause.' || substr(name, 6),
    value = CAST(replace(replace(replace(CAST(value AS TEXT),
        '"code":"app_paused"', '"code":"paused_by_hand"'), '{"stop":', '{"pause":'),
        '"scope":', '"target":') AS BLOB)
WHERE name LIKE 'stop.%';
UPDATE requests SET reason_code = 'posting_limit' WHERE reason_code = 'fuse';
UPDATE requests SET reason_code = 'app_paused' WHERE reason_code = 'app_stopped';

-- +goose Down

UPDATE requests SET reason_code = 'app_stopped' WHERE reason_code = 'app_paused';
UPDATE requests SET reason_code = 'fuse' WHERE reason_code = 'posting_limit';
UPDATE desired
SET name = 'stop.' || substr(name, 7),
    value = CAST(replace(replace(replace(CAST(value AS TEXT),
        '"code":"paused_by_hand"', '"code":"app_paused"'), '{"pause":', '{"stop":'),
        '"target":', '"scope":') AS BLOB)
WHERE name LIKE 'pause.%';
UPDATE desired SET name = 'seal' WHERE name = 'signing_key';

ALTER TABLE pause_changes RENAME COLUMN changed_at TO turned_at;
ALTER TABLE pause_changes RENAME TO turns;
ALTER TABLE desired RENAME TO kept;
ALTER TABLE lanes RENAME COLUMN generation TO rings;
ALTER TABLE ledger RENAME COLUMN key_check TO canary;
