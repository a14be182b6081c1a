"""Events to samples."""
