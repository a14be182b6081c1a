"""Measuring what the rules bound."""
