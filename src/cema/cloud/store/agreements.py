"""What a store keeps of the agreement with the foundation model: of every model, on the new samples of every step.

The gate compares models on new samples before they are learned from. Kept, these counts say without any label whether
adaptation helps. A back end may do without; `agreements_of` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

from cema._util.proportion import Proportion, proportion
from cema.cloud.store.base import Store

__all__ = [
    "JUDGED",
    "MINUTE",
    "RECENT",
    "VERSIONS_KEPT",
    "AgreementCount",
    "AgreementPoint",
    "AgreementStore",
    "Judged",
    "VersionAgreement",
    "agreement_members",
    "agreements_of",
    "in_order",
    "of_newest",
    "recent_agreement",
]

Judged: TypeAlias = Literal["device", "running", "adapted", "source"]
"""Who answered: ``device`` as devices did, with whatever they do by themselves; ``running`` as the newest version does,
``adapted`` as the model that is being adapted, ``source`` as the model that devices came with."""
JUDGED: tuple[Judged, ...] = ("device", "running", "adapted", "source")

# Agreement over time is kept by the minute.
MINUTE = 60.0
# Versions whose agreement is kept, at most.
VERSIONS_KEPT = 1000
# The newest samples of each model that the present agreement is told of: a standard error of 1.5 points at most.
RECENT = 1024
_FEW = 64


class AgreementCount(NamedTuple):
    """On how many new samples of one step a model chose the foundation model's label.

    Attributes
    ----------
    version : int
        The newest version then; of ``device`` the version that answered. 0 is the source model.
    model : str
        Who answered, see `Judged`.
    samples, agreed : int
        All, and those on which the labels were the same.
    """

    version: int
    model: Judged
    samples: int
    agreed: int


class AgreementPoint(NamedTuple):
    """The counts of one model in one minute, which began at `at` (unix seconds)."""

    at: float
    model: Judged
    samples: int
    agreed: int


class VersionAgreement(NamedTuple):
    """What is known of one version: the first and the last step (unix seconds), and the agreement by model."""

    version: int
    first: float
    last: float
    models: Mapping[Judged, Proportion]


@runtime_checkable
class AgreementStore(Protocol):
    """The part of a store that keeps counts of agreement.

    Its `cema.cloud.store.base.Store.commit_step` takes ``measured``, a sequence of `AgreementCount`, and keeps them
    with the step or not at all. See there for what every method may raise.
    """

    def agreement_by_version(self, cohort: str) -> list[VersionAgreement]:
        """Return the agreement of the newest `VERSIONS_KEPT` versions of a cohort, at most, in ascending order."""
        ...

    def agreement_over_time(
        self, cohort: str, *, since: float = 0.0, newest: int | None = None
    ) -> list[AgreementPoint]:
        """Return the agreement of a cohort by minute and model, oldest first.

        Parameters
        ----------
        since
            Unix seconds: older minutes are left out.
        newest
            So many of the newest minutes in which there were samples, at most.
        """
        ...


def agreements_of(store: Store) -> AgreementStore | None:
    """Return a store that keeps agreement as one, or None."""
    return store if isinstance(store, AgreementStore) else None


def recent_agreement(points: Sequence[AgreementPoint], *, samples: int = RECENT) -> dict[Judged, Proportion]:
    """Return the agreement of each model on its newest samples: in whole minutes, of at least so many where there are.

    Parameters
    ----------
    points : sequence of AgreementPoint
        Oldest first.
    samples : int
        Samples of each model after which older minutes do not count.

    Examples
    --------
    >>> points = [AgreementPoint(0.0, "source", 8, 0), AgreementPoint(60.0, "source", 8, 6)]
    >>> recent_agreement(points, samples=8)["source"].share
    0.75
    """
    sums: dict[Judged, tuple[int, int]] = {}
    for point in reversed(points):
        known, agreed = sums.get(point.model, (0, 0))
        if known < samples:
            sums[point.model] = (known + point.samples, agreed + point.agreed)
    return in_order((model, proportion(*found)) for model, found in sums.items())


def in_order(found: Iterable[tuple[Judged, Proportion]]) -> dict[Judged, Proportion]:
    """Return proportions by model, in the order of `JUDGED`."""
    return dict(sorted(found, key=lambda pair: JUDGED.index(pair[0])))


def agreement_members(store: Store, cohort: str) -> dict[str, dict[str, Any]]:
    """Return the present agreement by model, JSON-able, under the names that status, metrics and agents use.

    Empty for a store that keeps none, and before the first step.
    """
    keeps = agreements_of(store)
    if keeps is None:
        return {}
    recent = of_newest(lambda minutes: recent_agreement(keeps.agreement_over_time(cohort, newest=minutes)))
    return {model: msgspec.to_builtins(found) for model, found in recent.items()}


def of_newest(read: Callable[[int], dict[Judged, Proportion]]) -> dict[Judged, Proportion]:
    """Return the agreement on the newest `RECENT` samples of each model, from as few minutes as have them.

    Parameters
    ----------
    read : callable
        Returns the agreement of so many of the newest minutes. To read many takes ten times as long.
    """
    found = read(_FEW)
    # Older minutes add nothing to a model that has so many; one without any may have them there.
    if all(model in found and found[model].samples >= RECENT for model in JUDGED):
        return found
    return read(RECENT)
