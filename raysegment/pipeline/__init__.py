"""One scan or one batch from end to end, without Ray."""
