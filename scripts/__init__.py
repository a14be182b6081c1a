"""The commands behind `make`: set up, run, backfill, look, check."""
