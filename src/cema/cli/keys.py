"""`cema keys`: the keys that sign updates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cema.cli.actor import command_line_actor
from cema.cli.cohorts import Config, one_cohort, opened, utc

if TYPE_CHECKING:
    from cema.cloud.config import CloudConfig, CohortConfig
    from cema.formats.keyring import Keyring

__all__ = ["app"]

app = typer.Typer(
    help="Make, exchange and revoke the keys that sign updates.", no_args_is_help=True, rich_markup_mode=None
)

Cohort = Annotated[
    str | None, typer.Option(help="The cohort.", show_default="every one of the configuration")
]
Days = Annotated[
    float, typer.Option(help="How long devices that do not have the document yet may accept it.")
]


@app.callback()
def keys() -> None:
    """Make, exchange and revoke the keys that sign updates."""


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


@app.command()
def rotate(
    config: Config,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (.pub) that devices trust from now on; may be repeated.", show_default="none"
        ),
    ] = None,
    retire: Annotated[
        list[str] | None,
        typer.Option(
            help="Id of a key that signs nothing new from now on; may be repeated.", show_default="none"
        ),
    ] = None,
    cohort: Cohort = None,
    days: Days = 365.0,
) -> None:
    """Tell devices which keys to trust: a signed document that they fetch. Without options the last one is renewed."""
    from cema.formats.keys import load_public_keys

    _change(config, cohort, trust=load_public_keys(trust or []).values(), retire=retire or [], days=days)


@app.command()
def revoke(
    key: Annotated[list[str], typer.Argument(help="Id of the key, as `cema keys list` shows it.")],
    config: Config,
    cohort: Cohort = None,
    days: Days = 365.0,
) -> None:
    """Revoke a key for ever: devices refuse what it alone has signed, also what they run."""
    _change(config, cohort, revoke=key, days=days)


@app.command(name="list")
def list_(config: Config, cohort: Cohort = None) -> None:
    """List the keys that devices trust which have their bundle and all documents."""
    from cema.cloud.signing.trust import cohort_keyring
    from cema.formats.bundle import Bundle

    with opened(config) as (settings, store):
        for each in _chosen(settings, cohort):
            _show(cohort_keyring(store, each.name, Bundle.load(Path(each.bundle))))


def _change(path: Path, cohort: str | None, *, days: float, **changes: Any) -> None:
    from cema.cloud.signing.signers import open_signers
    from cema.cloud.signing.trust import change_keys
    from cema.formats.bundle import Bundle

    with opened(path) as (config, store):
        chosen = _chosen(config, cohort)
        signers = open_signers(config.signers)
        for each in chosen:
            bundle = Bundle.load(Path(each.bundle))
            store.open_cohort(each.name, base=bundle.manifest.base)
            _show(
                change_keys(
                    store,
                    each.name,
                    bundle,
                    signers,
                    now=time.time(),
                    days=days,
                    actor=command_line_actor(),
                    **changes,
                )
            )


def _chosen(config: CloudConfig, cohort: str | None) -> list[CohortConfig]:
    """Return the cohort that was named, or all."""
    name = None if cohort is None else one_cohort(config, cohort)
    return [each for each in config.cohort if name in {None, each.name}]


def _show(keyring: Keyring) -> None:
    document = "no document: the bundle's keys"
    if keyring.serial:
        until = utc(keyring.expires, milliseconds=False)
        document = f"document {keyring.serial}, to be accepted until {until} UTC"
    typer.echo(f"cohort {keyring.cohort}: {document}")
    for name in sorted(keyring.known):
        typer.echo(f"  {name} {'trusted' if name in keyring.trusted else 'retired'}")
    for name in sorted(keyring.revoked_ids):
        typer.echo(f"  {name} revoked")
