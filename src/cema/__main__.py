"""`python -m cema` is the `cema` command."""

from cema.cli import main

main()
