-- What replicas of this level and above can read and would refuse may be stored (release.py). Raised by
-- `migrate --finish`, when no older replica runs any more.
ALTER TABLE dp_installation ADD COLUMN min_level integer NOT NULL DEFAULT 1;
