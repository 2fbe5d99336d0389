"""What the network sees of a scan: slices with their neighbours, and windows of them."""
