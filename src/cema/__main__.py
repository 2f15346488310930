"""`python -m cema` is the `cema` command."""

from cema.cli.main import main

main()
