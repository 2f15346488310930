"""What was learned for each domain, to be put back when the domain comes again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import torch

from cema.adapt.checkpoint import State, below, check_tensors
from cema.errors import FormatError
from cema.ondevice.drift import Domain, statistics_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from cema.adapt.config import AdaptConfig
    from cema.adapt.trainable import TrainableModel

__all__ = ["Entry", "Found", "NormBank", "Spread"]

# Full batches of one domain from which a state must have been learned to be kept: fewer may all be of a mixed batch.
_LEAST_BATCHES = 2

# How many times the limit a batch is from the uploads before it where it is recognised as of another domain.
_UNLIKE = 2.0


class _SavedEntry(msgspec.Struct, forbid_unknown_fields=True):
    vectors: list[str]
    rows: int
    learned: int


class _SavedBank(msgspec.Struct, forbid_unknown_fields=True):
    entries: list[_SavedEntry]
    learned: int
    before: int
    current: int | None


@dataclass(frozen=True, eq=False)
class Entry:
    """What was learned for one domain.

    Attributes
    ----------
    rows : ndarray of float32 (N, F)
        The input statistics of its newest uploads; what the domain looks like.
    vectors : dict of str to torch.Tensor
        ``{side}.parameters`` (P,) and ``{side}.statistics`` (2, K) of both models, float32, on the CPU; without those
        that are as in the source model.
    learned : int
        New uploads that it was learned from, over all visits to the domain.
    """

    rows: npt.NDArray[np.float32]
    vectors: Mapping[str, torch.Tensor]
    learned: int

    @cached_property
    def spread(self) -> Spread:
        """How its inputs lie."""
        return Spread.of(self.rows)


class Spread(NamedTuple):
    """The input statistics of some uploads as a normal distribution.

    Attributes
    ----------
    mean : ndarray of float64 (F,)
    covariance : ndarray of float64 (F, F)
        With the differences added that `cema.ondevice.drift.Domain.precision` ignores.
    log_volume : float
        The logarithm of its determinant.
    uploads : int
        How many.
    """

    mean: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]
    log_volume: float
    uploads: int

    @classmethod
    def of(cls, rows: npt.NDArray[np.float32]) -> Spread:
        """Return that of input statistics (N, F), N at least F + 3."""
        with np.errstate(over="ignore"):  # a covariance past float32 is refused as not finite
            domain = Domain.of(rows)
        covariance = np.linalg.inv(domain.precision()).astype(np.float64)
        volume = float(np.linalg.slogdet(covariance)[1])
        return cls(domain.mean.astype(np.float64), covariance, volume, len(rows))

    def distance(self, other: Spread) -> float:
        """Return the Bhattacharyya distance to another: 0 for one that is the same."""
        shift = self.mean - other.mean
        middle = 0.5 * (self.covariance + other.covariance)
        volumes = float(np.linalg.slogdet(middle)[1]) - 0.5 * (self.log_volume + other.log_volume)
        return float(shift @ np.linalg.solve(middle, shift)) / 8 + 0.5 * volumes

    def unlike(self, other: Spread) -> float:
        r"""Return the distance as a multiple of what two samples of one domain have by chance.

        That is to first order, for samples of N and M independent inputs and F statistics,

        .. math:: \left(\frac{F}{8} + \frac{F (F + 1)}{16}\right) \left(\frac{1}{N} + \frac{1}{M}\right)

        and with N - F/2 - 1 in the place of N, and so for M, within a tenth for 24 inputs or more. About 1 in the
        domain itself; 1.5 is exceeded there once in a hundred times.
        """
        size = len(self.mean)
        counts = (max(1.0, spread.uploads - size / 2 - 1) for spread in (self, other))
        chance = (size / 8 + size * (size + 1) / 16) * sum(1.0 / count for count in counts)
        return self.distance(other) / chance


class Found(NamedTuple):
    """What `NormBank.enter` has put back.

    Attributes
    ----------
    entry : Entry
        Whose domain the inputs are like.
    other : bool
        Whether the parameters are others now. Not where they were put back for the batch before this one: what was
        learned from that batch stays, and the statistics alone are put back.
    """

    entry: Entry
    other: bool


class NormBank:
    """Norm states by domain, at most as many as `AdaptConfig.bank` says.

    When a domain ends, what was learned for it takes the place of the entry that its inputs are like, or becomes an
    entry of its own. When inputs are of another domain, the entry that they are most like is put back.

    Parameters
    ----------
    models : mapping of str to TrainableModel
        Whose states are kept and put back: ``edge``, whose inputs are compared, and others.
    config : AdaptConfig
        ``bank``, ``bank_limit``, ``bank_parameters``, ``window``, ``fresh``.

    Attributes
    ----------
    entries : list of Entry
        The one stored last at the end.
    """

    def __init__(self, models: Mapping[str, TrainableModel], config: AdaptConfig) -> None:
        self.entries: list[Entry] = []
        self._models = dict(models)
        self._config = config
        self._learned = 0
        self._before = 0
        self._current: int | None = None
        wanted = self._models["edge"].preprocessing
        self._statistics = statistics_size(wanted.channels, wanted.height, wanted.width)

    @property
    def has_put_back(self) -> bool:
        """Whether the models have learned on from an entry, since the domain changed."""
        return self._current is not None

    def learn_from(self, count: int) -> None:
        """Take note that the models are about to learn from this many new uploads."""
        self._learned += count

    def leave(self, rows: npt.NDArray[np.float32] | None) -> None:
        """Keep what was learned for a domain that has ended, if it was from enough uploads.

        Parameters
        ----------
        rows : ndarray of float32 (N, F) or None
            The input statistics of its newest uploads.
        """
        learned, before = self._learned, self._before
        self._learned, self._before, self._current = 0, 0, None
        enough = learned >= _LEAST_BATCHES * self._config.fresh
        if not self._config.bank or rows is None or not enough or len(rows) < rows.shape[1] + 3:
            return
        place = self._nearest(rows)
        if place is not None:
            del self.entries[place]
        vectors = {
            f"{side}.{key}": vector
            for side, model in self._models.items()
            for key, vector in model.norm_vectors().items()
        }
        self.entries.append(Entry(rows[-self._config.window :].copy(), vectors, before + learned))
        self._make_room()

    def recognises(self, rows: npt.NDArray[np.float32], known: npt.NDArray[np.float32] | None) -> bool:
        """Tell whether a batch is like an entry, and unlike the newest uploads before it: the domain has changed.

        This tells domains apart that `ChangeDetector` does not, as it compares all of a batch, and with both.

        Parameters
        ----------
        rows, known : ndarray of float32 (N, F)
            The input statistics of the batch, and of the uploads before it.
        """
        if known is None or len(known) < rows.shape[1] + 3 or self._nearest(rows) is None:
            return False
        return Spread.of(rows).unlike(Spread.of(known)) > _UNLIKE * self._config.bank_limit

    def enter(self, rows: npt.NDArray[np.float32]) -> Found | None:
        """Put back what was learned for the domain of a batch.

        Parameters
        ----------
        rows : ndarray of float32 (N, F)
            The input statistics of the batch. One that mixes two domains is like neither.

        Returns
        -------
        Found or None
            None, and nothing was put back, when the inputs are like no entry's.
        """
        place = self._nearest(rows)
        if place is None:
            self._before, self._current = 0, None
            return None
        entry, again = self.entries[place], place == self._current
        for side, model in self._models.items():
            vectors = below(side, entry.vectors)
            parameters = not again and (side != "edge" or self._config.bank_parameters == "both")
            model.put_norm_vectors(vectors, len(entry.rows), parameters=parameters)
        if not again:
            self._learned, self._before, self._current = 0, entry.learned, place
        return Found(entry, other=not again)

    def forget(self) -> None:
        """Forget all entries: whose inputs their statistics are of is not known."""
        self.entries, self._current = [], None

    def state(self) -> State:
        """Return everything in here, for `load`; nothing at all where the bank is switched off."""
        if not self._config.bank:
            return State({}, {})
        saved = _SavedBank([], self._learned, self._before, self._current)
        tensors: dict[str, torch.Tensor] = {}
        for place, entry in enumerate(self.entries):
            saved.entries.append(_SavedEntry(sorted(entry.vectors), len(entry.rows), entry.learned))
            tensors[f"{place}.rows"] = torch.from_numpy(entry.rows.copy())
            tensors |= {f"{place}.{key}": vector.clone() for key, vector in entry.vectors.items()}
        return State(tensors, msgspec.to_builtins(saved))

    def load(self, state: State) -> None:
        """Restore what `state` returned; nothing is in here after a state without values.

        Entries that are too many for the present settings are forgotten as when they are stored.

        Raises
        ------
        FormatError
            When something is missing, unknown or misshapen, or no domain's inputs lie like that; the bank is as before
            then.
        """
        tensors, values = state
        saved = _read(values) if values else _SavedBank([], 0, 0, None)
        check_tensors(self._shapes(saved), tensors)
        entries = []
        for place, told in enumerate(saved.entries):
            own = {key: tensors[f"{place}.{key}"].float().clone() for key in told.vectors}
            entries.append(Entry(tensors[f"{place}.rows"].float().numpy().copy(), own, told.learned))
            _ = entries[-1].spread  # refuses now what could not be compared later
        self.entries, self._current = entries, saved.current
        self._learned, self._before = saved.learned, saved.before
        self._make_room()

    def _shapes(self, saved: _SavedBank) -> dict[str, torch.Size]:
        """Return the shapes that the tensors of a saved bank must have."""
        known = {
            f"{side}.{key}": shape
            for side, model in self._models.items()
            for key, shape in model.norm_vector_shapes().items()
        }
        size = self._statistics
        shapes = {}
        for place, told in enumerate(saved.entries):
            if not set(told.vectors) <= known.keys() or told.rows < size + 3:
                raise FormatError(
                    f"expected an entry of the bank of {', '.join(sorted(known))} and at least {size + 3} rows, got "
                    f"{', '.join(told.vectors)} and {told.rows} rows; use another state or start anew"
                )
            shapes[f"{place}.rows"] = torch.Size((told.rows, size))
            shapes |= {f"{place}.{key}": known[key] for key in told.vectors}
        return shapes

    def _nearest(self, rows: npt.NDArray[np.float32]) -> int | None:
        """Return which entry these inputs are most like, within the limit."""
        if not self.entries or len(rows) < rows.shape[1] + 3:
            return None
        spread = Spread.of(rows)
        distances = [spread.unlike(entry.spread) for entry in self.entries]
        place = int(np.argmin(distances))
        return place if distances[place] <= self._config.bank_limit else None

    def _make_room(self) -> None:
        """Forget, of the two entries most alike, the one learned from less, until the others fit."""
        while len(self.entries) > self._config.bank:
            self._current = None
            pairs = combinations(range(len(self.entries)), 2)
            pair = min(
                pairs,
                key=lambda p: self.entries[p[0]].spread.distance(self.entries[p[1]].spread),
                default=(0, 0),
            )
            del self.entries[min(pair, key=lambda place: self.entries[place].learned)]


def _read(values: object) -> _SavedBank:
    """Read what `NormBank.state` returned beside tensors."""
    try:
        saved = msgspec.convert(values, _SavedBank)
    except msgspec.ValidationError as error:
        raise FormatError(
            f"the adapter state has a bank that cannot be read: {error}; use another or start anew"
        ) from error
    counts = [saved.learned, saved.before, *(entry.learned for entry in saved.entries)]
    if min(counts) < 0 or not (saved.current is None or 0 <= saved.current < len(saved.entries)):
        raise FormatError(
            f"expected counts of at least 0 and one of {len(saved.entries)} entries as the present one, got "
            f"{min(counts)} and {saved.current}; use another state or start anew"
        )
    return saved
