"""`python -m compatkit`."""

from compatkit.cli import main

main()
