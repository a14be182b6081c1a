"""From the samples table to tensors."""
