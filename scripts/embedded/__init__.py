"""The embedded run: components, days, what it prints."""
