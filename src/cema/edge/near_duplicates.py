"""Samples that look like one that was sent, and are not sent again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cema.edge.spool import Spool
from cema.errors import ImageError, SpoolError
from cema.formats.image import decode_image
from cema.formats.sample import Sample
from cema.ondevice.likeness import SIGNATURE_BYTES, likeness_distances, likeness_signature

__all__ = ["NearDuplicates"]

logger = logging.getLogger(__name__)

Signature = npt.NDArray[np.uint8]


class NearDuplicates:
    """What the latest samples looked like that the cloud has; the spool remembers it over restarts.

    Parameters
    ----------
    spool : Spool
    distance : float
        Samples closer than this to one of those are near-duplicates; see
        `cema.ondevice.likeness.likeness_distances`.
    most : int
        How many are remembered.
    """

    def __init__(self, spool: Spool, *, distance: float, most: int) -> None:
        self._spool, self._distance, self._most = spool, distance, most
        self._sent: deque[Signature] = deque(maxlen=most)
        self._loaded = False  # whether what was sent before is among them
        self._latest: dict[str, Signature | None] = {}  # of the samples that were looked at last

    def split(self, batch: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Return the samples of a batch that may be sent together, and those that look like one that was sent.

        One that looks like another of the batch is in neither: it is a near-duplicate once that one is sent. An
        image that cannot be decoded looks like no other.

        Parameters
        ----------
        batch : sequence of Sample

        Raises
        ------
        SpoolError
            When the spool cannot be read.
        """
        if not self._loaded:
            kept = (data for data in self._spool.remembered() if len(data) == SIGNATURE_BYTES)
            self._sent.extend(np.frombuffer(data, np.uint8) for data in kept)
            self._loaded = True
        before = self._latest
        self._latest = {
            sample.id: before[sample.id] if sample.id in before else _signature(sample) for sample in batch
        }
        fresh: list[Sample] = []
        twins: list[Sample] = []
        beside: list[Signature] = []
        for sample in batch:
            signature = self._latest[sample.id]
            if signature is None:
                fresh.append(sample)
            elif self._near(signature, self._sent):
                twins.append(sample)
            elif not self._near(signature, beside):
                fresh.append(sample)
                beside.append(signature)
        return fresh, twins

    def remember(self, samples: Sequence[Sample]) -> None:
        """Remember samples that the cloud has; a disk that refuses costs no more than one of them sent twice."""
        found = [self._latest.get(sample.id) for sample in samples]
        new = [signature for signature in found if signature is not None]
        self._sent.extend(new)
        try:
            self._spool.remember([signature.tobytes() for signature in new], self._most)
        except SpoolError as error:
            logger.warning("what was sent is remembered until the next start only: %s", error)

    def _near(self, signature: Signature, others: Sequence[Signature] | deque[Signature]) -> bool:
        return bool(len(others)) and bool(
            (likeness_distances(signature, np.stack(list(others))) < self._distance).any()
        )


def _signature(sample: Sample) -> Signature | None:
    try:
        return likeness_signature(decode_image(sample.image))
    except ImageError:
        return None
