"""Keras only: networks, losses, the fitting of one worker, the bundle, and the inference graph."""
