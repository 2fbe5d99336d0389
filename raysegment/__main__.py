"""`python -m raysegment`."""

from raysegment.cli import main

main()
