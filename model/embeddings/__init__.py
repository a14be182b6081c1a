"""Embedding tables, and the numbers beside them."""
