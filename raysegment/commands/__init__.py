"""One module per verb: its story, from the options to the result."""
