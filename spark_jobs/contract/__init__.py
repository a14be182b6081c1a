"""What an event and a sample are, declared once; standard library only."""
