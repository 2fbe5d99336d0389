"""What runs a network on batches of slices."""
