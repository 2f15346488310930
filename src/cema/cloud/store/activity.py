"""What a store keeps of every device: when it was heard of, which version it has, what it sent.

A back end may do without; `activity_of` tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from cema.cloud.store.base import Store

__all__ = ["ActivityStore", "DeviceActivity", "Poll", "activity_of"]


class Poll(NamedTuple):
    """A device has asked for updates: its cohort and name, when (unix seconds), and the version that it has, if any."""

    cohort: str
    device: str
    at: float
    version: int | None


class DeviceActivity(NamedTuple):
    """What is known of a device.

    Attributes
    ----------
    device, cohort : str
        Its name, and the cohort that it last spoke for.
    seen_at : float
        When it was last heard of, unix seconds; to some seconds, where it only asked for updates.
    has : int or None
        The newest version that it had fetched when it last said which; None before the first in its cohort. It may have
        refused it.
    ran : int or None
        The version that predicted the last sample that it sent; 0 is the source model. None before the first sample.
    samples, bytes : int
        Samples that it has sent, with duplicates, and the bytes of their encoded images.
    captured_at, received_at : float or None
        Of that last sample: when it was captured, by the device's clock, and when it came, by the cloud's.
    """

    device: str
    cohort: str
    seen_at: float
    has: int | None
    ran: int | None
    samples: int
    bytes: int
    captured_at: float | None
    received_at: float | None


@runtime_checkable
class ActivityStore(Protocol):
    """The part of a store that keeps activity; see `cema.cloud.store.base.Store` for what every method may raise.

    What a device sends is kept with its samples, in one transaction.
    """

    def note_polls(self, polls: Sequence[Poll]) -> None:
        """Keep that devices have asked for updates; of one device the last poll counts."""
        ...

    def activity(self) -> dict[str, DeviceActivity]:
        """Return what is known of every device that was ever heard of, by its name."""
        ...


def activity_of(store: Store) -> dict[str, DeviceActivity]:
    """Return what a store knows of devices; nothing where its back end keeps no activity."""
    return store.activity() if isinstance(store, ActivityStore) else {}
