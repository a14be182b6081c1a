"""From raw logs to samples: sources, ingest, build, and the contract that says what a sample is."""
