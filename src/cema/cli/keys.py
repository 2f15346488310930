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
    encrypt: Annotated[
        bool, typer.Option("--encrypt", show_default="off", help="Encrypt the private key with a passphrase.")
    ] = False,
    passphrase: Annotated[
        str | None,
        typer.Option(
            help="Where the passphrase is: file:PATH, env:NAME or fd:NUMBER.",
            show_default="asked for on the terminal",
        ),
    ] = None,
) -> None:
    """Make an ed25519 key pair: PATH (private, mode 0600) and PATH with the suffix .pub (public)."""
    from cema.formats.keys import generate_key, key_id

    key = generate_key(path, passphrase=_passphrase(passphrase) if encrypt or passphrase else None)
    typer.echo(
        f"private key {path}\npublic key  {path.with_suffix('.pub')}\nkey id      {key_id(key.public_key())}"
    )


def _passphrase(source: str | None) -> bytes:
    """Read a new passphrase, or ask for it twice."""
    from cema.cloud.signing.passphrase import read_passphrase

    if source is not None:
        return read_passphrase(source)
    text: str = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    return text.encode()
