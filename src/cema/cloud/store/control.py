"""What an operator may have a cohort do: acts, what they come to, and the versions that they are about.

An act is one transaction: it is written down with who asked for it, and from then on nothing is published that it
forbids. What must be signed for it, the worker signs with its next step. A back end may do without; `control_of` tells.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

from cema.cloud.store.base import Store
from cema.errors import StoreError

__all__ = [
    "SOURCE",
    "Act",
    "ActRefused",
    "Acted",
    "Canary",
    "Control",
    "ControlChanged",
    "ControlStore",
    "Pause",
    "Pin",
    "Publishing",
    "Release",
    "Resume",
    "Rollback",
    "State",
    "Stop",
    "VersionRecord",
    "after",
    "control_of",
    "name_of",
    "supersedes",
]

SOURCE = "source"
"""In place of a digest: the content of the source model, which is in no store."""

Publishing: TypeAlias = Literal["on", "paused", "pinned", "stopped"]
"""Whether the worker publishes what it learns. ``paused``: devices keep the newest version; ``pinned``: the content of
the version that was named; ``stopped``: the source model. It goes on learning in all of them."""


_Version = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class ActRefused(StoreError):  # noqa: N818 - a state, not a fault
    """The act cannot be done with what the store has."""


class ControlChanged(StoreError):  # noqa: N818 - a state, not a fault
    """An operator acted while the step was made: nothing of it was committed."""


class Rollback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rollback"):
    """Give devices the content of an earlier version, forget what was learned, and go on learning and publishing.

    Attributes
    ----------
    to : int
        The earlier version.
    """

    to: _Version


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="pin"):
    """Give devices the content of a version, and publish nothing else until `Resume`; or one device alone.

    Attributes
    ----------
    to : int
        The version.
    device : str, optional
        The device that keeps this content until a `Resume` of it, or a `Stop`, whatever the others get; None for all.
    """

    to: _Version
    device: str | None = None


class Release(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="release"):
    """Let a version that is for some devices, or for none yet, be for all.

    Attributes
    ----------
    to : int
        The version.
    """

    to: _Version


class Pause(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="pause"):
    """Publish nothing until `Resume`: devices keep the newest version, which is signed anew before it expires."""


class Resume(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="resume"):
    """Publish again what is learned, once it passes the gate: the end of `Pause`, `Pin` and `Stop`.

    Attributes
    ----------
    device : str, optional
        The device that gets again what all others have: the end of a `Pin` of it. None for the cohort.
    """

    device: str | None = None


class Stop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="stop"):
    """Give all devices the source model, pinned ones too, and publish nothing else until `Resume`."""


class Canary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="canary"):
    """Let the next versions be tried by another share of the cohort's devices than is configured.

    Attributes
    ----------
    first : float, optional
        The share, above 0 to 1, until the next such act; None: as configured again.
    """

    first: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None


Act: TypeAlias = Rollback | Pin | Release | Pause | Resume | Stop | Canary


State: TypeAlias = Literal["waiting", "done", "superseded", "failed"]


class Acted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An act as it was written down.

    Attributes
    ----------
    number : int
        Of all acts on the store, growing.
    cohort : str
        Where.
    at : float
        When, unix seconds.
    actor : str
        Who asked for it.
    act : Act
        What.
    content : str, optional
        What is to be published for it: the digest of a payload, or `SOURCE`; None for nothing.
    state : {"waiting", "done", "superseded", "failed"}
        Whether the worker has still to publish it; ``superseded`` by a later act before it could; ``failed`` where the
        store had the content no longer.
    done_at : float, optional
        When it was done or superseded, or failed.
    version : int, optional
        The version that devices have of it.
    """

    number: int
    cohort: str
    at: float
    actor: str
    act: Act
    content: str | None = None
    state: State = "waiting"
    done_at: float | None = None
    version: int | None = None


# Without what is as ever: an older CEMA reads it as long as nothing is said that it does not know.
class Control(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all acts on a cohort come to.

    Attributes
    ----------
    publishing : str
        See `Publishing`.
    content : str, optional
        What devices are to have while ``pinned`` or ``stopped``: a digest, or `SOURCE`.
    serial : int
        Number of the last act; 0 before the first.
    first : float, optional
        The share of devices that try new versions first; None: as configured.
    """

    publishing: Publishing = "on"
    content: str | None = None
    serial: int = 0
    first: float | None = None


class VersionRecord(NamedTuple):
    """A version that the store has: its payload too, so that it can be published again."""

    version: int
    digest: str
    created: float
    expires: float
    payload_bytes: int
    envelope: bytes


@runtime_checkable
class ControlStore(Protocol):
    """The part of a store that keeps acts; see `cema.cloud.store.base.Store` for what every method may raise.

    Its `commit_step` takes two arguments more. ``control``, the serial that the step was made under: when an operator
    has acted since, and the step has an update or offers one to more devices, it raises `ControlChanged` and commits
    nothing. ``acted``, the act that the step has done, as it is to be written down: with the step or not at all.
    """

    def act(self, cohort: str, act: Act, *, actor: str, now: float) -> Acted:
        """Write an act down, durably; from its return on nothing is published that it forbids.

        Raises
        ------
        ActRefused
            It names a version that is not kept; the message names those that are.
        """
        ...

    def control(self, cohort: str) -> Control:
        """Return what all acts come to."""
        ...

    def waiting_act(self, cohort: str) -> Acted | None:
        """Return the first act that the worker has to do, if there is one."""
        ...

    def acts(self, cohort: str, *, limit: int = 100) -> list[Acted]:
        """Return the newest acts on a cohort, newest first."""
        ...

    def versions(self, cohort: str) -> list[VersionRecord]:
        """Return the versions that are kept, oldest first."""
        ...


def control_of(store: Store) -> ControlStore:
    """Return a store that keeps acts as one.

    Raises
    ------
    StoreError
        Its back end keeps none.
    """
    if not isinstance(store, ControlStore):
        raise StoreError("this store takes no acts of operators; use the store that CEMA comes with (sqlite)")
    return store


def after(control: Control, act: Act, *, number: int, content: str | None) -> Control:
    """Return what an act makes of what the acts before came to.

    Parameters
    ----------
    control : Control
        What those before came to.
    act : Act
        The act.
    number : int
        Its number.
    content : str, optional
        The digest of the version that it names, or `SOURCE`.

    Examples
    --------
    >>> pinned = after(Control(), Pin(to=3), number=1, content="d")
    >>> pinned.publishing, after(pinned, Pause(), number=2, content=None).publishing
    ('pinned', 'pinned')
    >>> after(pinned, Resume(), number=2, content=None)
    Control(publishing='on', content=None, serial=2, first=None)
    """
    change = partial(msgspec.structs.replace, control, serial=number)
    match act:
        case Canary(first=first):
            return change(first=first)
        case Pin(device=None):
            return change(publishing="pinned", content=content)
        case Stop():
            return change(publishing="stopped", content=content)
        case Pause() if control.publishing == "on":
            return change(publishing="paused", content=None)
        case Rollback() | Resume(device=None):  # after a rollback it goes on
            return change(publishing="on", content=None)
        case _:  # of one device, or a pause while devices have what they were pinned to: nothing changes for the cohort
            return change()


def name_of(act: Act) -> str:
    """Return the name of an act, such as ``rollback``.

    Examples
    --------
    >>> name_of(Rollback(to=3))
    'rollback'
    """
    return str(type(act).__struct_config__.tag)


def supersedes(act: Act, waiting: Act) -> bool:
    """Tell whether an act leaves nothing to do for one before that still waits for the worker.

    Examples
    --------
    >>> supersedes(Stop(), Pin(to=3)), supersedes(Resume(), Pin(to=3)), supersedes(Resume(), Rollback(to=3))
    (True, True, False)
    >>> supersedes(Pin(to=4, device="cam"), Pin(to=3, device="cam")), supersedes(Pin(to=4), Pin(to=3, device="cam"))
    (True, False)
    """
    one, other = (getattr(each, "device", None) for each in (act, waiting))
    if one != other:  # of different devices, or of one and of all
        return isinstance(act, Stop)
    match act:
        case Pause() | Release() | Canary():
            return False
        case Resume() if one is None:
            return not isinstance(waiting, Rollback)
        case _:
            return True
