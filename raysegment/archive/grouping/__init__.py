"""Which files make a scan."""
