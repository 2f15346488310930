"""`cema device`: who may talk to the cloud."""

from __future__ import annotations

import enum
import json as json_
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cema._util.files import sync_folder, unfinished, write_synced
from cema._util.units import ago, human_bytes
from cema.cli import device_acts
from cema.cli.cohorts import AsJson, Config, JsonNotText, opened, utc
from cema.cli.device_acts import Name, limits_told, opened_register, tokens_told
from cema.cli.moments import duration, moment
from cema.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from cema.cloud.store.activity import DeviceActivity
    from cema.cloud.store.devices import Device
    from cema.cloud.store.reports import DeviceReports

__all__ = ["app"]

app = typer.Typer(
    help="Add, list and change devices, and their tokens.", no_args_is_help=True, rich_markup_mode=None
)


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
    """Add, list and change devices, and their tokens."""


@app.command()
def add(
    config: Config,
    name: Annotated[
        str | None,
        typer.Argument(help="Its name: letters, digits, '.', '_' and '-'.", show_default="those of --from"),
    ] = None,
    cohort: Annotated[
        str | None,
        typer.Option(help="The cohort it belongs to.", show_default="none: for an operator or admin of all"),
    ] = None,
    role: Annotated[
        _Role,
        typer.Option(help="A device uploads and fetches; an operator reads; an admin acts on versions too."),
    ] = _Role.DEVICE,
    expires: Annotated[
        str | None,
        typer.Option(
            help="When its token ends: a date such as 2027-01-01, or a duration such as 90d.",
            show_default="never",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Add all devices of this CSV file (name,cohort[,role][,expires]), or none.",
            show_default="one",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the token to this new file, readable by you alone; with --from, a folder for one file each.",
            show_default="printed, to no file",
        ),
    ] = None,
    json: JsonNotText = False,
) -> None:
    """Register devices and give out their tokens.

    Tokens are given out this once: the cloud keeps only a token's hash.
    """
    if file is not None:
        given = {"a name": name, "--cohort": cohort, "--expires": expires}
        given["--role"] = None if role is _Role.DEVICE else role
        if wrong := [option for option, value in given.items() if value is not None]:
            raise ConfigError(f"--from: the file says that; leave {' and '.join(wrong)} out")
        _add_all(config, file, out, json=json)
        return
    if name is None:
        raise ConfigError("expected the name of a device, or --from with a CSV file, got neither")
    at = None if expires is None else moment(expires, option="--expires")
    with opened_register(config) as devices:
        if at is None:
            _give_out(lambda: devices.add(name, cohort=cohort, role=role.value), name, out, json=json)
            return
        from cema.cloud.store.devices import new_token
        from cema.cloud.store.fleet import NewDevice, fleet_of

        fleet, token = fleet_of(devices), new_token()

        def make() -> str:
            fleet.add_all([NewDevice(name, cohort, role.value, token, at)])
            return token

        _give_out(make, name, out, json=json)


def _add_all(config: Path, file: Path, out: Path | None, *, json: bool) -> None:
    from cema.cli.device_file import add_all, read_rows
    from cema.cloud.config import CloudConfig
    from cema.cloud.store.fleet import fleet_of

    if out is None:
        raise ConfigError(
            "--out: expected a folder for the tokens of the devices in --from, got none; name one"
        )
    rows = read_rows(file, [cohort.name for cohort in CloudConfig.load(config).cohort])
    with opened_register(config) as devices:
        added, before = add_all(fleet_of(devices), rows, file, out)
    if json:
        told = {"added": added, "there": before}
        lines = {
            key: [{"name": row.name, "file": str(out / f"{row.name}.token")} for row in of]
            for key, of in told.items()
        }
        typer.echo(json_.dumps(lines))
        return
    rest = f"; {len(before)} were added before" if before else ""
    typer.echo(
        f"added {len(added)} devices{rest}; tokens: {out}/NAME.token, for cloud.token_file of each device"
    )


@app.command()
def renew(name: Name, config: Config, out: Out = None, json: JsonNotText = False) -> None:
    """Give a device a new token.

    The old one stops working at once.
    """
    with opened_register(config) as devices:
        if not hasattr(devices, "renew"):
            raise StoreError(
                "this store cannot renew tokens; revoke the device and add it under another name"
            )
        _give_out(lambda: devices.renew(name), name, out, json=json)


@app.command()
def token(
    name: Name,
    config: Config,
    renew: Annotated[
        bool, typer.Option("--renew", help="Give it a new token.", show_default="say which tokens are good")
    ] = False,
    overlap: Annotated[
        str,
        typer.Option(
            help="How long the token that it has stays good beside the new one: 7d, 12h; 0 ends it now."
        ),
    ] = "7d",
    out: Out = None,
    json: JsonNotText = False,
) -> None:
    """Exchange a token; the old one stays good a while.

    Without --renew it says which tokens are good.

    At most two are good at one time. Renewed again before the device has used the new one, that one is replaced; after
    that, the one from before ends.
    """
    from cema.cloud.store.devices_told import device_told
    from cema.cloud.store.fleet import Renew, fleet_of

    seconds = duration(overlap, option="--overlap")
    with opened_register(config) as devices:
        fleet = fleet_of(devices)
        if renew:
            _give_out(lambda: fleet.act(name, Renew(overlap=seconds)).token or "", name, out, json=json)
        known = next((device for device in fleet.list() if device.name == name), None)
    if known is None:
        raise StoreError(f"there is no device {name!r}; list the devices to see their names")
    if json and not renew:
        typer.echo(json_.dumps(device_told(known)))
    elif not json and not (renew and out is None):
        typer.echo(tokens_told(known) or "1 token")


@app.command(name="list")
def list_(config: Config, json: AsJson = False) -> None:
    """List the devices, and how each is doing.

    Revoked ones too: when each was last heard of, which version it runs, what it sent.
    """
    from cema.cloud.store.activity import activity_of
    from cema.cloud.store.devices_told import devices_told
    from cema.cloud.store.reports import reports_of

    with opened(config) as (settings, store):
        cohorts = [cohort.name for cohort in settings.cohort]
        known = store.devices(cohorts).list()
        activity, reports = activity_of(store), reports_of(store)
        told = devices_told(store, known, cohorts)
    if json:
        typer.echo(json_.dumps(told))
        return
    from rich.text import Text

    from cema.cli.tables import FittedTable, out

    table = FittedTable(
        "name", "cohort", "heard of", "has", "ran", "samples", "sent", "selected", "guarded", "notes"
    )
    table.columns[0].no_wrap = True
    now = time.time()
    for entry, row in zip(known, told, strict=True):
        cells = (*_cells(activity.get(entry.name), now), *_shares(reports.get(entry.name)))
        notes = Text("; ".join(_notes(entry, row, now)))  # what devices say is no markup
        table.add_row(entry.name, entry.cohort or "(all)", *cells, notes)
    console = out()
    console.print(table)
    console.print(
        "has: the version that it had fetched when it last asked; ran: the version that predicted the last sample "
        "that it sent, 0 for the source model. selected, guarded: shares of all its predictions, as it last reported.",
        highlight=False,
    )


def _shares(told: DeviceReports | None) -> Iterator[str]:
    counts = {} if told is None else told.report.counts
    predicted = counts.get("predicted", 0)
    for name in ("selected", "guarded"):
        yield f"{counts.get(name, 0) / predicted:.1%}" if predicted else ""


def _cells(found: DeviceActivity | None, now: float) -> Iterator[str]:
    yield "never" if found is None else ago(now - found.seen_at)
    for version in (None, None) if found is None else (found.has, found.ran):
        yield "" if version is None else str(version)
    yield "" if found is None else f"{found.samples:,}"
    yield "" if found is None else human_bytes(found.bytes)


def _notes(entry: Device, row: Mapping[str, Any], now: float) -> Iterator[str]:
    """Yield what is set for a device, and then what is out of the ordinary with it."""
    from cema.cloud.store.device_problems import device_problems

    if entry.role != "device":
        yield entry.role
    if entry.revoked_at is not None:
        yield f"revoked {_moment(entry.revoked_at)}"
    if entry.expires_at is not None:
        yield f"{'expired' if entry.expires_at <= now else 'expires'} {_moment(entry.expires_at)}"
    if told := tokens_told(entry):
        yield told
    if told := limits_told(entry):
        yield f"limits: {told}"
    yield from (problem.text for problem in device_problems(row, now))


@app.command()
def revoke(name: Name, config: Config, json: JsonNotText = False) -> None:
    """End a device's tokens, at once and for ever.

    The name stays taken.
    """
    from cema.cloud.store.devices_told import device_told

    with opened_register(config) as devices:
        devices.revoke(name)
        known = next(device for device in devices.list() if device.name == name)
    typer.echo(json_.dumps(device_told(known)) if json else f"revoked {name}")


for _command in (
    device_acts.move,
    device_acts.remove,
    device_acts.expire,
    device_acts.quarantine,
    device_acts.release,
    device_acts.limit,
):
    app.command()(_command)


def _give_out(make: Callable[[], str], name: str, out: Path | None, *, json: bool) -> None:
    """Print a token that is made now, or write it to a new file; nothing is made that could not be written."""
    if out is None:
        made = make()
        typer.echo(json_.dumps({"name": name, "token": made}) if json else made)
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
    typer.echo(json_.dumps({"name": name, "file": str(out)}) if json else f"token of {name}: {out}")


def _moment(seconds: float) -> str:
    return f"{utc(seconds, milliseconds=False)} UTC"
