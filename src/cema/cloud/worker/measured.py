"""What a step on new samples says about every model's agreement, as the store keeps it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cema.cloud.store.agreements import AgreementCount
from cema.cloud.store.base import StoredSample
from cema.cloud.worker.gate import BatchAgreement

__all__ = ["counts_of"]


def counts_of(
    tested: BatchAgreement,
    samples: Sequence[StoredSample],
    labels: npt.NDArray[np.int64],
    *,
    version: int,
    newest: int = 0,
) -> list[AgreementCount]:
    """Return the counts of one batch of new samples, before it was learned from.

    Parameters
    ----------
    tested : BatchAgreement
        How three models did on the batch.
    samples : sequence of StoredSample
        The batch, with what devices answered.
    labels : ndarray of int64 (N,)
        The foundation model's.
    version : int
        The newest version that is for all devices.
    newest : int
        The newest that any device was offered, if that is another. A device that names a newer one is not counted: it
        may say anything.
    """
    found = [
        AgreementCount(version, "running", tested.count, tested.running),
        AgreementCount(version, "source", tested.count, tested.source),
    ]
    if tested.before_update:
        found.append(AgreementCount(version, "adapted", tested.count, tested.adapted))
    answered: Counter[int] = Counter()
    agreed: Counter[int] = Counter()
    for sample, label in zip(samples, labels.tolist(), strict=True):
        if sample.version <= max(version, newest):
            answered[sample.version] += 1
            agreed[sample.version] += sample.label == label
    return [*found, *(AgreementCount(v, "device", n, agreed[v]) for v, n in sorted(answered.items()))]
