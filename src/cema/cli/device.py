"""`cema device`: who may talk to the cloud."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cema.cloud.store.devices import DeviceRegister

__all__ = ["app"]

app = typer.Typer(help="Add, list and revoke devices.", no_args_is_help=True)

Config = Annotated[Path, typer.Option(help="The cloud's configuration (TOML).")]
Name = Annotated[str, typer.Argument(help="The device's name: letters, digits, '.', '_' and '-'.")]


class _Role(enum.StrEnum):
    DEVICE = "device"
    OPERATOR = "operator"


@app.callback()
def device() -> None:
    """Add, list and revoke devices."""


@app.command()
def add(
    name: Name,
    config: Config,
    cohort: Annotated[
        str | None, typer.Option(help="The cohort it belongs to; an operator may see all.")
    ] = None,
    role: Annotated[
        _Role, typer.Option(help="A device uploads and fetches; an operator reads.")
    ] = _Role.DEVICE,
) -> None:
    """Register a device and print its token. The token is shown this once: the cloud keeps only its hash."""
    with _register(config) as devices:
        typer.echo(devices.add(name, cohort=cohort, role=role.value))


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


@contextmanager
def _register(path: Path) -> Iterator[DeviceRegister]:
    """Open the register of a configured cloud, running or not."""
    from cema.cloud.config import CloudConfig

    config = CloudConfig.load(path)
    with closing(config.open_store()) as store:
        yield store.devices([cohort.name for cohort in config.cohort])


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
