"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the `cema` command; an error of the project's own is printed as one line and ends with status 1."""
    from cema.cli._app import app
    from cema.errors import CemaError

    try:
        app()
    except CemaError as error:
        print(f"cema: {error}", file=sys.stderr)
        sys.exit(1)
