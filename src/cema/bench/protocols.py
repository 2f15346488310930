"""In which order a method sees which images: the protocols, as exact and seeded schedules.

============== ======================================================================================================
``reset``      one stream per corruption and severity, each begun by the source model
``continual``  all corruptions one after the other at one severity, never reset (Wang et al. [1]_)
``gradual``    continual, and within each corruption, the first too, the severity climbs from 1 to the largest asked for
               and falls back to 1. The program of Wang et al. [1]_ begins the first at 5, and shows all images at each
               severity; here a corruption's images are divided evenly among its segments, each seen once per
               corruption, so that it costs what continual costs
``mixed``      the images of all corruptions shuffled together (Niu et al. [2]_)
``correlated`` as ``reset``, with labels in temporal order: every class spreads by a Dirichlet distribution over the
               slots of the stream, as many as there are classes and at most 100 (Yuan et al. [3]_); a small
               concentration keeps a class together
============== ======================================================================================================

A schedule depends on the protocol, the conditions, the number of images (for ``correlated``: their labels), the batch
size and the seed, and on nothing else; it holds indices and no images.

References
----------
.. [1] Q. Wang et al., "Continual Test-Time Domain Adaptation", CVPR 2022.
.. [2] S. Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World", ICLR 2023.
.. [3] L. Yuan et al., "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLEAN", "PROTOCOLS", "Condition", "Schedule", "make_schedule", "streams"]

#: The names that ``--protocol`` takes.
PROTOCOLS: tuple[str, ...] = ("continual", "correlated", "gradual", "mixed", "reset")

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
    sample : ndarray of int64 (T,)
        Which image of that condition it is.
    bounds : ndarray of int64 (B + 1,)
        Batch b is samples ``bounds[b]`` to ``bounds[b + 1] - 1``.
    edge : ndarray of int64 (B,)
        Which device sees the batch: batches are dealt round robin.
    """

    conditions: tuple[Condition, ...]
    condition: Indices
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


def streams(
    protocol: str, corruptions: Sequence[str], severities: Sequence[int]
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

    Returns
    -------
    list of tuple of Condition
        A condition may be visited twice.

    Raises
    ------
    ValueError
        If the protocol is unknown.

    Examples
    --------
    >>> [condition.severity for condition in streams("gradual", ["fog"], [3])[0]]
    [1, 2, 3, 2, 1]
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    if protocol in {"reset", "correlated"}:
        return [(Condition(name, severity),) for severity in severities for name in corruptions]
    if protocol == "gradual":
        top = max(severities)
        ramp = [*range(1, top), *range(top, 0, -1)] if top else [0]
        return [tuple(Condition(name, severity) for name in corruptions for severity in ramp)]
    return [tuple(Condition(name, severity) for name in corruptions) for severity in severities]


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
        Samples in a batch, at least 1. Except under ``mixed`` no batch holds two segments, so the last of a segment
        may be smaller.
    seed : int
        Each segment gets an order of its own from it.
    edges : int
        Devices that share the stream.
    concentration : float
        Of the Dirichlet distribution of ``correlated``, above 0.

    Returns
    -------
    Schedule
        Each image occurs once per segment (``gradual``: once per corruption).

    Raises
    ------
    ValueError
        If there are no segments or images, or a number is out of range.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    if not segments or not len(labels):
        raise ValueError(f"a stream needs segments and images, got {len(segments)} and {len(labels)}")
    if batch < 1 or edges < 1 or concentration <= 0:
        raise ValueError(
            "batch and edges must be at least 1 and the concentration above 0, "
            f"got {batch}, {edges} and {concentration}"
        )
    conditions = tuple(dict.fromkeys(segments))
    parts = _orders(protocol, segments, np.asarray(labels, np.int64), seed, concentration)
    rank = {condition: index for index, condition in enumerate(conditions)}
    sample = np.concatenate(parts)
    condition = np.repeat([rank[segment] for segment in segments], [len(part) for part in parts])
    lengths = [len(part) for part in parts]
    if protocol == "mixed":
        order = _generator(seed, "mixed", *conditions).permutation(len(sample))
        sample, condition, lengths = sample[order], condition[order], [len(sample)]
    bounds = _bounds(lengths, batch)
    edge = np.arange(len(bounds) - 1, dtype=np.int64) % edges
    return Schedule(conditions, condition.astype(np.int64), sample, bounds, edge)


def _orders(
    protocol: str, segments: Sequence[Condition], labels: Indices, seed: int, concentration: float
) -> list[Indices]:
    """Return which images each segment shows, in order."""
    count = len(labels)
    if protocol == "gradual":
        orders: list[Indices] = []
        for name in dict.fromkeys(segment.corruption for segment in segments):
            visits = sum(segment.corruption == name for segment in segments)
            order = _generator(seed, protocol, Condition(name, 0)).permutation(count)
            orders += np.array_split(order, visits)
        return orders
    if protocol == "correlated":
        return [
            _correlated(labels, concentration, _generator(seed, protocol, segment)) for segment in segments
        ]
    # Not the protocol but the condition makes the order: reset and continual show a corruption's images alike.
    return [_generator(seed, "shuffled", segment).permutation(count) for segment in segments]


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
