"""`cema device`: who may talk to the cloud."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cema._util.files import sync_folder, unfinished, write_synced
from cema.cli.actor import command_line_actor
from cema.cli.cohorts import Config, opened, utc
from cema.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from cema.cloud.store.devices import DeviceRegister

__all__ = ["app"]

app = typer.Typer(help="Add, list, renew and revoke devices.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="The device's name: letters, digits, '.', '_' and '-'.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Write the token to this new file, readable by you alone.", show_default="printed, to no file"
    ),
]


class _Role(enum.StrEnum):
    DEVICE = "device"
    OPERATOR = "operator"
    ADMIN = "admin"


@app.callback()
def device() -> None:
    """Add, list, renew and revoke devices."""


@app.command()
def add(
    name: Name,
    config: Config,
    cohort: Annotated[
        str | None,
        typer.Option(help="The cohort it belongs to.", show_default="none: for an operator or admin of all"),
    ] = None,
    role: Annotated[
        _Role,
        typer.Option(help="A device uploads and fetches; an operator reads; an admin acts on versions too."),
    ] = _Role.DEVICE,
    out: Out = None,
) -> None:
    """Register a device and give out its token, this once: the cloud keeps only the token's hash."""
    with _register(config) as devices:
        _give_out(lambda: devices.add(name, cohort=cohort, role=role.value), name, out)


@app.command()
def renew(name: Name, config: Config, out: Out = None) -> None:
    """Give a device a new token; the old one stops working at once."""
    with _register(config) as devices:
        if not hasattr(devices, "renew"):
            raise StoreError(
                "this store cannot renew tokens; revoke the device and add it under another name"
            )
        _give_out(lambda: devices.renew(name), name, out)


@app.command(name="list")
def list_(config: Config) -> None:
    """List the devices, revoked ones too."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "role", "cohort", "added", "revoked")
    with _register(config) as devices:
        for entry in devices.list():
            table.add_row(
                entry.name,
                entry.role,
                entry.cohort or "(all)",
                _moment(entry.created_at),
                _moment(entry.revoked_at),
            )
    Console().print(table)


@app.command()
def revoke(name: Name, config: Config) -> None:
    """End a device's token, at once; the name stays taken."""
    with _register(config) as devices:
        devices.revoke(name)
    typer.echo(f"revoked {name}")


def _give_out(make: Callable[[], str], name: str, out: Path | None) -> None:
    """Print a token that is made now, or write it to a new file; nothing is made that could not be written."""
    if out is None:
        typer.echo(make())
        return
    try:
        with unfinished(out) as temporary:
            write_synced(temporary, b"", mode=0o600)
            if out.exists() or out.is_symlink():
                raise FileExistsError
            with temporary.open("w") as file:
                file.write(make() + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, out)
        sync_folder(out.parent)
    except FileExistsError:
        raise ConfigError(
            f"{out}: there is such a file already; remove it, or name another with --out"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{out}: cannot be written ({error.strerror}); name another file with --out"
        ) from error
    typer.echo(f"token of {name}: {out}")


@contextmanager
def _register(path: Path) -> Iterator[DeviceRegister]:
    """Open the register of a configured cloud, running or not; what is done is recorded, where the store can."""
    from cema.cloud.store.audits import AuditStore

    with opened(path) as (config, store):
        names = [cohort.name for cohort in config.cohort]
        if isinstance(store, AuditStore):
            yield store.audited_devices(names, actor=command_line_actor())
        else:
            yield store.devices(names)


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else f"{utc(seconds, milliseconds=False)} UTC"
