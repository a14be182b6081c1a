"""The evidence: which ranker is worth how much on which log, by one protocol."""
