"""A registered model, loaded to score."""
