"""What an operator may do with devices beside adding them one by one: acts, and what a register keeps for them.

An act is one transaction, together with its entry in the record of acts. A back end may do without; `fleet_of` tells.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

from cema.cloud.store.devices import Device, DeviceRegister, Role
from cema.errors import StoreError

__all__ = [
    "DeviceAct",
    "DeviceTaken",
    "Done",
    "Expire",
    "FleetRegister",
    "Limit",
    "Move",
    "NewDevice",
    "Quarantine",
    "Release",
    "Remove",
    "Renew",
    "Revoke",
    "UnknownDevice",
    "Usage",
    "check_act",
    "fleet_of",
]

LONGEST_OVERLAP = 366 * 86_400
"""Seconds: a token that was replaced is good for a year at most."""
LAST_MOMENT = 253_402_300_800
"""The year 10000, unix seconds: later moments are mistakes."""

_Overlap = Annotated[float, msgspec.Meta(ge=0, le=LONGEST_OVERLAP)]
_Moment = Annotated[float, msgspec.Meta(ge=0, lt=LAST_MOMENT)]
_Most = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class UnknownDevice(StoreError):  # noqa: N818 - a state, not a fault
    """There is no device of that name."""


class DeviceTaken(StoreError):  # noqa: N818 - a state, not a fault
    """There is a device of that name already."""


class Renew(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="renew"):
    """Give a device a new token.

    Attributes
    ----------
    overlap : float
        Seconds for which the token that the device uses stays good beside the new one; 0 ends all older ones. That is
        the newest one, or, where that was never used while an older one was good, that older one. So at most two
        are good at one time, and a new token that was lost before it reached the device is no harm.
    """

    overlap: _Overlap = 0.0


class Revoke(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="revoke"):
    """End a device's tokens for ever; its name stays taken."""


class Remove(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="remove"):
    """Forget a device and what it did; its samples stay, and its name is free again."""


class Move(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="move"):
    """Let a device speak for another cohort, and no longer for the one before.

    Attributes
    ----------
    to : str
        The cohort.
    """

    to: str


class Expire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="expire"):
    """Say from when a device may do nothing any more.

    Attributes
    ----------
    at : float, optional
        Unix seconds; None for never.
    """

    at: _Moment | None


class Quarantine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="quarantine"):
    """Learn nothing from a device: what it sends is stored, and it gets updates."""


class Release(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="release"):
    """Learn from a device again: the end of `Quarantine`."""


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="limit"):
    """Say how much a device may send, in place of what is configured for all.

    Attributes
    ----------
    samples_per_hour, samples_per_day, bytes_per_hour, bytes_per_day : int, optional
        0 for no limit; None leaves it as it is.
    as_configured : bool
        Whether all that is not said here is as configured again.
    """

    samples_per_hour: _Most | None = None
    samples_per_day: _Most | None = None
    bytes_per_hour: _Most | None = None
    bytes_per_day: _Most | None = None
    as_configured: bool = False


DeviceAct: TypeAlias = Renew | Revoke | Remove | Move | Expire | Quarantine | Release | Limit


@dataclass(frozen=True, slots=True)
class NewDevice:
    """A device that is to be added, with the token that it will have.

    Attributes
    ----------
    name, cohort, role
        As `DeviceRegister.add` takes them.
    token
        See `cema.cloud.store.devices.new_token`; the register keeps its hash alone.
    expires_at
        Unix seconds; None for never.
    """

    name: str
    cohort: str | None
    role: Role
    token: str = field(repr=False)
    expires_at: float | None = None


class Done(NamedTuple):
    """What came of an act: the device as it is now (None once it is removed), and its new token, if it got one."""

    device: Device | None
    token: str | None


class Usage(NamedTuple):
    """How much of one limit a device has used: samples or bytes that still count, and at what moment (unix seconds)."""

    used: float
    at: float


@runtime_checkable
class FleetRegister(DeviceRegister, Protocol):
    """A register of devices that takes acts; `cema.cloud.store.base.Store` says what every method may raise."""

    def add_all(self, devices: Sequence[NewDevice], *, now: float | None = None) -> None:
        """Register devices, all or none.

        Raises
        ------
        DeviceTaken
            A name is taken.
        StoreError
            A name is malformed, or there is no such cohort or role.
        """
        ...

    def act(self, name: str, act: DeviceAct, *, now: float | None = None) -> Done:
        """Do something with a device, durably, whole or not at all.

        Parameters
        ----------
        name
            The device's.
        act
            What.
        now
            Unix seconds; the clock's when None.

        Raises
        ------
        UnknownDevice
            There is no such device.
        ActRefused
            The act cannot be done with it.
        """
        ...

    def quarantined(self) -> Mapping[str, str | None]:
        """Return the devices that operators have quarantined: the cohort of each by its name."""
        ...

    def note_taken(self, names: Collection[str], *, now: float) -> None:
        """Keep that devices have used their newest token, for those that have an older one beside it."""
        ...

    def usage(self, name: str) -> Mapping[str, Usage]:
        """Return how much of each limit a device has used, by the limit's name, as it was kept last."""
        ...

    def keep_usage(self, usage: Mapping[str, Mapping[str, Usage]]) -> None:
        """Keep how much devices have used, by their names; names that are in the register no longer are ignored."""
        ...


def check_act(act: DeviceAct) -> None:
    """Refuse an act whose numbers no register takes.

    Raises
    ------
    StoreError
        Says which, and what was expected.

    Examples
    --------
    >>> check_act(Renew(overlap=3600.0))
    >>> check_act(Expire(at=float("inf")))
    Traceback (most recent call last):
    ...
    cema.errors.StoreError: the act expire: Expected `float` < 253402300800.0 - at `$.at`
    """
    try:
        msgspec.convert(msgspec.to_builtins(act), type=DeviceAct)
    except (msgspec.ValidationError, OverflowError) as error:
        raise StoreError(f"the act {type(act).__struct_config__.tag}: {error}") from error


def fleet_of(register: DeviceRegister) -> FleetRegister:
    """Return a register that takes acts as one.

    Raises
    ------
    StoreError
        Its back end takes none.
    """
    if not isinstance(register, FleetRegister):
        raise StoreError(
            "this store cannot change devices; use the store that CEMA comes with (sqlite), or revoke the device and "
            "add it under another name"
        )
    return register
