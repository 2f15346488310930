"""`cema keys`: the keys that sign updates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="Make the keys that sign updates.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def keys() -> None:
    """Make the keys that sign updates."""


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="Where the private key goes; the public one gets .pub.")],
) -> None:
    """Make an ed25519 key pair: PATH (private, mode 0600) and PATH with the suffix .pub (public)."""
    from cema.formats.keys import generate_key, key_id, load_private_key

    generate_key(path)
    identity = key_id(load_private_key(path).public_key())
    typer.echo(f"private key {path}\npublic key  {path.with_suffix('.pub')}\nkey id      {identity}")
