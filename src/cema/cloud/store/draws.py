"""What a store keeps of samples that devices drew at random: a queue to measure, and the agreement on all they see.

Samples that a device's selection chose say nothing of those that it did not choose. A sample that was drawn with a
known probability does: it stands for 1 / probability predictions. Such samples wait in a queue of their own. What was
drawn and not selected is in no other place: it is neither learned from nor replayed, and it judges no candidate.

A back end may do without; `draws_of` tells. It takes drawn samples for selected ones then, as a cloud from before does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from cema._util.proportion import Proportion, Weighted, weighted_proportion
from cema.cloud.store.agreements import RECENT, Judged, in_order, of_newest
from cema.cloud.store.base import Store

__all__ = [
    "MOST_TRIES",
    "DrawStore",
    "DrawnSample",
    "RandomCount",
    "RandomPoint",
    "VersionRandomAgreement",
    "draws_of",
    "random_agreement_members",
    "recent_random_agreement",
]

# How often a sample is measured that fails, or ends the process, before it is given up.
MOST_TRIES = 3


class DrawnSample(NamedTuple):
    """A sample that waits to be measured.

    Attributes
    ----------
    number : int
        Its place in the queue.
    image : bytes
        The encoded image.
    label : int
        The class that the device predicted.
    version : int
        Version of the norm state that it predicted with.
    share : float
        The probability with which it was drawn.
    """

    number: int
    image: bytes
    label: int
    version: int
    share: float


class RandomCount(NamedTuple):
    """On which drawn samples a model chose the foundation model's label; `version` as in `AgreementCount`."""

    version: int
    model: Judged
    sums: Weighted


class RandomPoint(NamedTuple):
    """The sums of one model in one minute, which began at `at` (unix seconds)."""

    at: float
    model: Judged
    sums: Weighted


class VersionRandomAgreement(NamedTuple):
    """What is known of one version: the agreement by model, on all that devices saw."""

    version: int
    models: Mapping[Judged, Proportion]


@runtime_checkable
class DrawStore(Protocol):
    """The part of a store that keeps drawn samples; see `cema.cloud.store.base.Store` for what every method may raise.

    Its `cema.cloud.store.base.Store.put` takes ``draws``, a mapping of positions among the samples to
    `cema.formats.draw.Draw`, and keeps each draw with the upload in one transaction. A draw that comes again (the same
    image, device and moment of capture) counts once. Drawn samples that wait count among those that may wait.
    """

    def take_draws(self, cohort: str, limit: int) -> list[DrawnSample]:
        """Return the first samples to be measured, and note durably that it was tried.

        One that was tried before comes alone, and one that was tried `MOST_TRIES` times is given up and counted as
        ``drawn.failed``: it may have ended the process.
        """
        ...

    def measured_draws(
        self,
        cohort: str,
        numbers: Sequence[int],
        counts: Sequence[RandomCount],
        *,
        now: float,
        unreadable: int = 0,
    ) -> bool:
        """Let samples go and keep what was found of them, both or neither.

        Parameters
        ----------
        cohort
            Whose they are.
        numbers
            Of the samples.
        counts
            What was found.
        now
            Unix seconds.
        unreadable
            How many of them could not be decoded.

        Returns
        -------
        bool
            False, and nothing is kept, where one of them does not wait any more.
        """
        ...

    def random_agreement_by_version(self, cohort: str) -> list[VersionRandomAgreement]:
        """Return the agreement of the newest versions, in ascending order; as many as of the agreement on selected."""
        ...

    def random_agreement_over_time(
        self, cohort: str, *, since: float = 0.0, newest: int | None = None
    ) -> list[RandomPoint]:
        """Return the sums by minute and model, oldest first; see `AgreementStore.agreement_over_time`."""
        ...


def draws_of(store: Store) -> DrawStore | None:
    """Return a store that keeps drawn samples as one, or None."""
    return store if isinstance(store, DrawStore) else None


def recent_random_agreement(
    points: Sequence[RandomPoint], *, samples: int = RECENT
) -> dict[Judged, Proportion]:
    """Return the agreement of each model on its newest drawn samples: in whole minutes, of at least so many.

    Parameters
    ----------
    points : sequence of RandomPoint
        Oldest first.
    samples : int
        Samples of each model after which older minutes do not count.
    """
    sums: dict[Judged, Weighted] = {}
    for point in reversed(points):
        known = sums.get(point.model, Weighted())
        if known.samples < samples:
            sums[point.model] = known.plus(point.sums)
    return in_order((model, weighted_proportion(found)) for model, found in sums.items())


def random_agreement_members(store: Store, cohort: str) -> dict[str, dict[str, Any]]:
    """Return the present agreement on all that devices see, by model, JSON-able; empty where nothing is known."""
    keeps = draws_of(store)
    if keeps is None:
        return {}
    recent = of_newest(
        lambda minutes: recent_random_agreement(keeps.random_agreement_over_time(cohort, newest=minutes))
    )
    return {model: msgspec.to_builtins(found) for model, found in recent.items()}
