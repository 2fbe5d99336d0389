"""Segmenting an archive on workers and nodes that may die."""
