"""From facts to verdicts and data docs."""
