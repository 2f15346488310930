"""What is done with a device that is there: the rest of `cema device`."""

from __future__ import annotations

import json as json_
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cema._util.units import human_bytes
from cema.cli.actor import command_line_actor
from cema.cli.cohorts import Config, JsonNotText, opened, utc
from cema.cli.moments import moment
from cema.errors import ConfigError

if TYPE_CHECKING:
    from cema.cloud.store.devices import Device, DeviceRegister
    from cema.cloud.store.fleet import DeviceAct, FleetRegister

__all__ = [
    "Name",
    "expire",
    "limit",
    "limits_told",
    "move",
    "opened_register",
    "quarantine",
    "release",
    "remove",
    "tokens_told",
]

Name = Annotated[str, typer.Argument(help="The device's name: letters, digits, '.', '_' and '-'.")]
_Most = Annotated[
    int | None, typer.Option(min=0, max=2**53, help="At most; 0 for no limit.", show_default="as it is")
]


@contextmanager
def opened_register(path: Path) -> Iterator[DeviceRegister]:
    """Open the register of a configured cloud, running or not; what is done is recorded, where the store can."""
    from cema.cloud.store.audits import AuditStore

    with opened(path) as (config, store):
        names = [cohort.name for cohort in config.cohort]
        if isinstance(store, AuditStore):
            yield store.audited_devices(names, actor=command_line_actor())
        else:
            yield store.devices(names)


@contextmanager
def _fleet(path: Path) -> Iterator[FleetRegister]:
    from cema.cloud.store.fleet import fleet_of

    with opened_register(path) as devices:
        yield fleet_of(devices)


def tokens_told(device: Device) -> str:
    """Say which tokens of a device are good; empty where it is the newest alone."""
    if device.older_token_until is None:
        return ""
    used = "the newest was used" if device.taken_at is not None else "the newest was not used yet"
    return f"2 tokens until {_moment(device.older_token_until)}, {used}"


def limits_told(device: Device) -> str:
    """Say what a device may send where that is not as configured."""
    words = []
    for name in device.limits.__struct_fields__:
        value = getattr(device.limits, name)
        if value is not None:
            what = human_bytes(value) if name.startswith("bytes") else f"{value:,}"
            words.append(f"{name.replace('_', ' ')}: {what if value else 'no limit'}")
    return ", ".join(words)


def _act(path: Path, name: str, act: DeviceAct, told: str, *, json: bool) -> None:
    from cema.cloud.store.devices_told import device_told

    with _fleet(path) as devices:
        device = devices.act(name, act).device
    if json:
        typer.echo(json_.dumps({"name": name, "removed": True} if device is None else device_told(device)))
    else:
        typer.echo(told)


def move(
    name: Name,
    config: Config,
    to: Annotated[str, typer.Option(help="The cohort that it belongs to from now on.")],
    json: JsonNotText = False,
) -> None:
    """Move a device to another cohort, at once.

    Its token stays.

    Its configuration names the cohort, too: until that is changed, the cloud refuses it and says so.
    """
    from cema.cloud.store.fleet import Move

    told = (
        f"moved {name} to cohort {to}. Set cloud.cohort to {to!r} and bundle to that cohort's in its configuration and "
        "start it again; until then it predicts on, keeps its samples and gets no updates. Samples that wait in its "
        "spool then go to the new cohort; those that the cloud has stay with the old one."
    )
    _act(config, name, Move(to=to), told, json=json)


def remove(name: Name, config: Config, json: JsonNotText = False) -> None:
    """Forget a device; its samples stay.

    Its tokens end at once, and its name is free again.
    """
    from cema.cloud.store.fleet import Remove

    _act(config, name, Remove(), f"removed {name}; the samples that it has sent stay", json=json)


def expire(
    name: Name,
    config: Config,
    at: Annotated[
        str, typer.Option(help="When: a date such as 2027-01-01, a duration from now such as 90d, or never.")
    ],
    json: JsonNotText = False,
) -> None:
    """Say when a device's tokens expire.

    From then on it may do nothing any more, until it is said anew.
    """
    from cema.cloud.store.fleet import Expire

    when = moment(at, option="--at")
    told = f"{name} never expires" if when is None else f"{name} expires at {_moment(when)}"
    _act(config, name, Expire(at=when), told, json=json)


def quarantine(name: Name, config: Config, json: JsonNotText = False) -> None:
    """Learn nothing from a device from now on.

    It may go on sending samples, and gets updates.

    It holds from the worker's next step on. What was learned from it before, and is kept for replay, stays.
    """
    from cema.cloud.store.fleet import Quarantine

    told = (
        f"quarantined {name}: its samples are stored, and nothing is learned from them, until it is released"
    )
    _act(config, name, Quarantine(), told, json=json)


def release(name: Name, config: Config, json: JsonNotText = False) -> None:
    """Learn from a quarantined device again.

    An operator had quarantined it.
    """
    from cema.cloud.store.fleet import Release

    told = f"released {name}: the samples that wait, and those that it sends, are learned from"
    _act(config, name, Release(), told, json=json)


def limit(
    name: Name,
    config: Config,
    samples_per_hour: _Most = None,
    samples_per_day: _Most = None,
    bytes_per_hour: _Most = None,
    bytes_per_day: _Most = None,
    as_configured: Annotated[
        bool, typer.Option("--as-configured", help="Take back what was said before.", show_default="it stays")
    ] = False,
    json: JsonNotText = False,
) -> None:
    """Say what one device may send.

    At once, and in place of the limits of the configuration.
    """
    from cema.cloud.store.devices_told import device_told
    from cema.cloud.store.fleet import Limit

    act = Limit(
        samples_per_hour=samples_per_hour,
        samples_per_day=samples_per_day,
        bytes_per_hour=bytes_per_hour,
        bytes_per_day=bytes_per_day,
        as_configured=as_configured,
    )
    if act == Limit():
        raise ConfigError(
            "expected at least one of --samples-per-hour, --samples-per-day, --bytes-per-hour, --bytes-per-day and "
            "--as-configured, got none"
        )
    with _fleet(config) as devices:
        device = devices.act(name, act).device
    assert device is not None  # noqa: S101 - for the type; only a removal leaves none
    if json:
        typer.echo(json_.dumps(device_told(device)))
    else:
        typer.echo(f"limits of {name}: {limits_told(device) or 'as configured'}")


def _moment(seconds: float) -> str:
    return f"{utc(seconds, milliseconds=False)} UTC"
