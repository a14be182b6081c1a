"""Delta tables: the only writer, its lease, the log, the quarantine."""
