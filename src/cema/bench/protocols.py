"""In which order a method sees which images: the protocols, as exact and seeded schedules.

============== ======================================================================================================
``reset``      one stream per corruption and severity, each begun by the source model
``continual``  all corruptions one after the other at one severity, never reset (Wang et al. [1]_)
``gradual``    continual, and within each corruption, the first too, the severity climbs from 1 to the largest asked for
               and falls back to 1. The program of Wang et al. [1]_ begins the first at 5, and shows all images at each
               severity; here a corruption's images are divided evenly among its segments, each seen once per
               corruption, so that it costs what continual costs
``mixed``      the images of all corruptions shuffled together (Niu et al. [2]_)
``recurring``  continual, several times over, never reset (Hoang et al. [4]_). Every visit to a corruption shows all of
               its images, each time in another order; the first as continual does
``correlated`` as ``reset``, with labels in temporal order: every class spreads by a Dirichlet distribution over the
               slots of the stream, as many as there are classes and at most 100 (Yuan et al. [3]_); a small
               concentration keeps a class together
============== ======================================================================================================

``continual-correlated``, ``recurring-correlated`` and ``mixed-correlated`` have labels in temporal order too: within
each visit to a corruption, the first as ``correlated`` has it (the protocol of Yuan et al. [3]_ and, repeated, that of
Hoang et al. [4]_), or over the whole stream, in which every image comes under a corruption of its own (Marsden et
al. [5]_, whose program also fills the slots evenly).

A schedule depends on the protocol, the conditions, the number of images (where labels are in temporal order: their
labels), the batch size and the seed, and on nothing else; it holds indices and no images.

References
----------
.. [1] Q. Wang et al., "Continual Test-Time Domain Adaptation", CVPR 2022.
.. [2] S. Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World", ICLR 2023.
.. [3] L. Yuan et al., "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023.
.. [4] T.-H. Hoang et al., "Persistent Test-time Adaptation in Recurring Testing Scenarios", NeurIPS 2024.
.. [5] R. A. Marsden et al., "Universal Test-time Adaptation through Weight Ensembling, Diversity Weighting, and Prior
       Correction", WACV 2024.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CLEAN",
    "PROTOCOLS",
    "VISITS",
    "Condition",
    "Schedule",
    "is_correlated",
    "make_schedule",
    "sequence",
    "streams",
]

#: The names that ``--protocol`` takes.
PROTOCOLS: tuple[str, ...] = (
    "continual",
    "continual-correlated",
    "correlated",
    "gradual",
    "mixed",
    "mixed-correlated",
    "recurring",
    "recurring-correlated",
    "reset",
)

#: How often ``recurring`` visits every corruption, unless another number is asked for.
VISITS = 10

#: What stands in the place of a corruption for images as they are.
CLEAN = "clean"

# Of ``correlated``, as in the program of Yuan et al.: over a thousand slots, a thousand classes of 50 images spread so
# thin that the order is next to a shuffled one.
_MOST_SLOTS = 100

Indices = NDArray[np.int64]


@dataclass(frozen=True, order=True)
class Condition:
    """Under what images are seen.

    Attributes
    ----------
    corruption : str
        A corruption's name, or `CLEAN`.
    severity : int
        1 to 5. Clean images are the same at each: theirs says whose stream they are part of, and is 0 where nothing
        is corrupted at all.
    """

    corruption: str
    severity: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """A stream, as places in data sets.

    Attributes
    ----------
    conditions : tuple of Condition
        Those that occur, in the order of their first occurrence.
    condition : ndarray of int64 (T,)
        Which of them each sample is seen under.
    visit : ndarray of int64 (T,)
        How often that condition was visited before: 0 at its first segment.
    sample : ndarray of int64 (T,)
        Which image of that condition it is.
    bounds : ndarray of int64 (B + 1,)
        Batch b is samples ``bounds[b]`` to ``bounds[b + 1] - 1``.
    edge : ndarray of int64 (B,)
        Which device sees the batch: batches are dealt round robin.
    """

    conditions: tuple[Condition, ...]
    condition: Indices
    visit: Indices
    sample: Indices
    bounds: Indices
    edge: Indices

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def batches(self) -> int:
        """The number of batches."""
        return len(self.bounds) - 1

    def places(self, batch: int) -> slice:
        """Return where in the stream a batch is."""
        return slice(int(self.bounds[batch]), int(self.bounds[batch + 1]))


def sequence(protocol: str) -> str:
    """Return in what sequence a protocol visits conditions, however the labels within are ordered.

    Examples
    --------
    >>> sequence("recurring-correlated"), sequence("correlated"), sequence("mixed")
    ('recurring', 'reset', 'mixed')
    """
    return protocol.removesuffix("correlated").removesuffix("-") or "reset"


def is_correlated(protocol: str) -> bool:
    """Return whether labels are in temporal order."""
    return protocol.endswith("correlated")


def streams(
    protocol: str, corruptions: Sequence[str], severities: Sequence[int], *, visits: int = VISITS
) -> list[tuple[Condition, ...]]:
    """Return what each stream visits, segment by segment; each stream is begun by the source model.

    Parameters
    ----------
    protocol : str
        One of `PROTOCOLS`.
    corruptions : sequence of str
        In the order they are visited.
    severities : sequence of int
        Each makes streams of its own; only ``gradual`` makes one of them all.
    visits : int
        How often ``recurring`` goes through all corruptions, at least 1.

    Returns
    -------
    list of tuple of Condition
        A condition may be visited more than once.

    Raises
    ------
    ValueError
        If the protocol is unknown or there are no visits.

    Examples
    --------
    >>> [condition.severity for condition in streams("gradual", ["fog"], [3])[0]]
    [1, 2, 3, 2, 1]
    """
    _check_protocol(protocol)
    if visits < 1:
        raise ValueError(f"visits must be at least 1, got {visits}")
    kind = sequence(protocol)
    if kind == "reset":
        return [(Condition(name, severity),) for severity in severities for name in corruptions]
    if kind == "gradual":
        top = max(severities)
        ramp = [*range(1, top), *range(top, 0, -1)] if top else [0]
        return [tuple(Condition(name, severity) for name in corruptions for severity in ramp)]
    rounds = visits if kind == "recurring" else 1
    return [tuple(Condition(name, severity) for name in corruptions) * rounds for severity in severities]


def make_schedule(
    protocol: str,
    segments: Sequence[Condition],
    labels: Sequence[int] | Indices,
    *,
    batch: int,
    seed: int,
    edges: int = 1,
    concentration: float = 0.1,
) -> Schedule:
    """Order the samples of a stream and cut them into batches.

    Parameters
    ----------
    protocol : str
        One of `PROTOCOLS`.
    segments : sequence of Condition
        What the stream visits: one of `streams`.
    labels : sequence of int
        Labels (N,) of the images, which are the same under every condition.
    batch : int
        Samples in a batch, at least 1. Unless all are mixed, no batch holds two segments, so the last of a segment
        may be smaller.
    seed : int
        Each segment gets an order of its own from it.
    edges : int
        Devices that share the stream.
    concentration : float
        Of the Dirichlet distribution where labels are in temporal order, above 0.

    Returns
    -------
    Schedule
        Each image occurs once per segment (``gradual``: once per corruption).

    Raises
    ------
    ValueError
        If there are no segments or images, or a number is out of range.
    """
    _check_protocol(protocol)
    if not segments or not len(labels):
        raise ValueError(f"a stream needs segments and images, got {len(segments)} and {len(labels)}")
    if batch < 1 or edges < 1 or concentration <= 0:
        raise ValueError(
            "batch and edges must be at least 1 and the concentration above 0, "
            f"got {batch}, {edges} and {concentration}"
        )
    labels = np.asarray(labels, np.int64)
    conditions = tuple(dict.fromkeys(segments))
    visits = [segments[:place].count(segment) for place, segment in enumerate(segments)]
    parts = _orders(protocol, segments, visits, labels, seed=seed, concentration=concentration)
    lengths = [len(part) for part in parts]
    sample = np.concatenate(parts)
    condition = np.repeat([conditions.index(segment) for segment in segments], lengths)
    visit = np.repeat(visits, lengths)
    if sequence(protocol) == "mixed":
        rng = _generator(seed, protocol, *conditions)
        if is_correlated(protocol):
            order = _correlated(labels[sample], concentration, rng)
        else:
            order = rng.permutation(len(sample))
        sample, condition, lengths = sample[order], condition[order], [len(sample)]
    bounds = _bounds(lengths, batch)
    edge = np.arange(len(bounds) - 1, dtype=np.int64) % edges
    return Schedule(conditions, condition.astype(np.int64), visit.astype(np.int64), sample, bounds, edge)


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")


def _orders(
    protocol: str,
    segments: Sequence[Condition],
    visits: Sequence[int],
    labels: Indices,
    *,
    seed: int,
    concentration: float,
) -> list[Indices]:
    """Return which images each segment shows, in order."""
    count = len(labels)
    kind = sequence(protocol)
    if kind == "gradual":
        orders: list[Indices] = []
        for name in dict.fromkeys(segment.corruption for segment in segments):
            times = sum(segment.corruption == name for segment in segments)
            order = _generator(seed, protocol, Condition(name, 0)).permutation(count)
            orders += np.array_split(order, times)
        return orders
    # Not the protocol but condition and visit make the order: reset and continual show a corruption's images alike.
    what = "correlated" if is_correlated(protocol) and kind != "mixed" else "shuffled"
    generators = [
        _generator(seed, f"{what}-{visit}" if visit else what, segment)
        for segment, visit in zip(segments, visits, strict=True)
    ]
    if what == "correlated":
        return [_correlated(labels, concentration, rng) for rng in generators]
    return [rng.permutation(count) for rng in generators]


def _correlated(labels: Indices, concentration: float, rng: np.random.Generator) -> Indices:
    """Spread each class over as many slots as there are classes, at most 100; in a slot it comes in one piece."""
    classes = rng.permutation(np.unique(labels))
    slots: list[list[Indices]] = [[] for _ in classes[:_MOST_SLOTS]]
    for label in classes:
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(len(slots), concentration))
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for slot, piece in zip(slots, np.split(members, cuts), strict=True):
            slot.append(piece)
    return np.concatenate([slot[i] for slot in slots for i in rng.permutation(len(slot))]).astype(np.int64)


def _bounds(lengths: Sequence[int], batch: int) -> Indices:
    """Cut every segment into batches."""
    bounds, start = [0], 0
    for length in lengths:
        bounds += [min(start + end, start + length) for end in range(batch, length + batch, batch)]
        start += length
    return np.array(bounds, np.int64)


def _generator(seed: int, what: str, *conditions: Condition) -> np.random.Generator:
    words = "/".join([what, *(f"{condition.corruption}:{condition.severity}" for condition in conditions)])
    digest = hashlib.sha256(words.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
