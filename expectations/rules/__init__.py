"""The rules of every gate."""
