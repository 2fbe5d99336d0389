"""Keras only: networks, losses, the fitting of one worker, the bundle, and the inference graph."""

import os

# TensorFlow reads this once, when it is first imported; what it says of missing GPUs is for its developers.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
