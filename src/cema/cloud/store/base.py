"""What the cloud asks of a store: the protocol, what travels through it, and its refusals.

Nothing outside a back end knows how it keeps its data: `cema.cloud.store.open.open_store` opens one by URL, and
`cema.testing.stores.StoreSuite` checks every promise that is made here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cema.cloud.store.devices import DeviceRegister
from cema.errors import StoreError, StoreFull
from cema.formats.sample import Sample, Verdict

__all__ = [
    "STATE_SHARE",
    "UPDATES_KEPT",
    "Backend",
    "Backlog",
    "BacklogFull",
    "CohortState",
    "Fenced",
    "Limits",
    "OtherBase",
    "PublishedUpdate",
    "Store",
    "StoredSample",
    "UpdateTag",
    "UploadTooLarge",
    "Waiting",
]

# Devices need none that is older: every update is complete. Which older ones operators may go back to, a back end says.
UPDATES_KEPT = 16
# The part of the cap that samples leave to checkpoints, updates and counters: the worker can always commit.
STATE_SHARE = 8


class BacklogFull(StoreError):  # noqa: N818 - a state, not a fault
    """The cohort's worker is too far behind to take more samples now."""


class UploadTooLarge(StoreFull):
    """The samples of one upload would not fit an empty store: waiting cannot help."""


class OtherBase(StoreError):  # noqa: N818 - a state, not a fault
    """The cohort has made steps with another base model than the one that is given now."""


class Fenced(StoreError):  # noqa: N818 - a state, not a fault
    """A newer worker has taken the cohort over; this one must stop."""


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample as the worker reads it.

    Attributes
    ----------
    seq
        Its place in the store's sequence, growing, never given twice.
    id
        SHA-256 of `image`, hex.
    image
        The encoded image.
    entropy
        Entropy of the edge's prediction, in nats.
    label
        The class that the edge predicted.
    version
        Version of the norm state the edge predicted with.
    captured_at, received_at
        Unix seconds.
    device
        Who sent it.
    """

    seq: int
    id: str
    image: bytes
    entropy: float
    label: int
    version: int
    captured_at: float
    received_at: float
    device: str = ""


class Waiting(NamedTuple):
    """A sample that waits for the worker: its sequence number, and who sent it."""

    seq: int
    device: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for the worker: the number of samples, and when the oldest came (unix seconds)."""

    samples: int
    oldest: float | None


@dataclass(frozen=True, slots=True)
class PublishedUpdate:
    """One version of a cohort's norm state, as it is served.

    Attributes
    ----------
    version
        1 and up.
    digest
        SHA-256 of `payload`, hex: the artifact's address.
    envelope
        The signed manifest.
    payload
        The encoded norm state.
    created, expires
        Unix seconds.
    trace
        How it came about, JSON-able, where a worker noted it; a back end may keep it
        (`cema.cloud.store.traces`), and returns updates without.
    """

    version: int
    digest: str
    envelope: bytes
    payload: bytes = field(repr=False)
    created: float
    expires: float
    trace: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)


class UpdateTag(NamedTuple):
    """What tells one update of a cohort from the next: its version and the digest of its payload."""

    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class CohortState:
    """Where a cohort's worker stands: what it needs to go on after a crash.

    Attributes
    ----------
    cursor
        Sequence number of the last sample that the worker is done with.
    checkpoint
        What the worker committed with it, or None before the first commit.
    epoch
        The claim under which the state was read; commits under an older one are refused.
    attempts
        How often a first step from this cursor was begun and not committed.
    """

    cursor: int
    checkpoint: bytes | None
    epoch: int
    attempts: int


class Store(Protocol):
    """Everything that the cloud must not lose.

    Any number of threads and processes may use one store, through one object or several. A write is durable when it
    returns, also against loss of power, and it happens whole or not at all. The store never takes more than its byte
    cap: when a new sample needs room, the oldest samples that the worker is done with are evicted, and counted as
    ``evicted.byte_cap``; those that wait for it are never dropped.

    Every method may raise `StoreUnavailable`: nothing was changed, and a later call may succeed. Other errors of a back
    end leave it as `StoreError`, never as an exception of its database.

    A store may have two members more, for the polls of many devices. ``latest_tag(cohort)`` returns the `UpdateTag` of
    `latest_update`, or None. A class attribute ``instant = True`` says that this and the register's ``authenticate``
    read memory or one indexed row and wait for nobody: the server then calls them on its event loop. Without them it
    calls `latest_update`, and in a thread.
    """

    def put(
        self,
        cohort: str,
        samples: Sequence[Sample],
        *,
        device: str,
        now: float,
        max_backlog: int,
        rejected: Mapping[str, int] | None = None,
    ) -> list[Verdict]:
        """Store what is new, durably: every verdict returned is on disk.

        Parameters
        ----------
        cohort, device
            Where the samples belong and who sent them.
        samples
            Checked samples: the id is the digest of the image.
        now
            Time of arrival, unix seconds.
        max_backlog
            Most samples of the cohort that may wait for the worker.
        rejected
            Samples of the same upload that failed their check, by reason: only counted.

        Returns
        -------
        list of Verdict
            One a sample, in order: ``stored``, or ``duplicate`` when the cohort has, or had, the image.

        Raises
        ------
        BacklogFull
            The worker is too far behind. Nothing was stored.
        UploadTooLarge
            The samples would not fit even if the store were empty. Nothing was stored.
        StoreFull
            The cap is reached and nothing may be evicted. Nothing was stored.
        """
        ...

    def fresh(self, cohort: str, *, after: int, limit: int) -> list[StoredSample]:
        """Return up to `limit` samples of a cohort that follow `after` in the sequence, oldest first."""
        ...

    def sequence(self, cohort: str, *, after: int, limit: int) -> list[int]:
        """Return the sequence numbers alone of up to `limit` samples that follow `after`."""
        ...

    def waiting(self, cohort: str, *, after: int, limit: int) -> list[Waiting]:
        """Return who sent up to `limit` samples that follow `after` in the sequence, oldest first."""
        ...

    def samples(self, seqs: Sequence[int]) -> list[StoredSample]:
        """Return those samples that are still stored, in the order of their sequence numbers."""
        ...

    def images(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return the encoded images of those samples that are still stored, by sequence number."""
        ...

    def backlog(self, cohort: str) -> Backlog:
        """Return what of a cohort still waits for the worker."""
        ...

    def used_bytes(self) -> int:
        """Return the bytes in use, of all cohorts together; never more than the cap."""
        ...

    def open_cohort(self, name: str, *, base: str) -> None:
        """Make a cohort known, for one base model (its digest).

        A cohort is tied to its base once a commit has had an update or has counted ``steps.count``. Until then another
        base takes the place of the one before: what was committed meanwhile is dropped, samples and devices stay, and
        whoever has claimed the cohort is fenced.

        Raises
        ------
        OtherBase
            The cohort is tied to another base model.
        """
        ...

    def claim(self, cohort: str) -> CohortState:
        """Take a cohort over: from now on only commits under the returned epoch are accepted."""
        ...

    def mark_attempt(self, cohort: str) -> None:
        """Note that a step from the present cursor begins; the next commit clears the note."""
        ...

    def commit_step(
        self,
        cohort: str,
        cursor: int,
        checkpoint: bytes,
        update: PublishedUpdate | None = None,
        *,
        epoch: int,
        now: float,
        counts: Mapping[str, float] | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit a step whole: cursor, checkpoint, update if there is one, counters. All or nothing.

        Raises
        ------
        Fenced
            Another worker has claimed the cohort since.
        StoreError
            The cursor would go back, or the update is not newer than the last one or not what its digest says.
        StoreFull
            No room for the checkpoint, even after every processed sample has gone.
        """
        ...

    def latest_update(self, cohort: str) -> PublishedUpdate | None:
        """Return the newest update of a cohort, or None before the first."""
        ...

    def artifact(self, cohort: str, digest: str) -> bytes | None:
        """Return the payload of one of the cohort's `UPDATES_KEPT` newest updates, or of an older one kept, or None."""
        ...

    def count(self, cohort: str, counts: Mapping[str, float]) -> None:
        """Add to a cohort's durable counters."""
        ...

    def counters(self, cohort: str) -> dict[str, float]:
        """Return a cohort's counters by name, e.g. ``samples.stored`` or ``evicted.byte_cap``."""
        ...

    def put_report(self, cohort: str, report: Mapping[str, Any], *, now: float) -> None:
        """Say what the worker is doing; :meth:`status` shows the last such report and its time."""
        ...

    def status(self, cohort: str) -> dict[str, Any]:
        """Return where a cohort stands, as one JSON-able snapshot.

        Its members are those of ``status`` in docs/protocol.md, section 2, except for ``healthy``; ``worker`` is None
        before the first report.
        """
        ...

    def devices(self, cohorts: Collection[str]) -> DeviceRegister:
        """Return the register of devices; it takes new ones of these cohorts."""
        ...

    def close(self) -> None:
        """Give everything back. A later call of any other method raises `StoreUnavailable`."""
        ...


class Limits(Protocol):
    """What a back end may have to check about the cloud's limits; see `cema.cloud.config.LimitsConfig`."""

    @property
    def store_bytes(self) -> int:
        """The store's cap."""
        ...

    @property
    def body_bytes(self) -> int:
        """The largest request body."""
        ...

    @property
    def batch_samples(self) -> int:
        """The most samples in one request."""
        ...


class Backend(Protocol):
    """What the first part of a store's URL names: the class of a store, with these class methods.

    The address is what follows in the URL, in whatever form the back end wants; it may be empty.
    """

    def open(self, address: str, *, max_bytes: int) -> Store:
        """Open a store, and make it when there is none.

        Raises
        ------
        ConfigError
            The address does not have the form that this back end expects.
        StoreError
            There is something else at the address, or `max_bytes` is too small for any store.
        """
        ...

    def absolute(self, address: str, folder: Path) -> str:
        """Return the address with its relative paths, if it has any, taken from a folder."""
        ...

    def check_limits(self, limits: Limits) -> None:
        """Check that an empty store could take every request that the cloud lets through.

        Raises
        ------
        ConfigError
            It could not.
        """
        ...
