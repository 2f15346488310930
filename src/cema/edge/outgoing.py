"""What a request may hold of the samples that wait, and what is said of them beside its frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cema.edge.near_duplicates import NearDuplicates
from cema.edge.spool import Spool
from cema.formats.draw import MAX_BYTES, Draw, encode_draws
from cema.formats.sample import Sample

__all__ = ["Outgoing"]


class Outgoing:
    """The first samples of a spool, with their draws: what a request may hold.

    Parameters
    ----------
    spool : Spool
    near_duplicates : NearDuplicates, optional
        What is not to be sent, unless it was drawn.
    """

    def __init__(self, spool: Spool, near_duplicates: NearDuplicates | None) -> None:
        self._spool, self._near_duplicates = spool, near_duplicates
        self._draws: dict[str, Draw] = {}

    def peek(self, samples: int, size: int) -> tuple[list[Sample], list[Sample]]:
        """Return the first samples that may be sent together, and the near-duplicates that are to be dropped.

        A near-duplicate that was drawn is sent, as one that the selection did not choose. What was drawn alone is like
        no other: the cloud does not learn from it.

        Raises
        ------
        SpoolError
            When the spool cannot be read.
        """
        batch = self._spool.peek(samples, size)
        self._draws = self._spool.draws(sample.id for sample in batch)
        twins: list[Sample] = []
        if self._near_duplicates is not None:
            chosen = [s for s in batch if s.id not in self._draws or self._draws[s.id].selected]
            fresh, like = self._near_duplicates.split(chosen)
            twins = [sample for sample in like if sample.id not in self._draws]
            self._draws |= {s.id: Draw(self._draws[s.id].share, False) for s in like if s.id in self._draws}
            wait = {sample.id for sample in chosen} - {sample.id for sample in (*fresh, *like)}
            gone = wait | {sample.id for sample in twins}
            batch = [sample for sample in batch if sample.id not in gone]
        return self._cut(batch), twins

    def header(self, batch: Sequence[Sample]) -> str | None:
        """Return what is to be said of a batch beside its frame; None where none of it was drawn."""
        return encode_draws(draws) if (draws := self._positions(batch)) else None

    def _positions(self, batch: Sequence[Sample]) -> Mapping[int, Draw]:
        return {i: self._draws[sample.id] for i, sample in enumerate(batch) if sample.id in self._draws}

    def _cut(self, batch: list[Sample]) -> list[Sample]:
        """Return as many of the first samples as a header can tell of."""
        while len(self.header(batch) or "") > MAX_BYTES:
            batch = batch[: len(batch) // 2]
        return batch
