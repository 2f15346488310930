"""Which version each device is offered: all the same one, but for canary devices and devices that are pinned.

A version may be for some devices only, or for none yet. A back end may do without; `offers_of` tells.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

from cema.cloud.store.base import PublishedUpdate, Store, UpdateTag

__all__ = [
    "Offer",
    "OfferStore",
    "Offers",
    "PinnedDevice",
    "Rollout",
    "RolloutMode",
    "RolloutState",
    "offers_of",
]

RolloutMode: TypeAlias = Literal["manual", "canary"]
RolloutState: TypeAlias = Literal["open", "released", "taken_back", "superseded"]


class Rollout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a version that was not for all devices from the start came to them, or did not.

    Attributes
    ----------
    version : int
    mode : {"manual", "canary"}
    began : float
        Unix seconds; of a canary also the moment since which its devices are waited for.
    before : int
        The version that all others have meanwhile; 0 for the source model.
    devices : tuple of str
        Those that it is offered to first.
    needed : int
        The devices that it was offered to at first: half as many must do well.
    entropy : dict of str to float
        Mean entropy of each of them before, in nats, as it last reported.
    agreement : dict of str to (int, int)
        Of the samples that each has sent since, predicted with the version: how many, and how many of them agree with
        the foundation model.
    state : {"open", "released", "taken_back", "superseded"}
        ``released``: it is for all; ``taken_back``: the content before has gone out to all under the next number;
        ``superseded``: an act of an operator or a newer version came before either.
    ended : float, optional
        Unix seconds.
    reasons : dict of str to str
        Devices that spoiled it, and how.
    """

    version: int
    mode: RolloutMode
    began: float
    before: int = 0
    devices: tuple[str, ...] = ()
    needed: int = 0
    entropy: dict[str, float] = {}
    agreement: dict[str, tuple[int, int]] = {}
    state: RolloutState = "open"
    ended: float | None = None
    reasons: dict[str, str] = {}


class Offer(NamedTuple):
    """What a step changes about what devices are offered; it is committed with the step, or not at all.

    Attributes
    ----------
    audience : tuple of str, optional
        The devices that the step's update is for; None for all.
    release : int, optional
        A version that is for all from now on.
    rollout : Rollout, optional
        As it is written down from now on; one that has ended stays as it is.
    also : tuple of str
        Devices that the rollout's version is offered to from now on, too.
    """

    audience: tuple[str, ...] | None = None
    release: int | None = None
    rollout: Rollout | None = None
    also: tuple[str, ...] = ()

    @property
    def offers_more(self) -> bool:
        """Whether devices are offered a version that was published before: acts of operators may forbid that too."""
        return self.release is not None or bool(self.also)


class Offers(NamedTuple):
    """What the devices of a cohort are offered: the newest version for all, and by name those that have another one."""

    version: int
    named: Mapping[str, int]


class PinnedDevice(NamedTuple):
    """A device that keeps one content: its name, the payload's digest, and the newest version that gives it to it."""

    device: str
    digest: str
    version: int | None
    created: float | None


@runtime_checkable
class OfferStore(Protocol):
    """The part of a store that keeps offers; see `cema.cloud.store.base.Store` for what every method may raise.

    Its `commit_step` takes one argument more, ``offer``, an `Offer`. `latest_update` returns the newest version of all,
    whoever it is for.
    """

    def offered_tag(self, cohort: str, device: str) -> UpdateTag | None:
        """Return what tells the version that a device is offered from others: rows are read by an index alone."""
        ...

    def offered(self, cohort: str, device: str) -> PublishedUpdate | None:
        """Return the version that a device is offered; None before the first."""
        ...

    def update(self, cohort: str, version: int) -> PublishedUpdate | None:
        """Return a version; None where it is not kept."""
        ...

    def offers(self, cohorts: Collection[str]) -> dict[str, Offers]:
        """Return what devices are offered, by cohort."""
        ...

    def for_all(self, cohort: str) -> PublishedUpdate | None:
        """Return the newest version that is for all devices; None before the first."""
        ...

    def rollout(self, cohort: str) -> Rollout | None:
        """Return the newest rollout of a cohort, open or not; None before the first. One row is read."""
        ...

    def pinned(self, cohort: str) -> list[PinnedDevice]:
        """Return the devices that are pinned, by name."""
        ...


def offers_of(store: Store) -> OfferStore | None:
    """Return a store that keeps offers as one, or None: every version is for all there."""
    return store if isinstance(store, OfferStore) else None
