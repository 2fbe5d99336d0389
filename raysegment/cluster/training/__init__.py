"""Training on workers and nodes that may die."""
