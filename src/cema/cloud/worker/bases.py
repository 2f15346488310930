"""A cohort's worker and the base model: where it goes on after a change, and how it sees one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from cema.adapt.base import Learner
from cema.cloud.config import CloudConfig, CohortConfig
from cema.cloud.store.backups import version_floor
from cema.cloud.store.base import OtherBase, Store
from cema.cloud.store.bases import newest_of, periods_of
from cema.cloud.worker.fairness import AHEAD, UPLOAD
from cema.cloud.worker.publisher import Publisher
from cema.errors import ConfigError

__all__ = ["check_base", "replay_stored", "reread_cohort", "resume_publisher"]

# Samples whose senders are read at one time.
PIECE = 10_000


def resume_publisher(publisher: Publisher, store: Store, cohort: str) -> None:
    """Let a publisher go on after the last version of its base, with a number that no version of any base has."""
    publisher.resume(newest_of(store, cohort, publisher.bundle.manifest.base))
    latest = store.latest_update(cohort)
    publisher.not_below(max(version_floor(store, cohort), latest.version + 1 if latest else 0))


def replay_stored(learner: Learner[int], store: Store, cohort: str, *, until: int, most: int) -> None:
    """Give a learner without a past the newest stored samples up to a sequence number, for replay.

    No device gives much more than the others.
    """
    by_device: dict[str, list[int]] = {}
    after = 0
    while piece := [w for w in store.waiting(cohort, after=after, limit=PIECE) if w.seq <= until]:
        for seq, device in piece:
            by_device.setdefault(device, []).append(seq)
        after = piece[-1].seq
    chosen = sorted(seq for device in by_device for seq in _share(by_device, device))
    if chosen and most:
        learner.skip(chosen[-most:])


def _share(by_device: Mapping[str, Sequence[int]], device: str) -> Sequence[int]:
    """Return the newest samples of a device, as many as it may be ahead of the others."""
    others = [len(seqs) for name, seqs in by_device.items() if name != device]
    if not others:
        return by_device[device]
    return by_device[device][-(math.ceil(AHEAD * sum(others) / len(others)) + UPLOAD) :]


def check_base(store: Store, cohort: str, base: str) -> None:
    """Check that a cohort still has a base.

    Raises
    ------
    OtherBase
        Its devices were brought to another one.
    """
    periods = periods_of(store, cohort)
    if periods and periods[-1].base != base:
        raise OtherBase(
            f"cohort {cohort!r} was migrated to base model {periods[-1].base[:12]}, this worker has {base[:12]}; it "
            "goes on once `bundle`, `model` and `model_weights` in the configuration are the new ones"
        )


def reread_cohort(
    reread: Callable[[], CloudConfig] | None, cohort: CohortConfig
) -> tuple[CloudConfig, CohortConfig] | None:
    """Read the configuration again, and return it with a cohort of it; None where that is as before, or cannot be."""
    try:
        config = reread() if reread is not None else None
    except ConfigError:  # somebody is writing it, perhaps; what it lacks is said at the next start
        return None
    found = next((c for c in config.cohort if c.name == cohort.name), None) if config else None
    return None if config is None or found is None or found == cohort else (config, found)
