"""The names of the durable counters of a cohort: what the server and the worker count, and the store keeps.

Those that are listed here have a series among the metrics from the start: who waits for the first increase needs the 0
before it. A counter of a store of your own that is not listed is kept, and told in the cohort's status.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias, get_args

__all__ = ["COUNTERS", "PREFIXES", "Outcome", "Series", "series_of"]

Outcome: TypeAlias = Literal["published", "waiting", "gated", "reverted", "not_finite", "unsigned"]
"""What became of a candidate of an update, see `cema.cloud.worker.publisher.Candidate`."""


class Series(NamedTuple):
    """What a counter is among the metrics: the name, without ``_total``, and the value of its label, if it has one."""

    metric: str
    label: str | None


# The counters of one metric are called the same but for the last part, which is its label.
_FAMILIES = {
    "samples.rejected.": ("cema_samples_rejected", ("format", "image")),
    "samples.": ("cema_samples", ("stored", "duplicate")),
    "evicted.": ("cema_samples_evicted", ("byte_cap",)),
    "worker.": (
        "cema_worker_events",
        (
            "abandoned_replays",
            "abandoned_samples",
            "clock_faults",
            "failed_samples",
            "failed_steps",
            "fresh_steps",
            "gone_samples",
            "left_out_samples",
            "refused_gradients",
            "replay_steps",
            "resets",
            "restarts",
            "skipped_samples",
            "unreadable_samples",
        ),
    ),
    "updates.": ("cema_updates", get_args(Outcome)),
    "bytes.": ("cema_image_bytes", ("stored", "duplicate")),
    "reports.": ("cema_reports", ("received", "lost")),
    "drawn.": ("cema_drawn_samples", ("stored", "measured", "unreadable", "failed")),
}
PREFIXES = tuple(_FAMILIES)
"""What the names of a family begin with; a name belongs to the first that it begins with."""


def _listed() -> Iterator[tuple[str, Series]]:
    for prefix, (metric, names) in _FAMILIES.items():
        for name in names:
            yield f"{prefix}{name}", Series(metric, name)
    # Samples that left the store, and no verdicts on an upload, as the names would have it.
    for name in ("deleted", "expired"):
        yield f"samples.{name}", Series("cema_samples_evicted", name)
    yield "samples.labelled", Series("cema_labels", None)


COUNTERS = dict(_listed())
"""Every counter that this project counts and tells as a metric, by its name."""


def series_of(name: str) -> Series | None:
    """Return what a counter is among the metrics, or None for one that is not told there.

    Examples
    --------
    >>> series_of("samples.stored"), series_of("evicted.of_my_own"), series_of("steps.count")
    (Series(metric='cema_samples', label='stored'), Series(metric='cema_samples_evicted', label='of_my_own'), None)
    """
    if name in COUNTERS:
        return COUNTERS[name]
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
    return None if prefix is None else Series(_FAMILIES[prefix][0], name.removeprefix(prefix))
