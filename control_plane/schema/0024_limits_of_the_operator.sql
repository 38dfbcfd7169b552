-- Limits that whoever runs the installation has set: an org lowers them, and does not raise them.

ALTER TABLE call_limits ADD COLUMN set_by_operator boolean NOT NULL DEFAULT false;
ALTER TABLE rate_limits ADD COLUMN set_by_operator boolean NOT NULL DEFAULT false;
ALTER TABLE concurrency_limits ADD COLUMN set_by_operator boolean NOT NULL DEFAULT false;
