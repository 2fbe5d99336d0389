"""The life of one output folder: its record and identity, lock, what is printed and logged, its closing words."""
