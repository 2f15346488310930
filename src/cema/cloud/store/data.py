"""What people may do with stored samples: look at them, delete them, and say what is on them.

A deletion is more than removing rows. Samples are removed from the store at once, so that their bytes are in none of
its files any more, and a request tells the cohort's worker to forget what its state holds of them: references in the
replay buffer, the foundation model's answers, the statistics of their inputs. The receipt says when both is done. A
back end may do without; `data_of` tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

from cema.cloud.store.base import Store
from cema.errors import StoreError

__all__ = [
    "RETENTION",
    "SEARCHED",
    "DataFilter",
    "DataGroup",
    "DataSample",
    "DataStore",
    "DeletionState",
    "LabelsTaken",
    "NewestSample",
    "NewestStore",
    "Pending",
    "Receipt",
    "TeacherLabel",
    "ToForget",
    "all_samples",
    "data_of",
    "find_receipt",
    "newest_samples",
]

RETENTION = "retention"
"""In place of a person, where samples were deleted because they had reached the cohort's ``retention_days``."""

SEARCHED = 20_000
"""Samples among which those of one device are searched for: the newest of the cohort."""

DeletionState: TypeAlias = Literal["deleting", "waiting", "forgotten", "done"]
"""``deleting``: not every sample is removed yet; a deletion that was interrupted goes on with the worker's next turn.
``waiting``: for the worker, which has to forget. ``forgotten``: its new state is free of them, and the bytes of the old
one have still to go from the store's files. ``done``."""


class DataFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which samples of a cohort are meant: those to which all that is set applies.

    Attributes
    ----------
    device : str, optional
        Who sent them.
    label : int, optional
        A class, from 0: of samples for which the device, the foundation model or a person has chosen it. Written
        ``class``.
    since, until : float, optional
        When they arrived, unix seconds: not before, and before. Written ``from`` and ``to``.
    """

    device: str | None = None
    label: int | None = msgspec.field(name="class", default=None)
    since: float | None = msgspec.field(name="from", default=None)
    until: float | None = msgspec.field(name="to", default=None)

    @property
    def everything(self) -> bool:
        """Whether nothing is set: all samples of the cohort are meant."""
        return self == DataFilter()


class DataGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The samples of one device with the same labels.

    Attributes
    ----------
    device : str
        Who sent them.
    label : int
        The class that the device chose.
    teacher : int, optional
        The class that the foundation model chose when it was learned from; None where that was not yet.
    truth : int, optional
        The class that a person has given.
    samples, bytes : int
        How many, and of their images.
    oldest, newest : float
        When the first and the last of them arrived, unix seconds.
    """

    device: str
    label: int
    teacher: int | None
    truth: int | None
    samples: int
    bytes: int
    oldest: float
    newest: float


class DataSample(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one stored sample.

    Attributes
    ----------
    seq : int
        Its place in the store's sequence.
    id : str
        SHA-256 of the encoded image, hex.
    device : str
        Who sent it.
    label, teacher, truth : int or None
        As for `DataGroup`.
    entropy : float
        Entropy of the device's prediction, in nats.
    version : int
        The version that the device predicted with.
    captured_at, received_at : float
        Unix seconds; the first by the device's clock.
    bytes : int
        Of the encoded image.
    waiting : bool
        Whether the worker has still to look at it.
    """

    seq: int
    id: str
    device: str
    label: int
    teacher: int | None
    truth: int | None
    entropy: float
    version: int
    captured_at: float
    received_at: float
    bytes: int
    waiting: bool


class NewestSample(NamedTuple):
    """A stored sample, and whether a device drew it at random too."""

    sample: DataSample
    drawn: bool


class TeacherLabel(NamedTuple):
    """The class that the foundation model chose for a sample, by its sequence number, when it was learned from."""

    seq: int
    label: int


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A deletion, as it is written down.

    Attributes
    ----------
    number : int
        Of all deletions from the store, growing.
    cohort : str
        Where.
    at : float
        When it was asked for, unix seconds.
    actor : str
        Who asked for it, or `RETENTION`.
    filter : DataFilter
        What was asked for.
    samples, bytes : int
        How many samples were removed, and the bytes of their images.
    ids_sha256 : str, optional
        SHA-256, hex, of their ids in ascending order, each followed by a line feed; None until all are removed.
    state : str
        See `DeletionState`.
    forgotten_at : float, optional
        When the worker committed a state that is free of them.
    done_at : float, optional
        When neither the store's files nor the worker's state held anything of them any more.
    note : str
        What stands in the way; empty where nothing does.
    """

    number: int
    cohort: str
    at: float
    actor: str
    filter: DataFilter
    samples: int
    bytes: int
    ids_sha256: str | None
    state: DeletionState
    forgotten_at: float | None
    done_at: float | None
    note: str


class Pending(NamedTuple):
    """What a cohort's worker has to know at each turn.

    Attributes
    ----------
    deletion : int
        Number of the oldest deletion that is not done; 0 for none.
    labels : int
        How many labels were taken so far, changed ones too: another number than before says that there are new ones.
    """

    deletion: int
    labels: int


class ToForget(NamedTuple):
    """What a worker is to forget: the deletions that wait for it, and sequence numbers of all samples that are gone."""

    receipts: tuple[Receipt, ...]
    seqs: frozenset[int]

    @property
    def deletions(self) -> tuple[int, ...]:
        """The numbers of the deletions."""
        return tuple(receipt.number for receipt in self.receipts)


class LabelsTaken(msgspec.Struct, frozen=True, kw_only=True):
    """What became of labels.

    Attributes
    ----------
    new, changed, same : int
        Samples that had none, had another one, or had this one already.
    deleted, unknown : tuple of str
        Ids of samples that were deleted, or evicted under the byte cap; and of those that were never stored.
    """

    new: int
    changed: int
    same: int
    deleted: tuple[str, ...]
    unknown: tuple[str, ...]


@runtime_checkable
class DataStore(Protocol):
    """The part of a store that tells of its samples and deletes them; see `Store` for what every method may raise.

    An image that was deleted is not stored again as long as the store remembers its identity: where a device sends it
    once more, because the answer to an upload was lost, `Store.put` says ``duplicate``.

    Its `commit_step` takes two arguments more. ``taught``, a sequence of `TeacherLabel`, is kept with the step for
    samples that are still stored. ``forgotten``, the numbers of deletions: the step's checkpoint holds nothing of them.
    """

    def data_groups(self, cohort: str, which: DataFilter) -> list[DataGroup]:
        """Return samples counted by device and labels."""
        ...

    def data_samples(self, cohort: str, which: DataFilter, *, after: int = 0, limit: int) -> list[DataSample]:
        """Return up to `limit` samples that follow `after` in the sequence, oldest first."""
        ...

    def data_sample(self, cohort: str, id: str) -> DataSample | None:
        """Return one sample, by the digest of its image (hex); None where it is not stored."""
        ...

    def saved_checkpoint(self, cohort: str) -> bytes | None:
        """Return what the worker has committed last, without taking the cohort over."""
        ...

    def delete_data(self, cohort: str, which: DataFilter, *, actor: str, now: float) -> Receipt:
        """Remove samples, durably and from the bytes of the store's files, and have the worker forget them.

        Parameters
        ----------
        cohort, which
            The samples.
        actor
            Who asks for it, or `RETENTION`.
        now
            Unix seconds.

        Returns
        -------
        Receipt
            `waiting` for the worker.
        """
        ...

    def expire_data(self, cohort: str, *, until: float, now: float) -> Receipt | None:
        """Delete samples that arrived before a moment, as `RETENTION`; None, and nothing done, where there are none."""
        ...

    def receipts(self, cohort: str | None = None, *, limit: int = 100) -> list[Receipt]:
        """Return the newest deletions, of one cohort or all, newest first."""
        ...

    def pending(self, cohort: str) -> Pending:
        """Return what the worker has to know, by reading two rows."""
        ...

    def go_on_deleting(self, cohort: str, *, now: float) -> ToForget:
        """Finish deletions that were interrupted, and return what the worker is to forget."""
        ...

    def finish_deletions(self, cohort: str, *, now: float) -> list[Receipt]:
        """Erase what the store's files still hold of what was forgotten; return the deletions that are done now."""
        ...

    def put_labels(self, cohort: str, labels: Mapping[str, int], *, actor: str, now: float) -> LabelsTaken:
        """Keep the true classes of stored samples, by id, durably; the last one that was given counts."""
        ...

    def true_labels(self, cohort: str) -> dict[int, int]:
        """Return the true classes that people have given, by sequence number."""
        ...


@runtime_checkable
class NewestStore(Protocol):
    """What a back end may have beside `DataStore`: it shows what came last."""

    def newest_samples(self, cohort: str, *, limit: int, device: str | None = None) -> list[NewestSample]:
        """Return the newest samples, newest first: of all devices, or of one among the newest `SEARCHED` of all."""
        ...


def newest_samples(store: Store, cohort: str, *, limit: int, device: str | None = None) -> list[NewestSample]:
    """Return the newest samples, newest first; none where the store's back end does not show them."""
    if not isinstance(store, NewestStore):
        return []
    return store.newest_samples(cohort, limit=limit, device=device)


def data_of(store: Store) -> DataStore:
    """Return a store that tells of its samples and deletes them as one.

    Raises
    ------
    StoreError
        Its back end does not.
    """
    if not isinstance(store, DataStore):
        raise StoreError(
            "this store neither lists nor deletes samples; use the store that CEMA comes with (sqlite)"
        )
    return store


def all_samples(
    store: DataStore, cohort: str, which: DataFilter, *, at_once: int = 500
) -> Iterator[DataSample]:
    """Yield all samples that are meant, oldest first; those that leave the store meanwhile are left out."""
    after = 0
    while found := store.data_samples(cohort, which, after=after, limit=at_once):
        yield from found
        after = found[-1].seq


def find_receipt(receipts: Sequence[Receipt], number: int) -> Receipt | None:
    """Return the deletion of a number, or None."""
    return next((receipt for receipt in receipts if receipt.number == number), None)
