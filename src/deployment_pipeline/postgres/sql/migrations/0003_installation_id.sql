-- What tells this installation's keys from another's on the same Redis: eight hex digits.
ALTER TABLE dp_installation
    ADD COLUMN id text NOT NULL DEFAULT left(replace(gen_random_uuid()::text, '-', ''), 8);
