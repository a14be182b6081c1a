"""What `make new-dataset` writes from a sample of somebody's logs."""
