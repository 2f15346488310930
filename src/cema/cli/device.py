"""`cema device`: who may talk to the cloud."""

from __future__ import annotations

import enum
import json as json_
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cema._util.files import sync_folder, unfinished, write_synced
from cema._util.units import human_bytes
from cema.cli.actor import command_line_actor
from cema.cli.cohorts import AsJson, Config, ago, opened, utc
from cema.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from cema.cloud.store.activity import DeviceActivity
    from cema.cloud.store.devices import Device, DeviceRegister
    from cema.cloud.store.reports import DeviceReports

__all__ = ["app"]

app = typer.Typer(help="Add, list, renew and revoke devices.", no_args_is_help=True, rich_markup_mode=None)

# Seconds by which a device's clock may well be ahead.
_CLOCK_SLACK = 5.0

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
def list_(config: Config, json: AsJson = False) -> None:
    """List the devices, revoked ones too: when each was last heard of, which version it runs, what it sent."""
    from cema.cloud.store.activity import activity_of
    from cema.cloud.store.reports import reports_of

    with opened(config) as (settings, store):
        known = store.devices([cohort.name for cohort in settings.cohort]).list()
        activity, reports = activity_of(store), reports_of(store)
    if json:
        rows = [
            _row(entry) | _activity(activity.get(entry.name)) | _reported(reports.get(entry.name))
            for entry in known
        ]
        typer.echo(json_.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "name", "cohort", "heard of", "has", "ran", "samples", "sent", "selected", "guarded", "notes"
    )
    table.columns[0].no_wrap = True
    now = time.time()
    for entry in known:
        found, told = activity.get(entry.name), reports.get(entry.name)
        table.add_row(entry.name, entry.cohort or "(all)", *_cells(entry, found, told, now))
    console = Console()
    console.print(table)
    console.print(
        "has: the version that it had fetched when it last asked; ran: the version that predicted the last sample "
        "that it sent, 0 for the source model. selected, guarded: shares of all its predictions, as it last reported.",
        highlight=False,
    )


def _row(entry: Device) -> dict[str, Any]:
    return {
        "name": entry.name,
        "role": entry.role,
        "cohort": entry.cohort,
        "created_at": entry.created_at,
        "revoked_at": entry.revoked_at,
    }


def _activity(found: DeviceActivity | None) -> dict[str, Any]:
    names = ("seen_at", "has", "ran", "samples", "bytes", "captured_at", "received_at")
    return {name: getattr(found, name, None) for name in names}


def _reported(told: DeviceReports | None) -> dict[str, Any]:
    """Return what a device has last reported, JSON-able."""
    import msgspec

    if told is None:
        return {"reported_at": None, "reports": None, "report": None}
    return {
        "reported_at": told.at,
        "reports": {"received": told.received, "lost": told.lost},
        "report": msgspec.to_builtins(told.report),
    }


def _shares(told: DeviceReports | None) -> Iterator[str]:
    counts = {} if told is None else told.report.counts
    predicted = counts.get("predicted", 0)
    for name in ("selected", "guarded"):
        yield f"{counts.get(name, 0) / predicted:.1%}" if predicted else ""


def _cells(
    entry: Device, found: DeviceActivity | None, told: DeviceReports | None, now: float
) -> Iterator[str]:
    yield "never" if found is None else ago(now - found.seen_at)
    for version in (None, None) if found is None else (found.has, found.ran):
        yield "" if version is None else str(version)
    yield "" if found is None else f"{found.samples:,}"
    yield "" if found is None else human_bytes(found.bytes)
    yield from _shares(told)
    notes: list[str] = [] if entry.role == "device" else [entry.role]
    if entry.revoked_at is not None:
        notes.append(f"revoked {_moment(entry.revoked_at)}")
    # A sample may be old, but none is captured after it came.
    ahead = 0.0 if found is None else (found.captured_at or 0.0) - (found.received_at or 0.0)
    if ahead > _CLOCK_SLACK:
        notes.append(f"its clock is {ahead:.0f} s ahead")
    if told is not None and told.report.refused is not None:
        refused = told.report.refused
        notes.append(f"does not run version {refused.version}: {refused.reason}")
    if told is not None and told.report.problem:
        notes.append(told.report.problem)
    yield "; ".join(notes)


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


def _moment(seconds: float) -> str:
    return f"{utc(seconds, milliseconds=False)} UTC"
