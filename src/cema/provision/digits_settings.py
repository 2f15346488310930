"""How the models of the embedded digits are adapted: as the benchmark's row for streams as short as the demo's.

But for the window of statistics: with 192 uploads, as in that row, fog is cured later (docs/results.md).
"""

from __future__ import annotations

__all__ = ["adapt_settings", "edge_settings"]

_BATCHNORM = """
[cohort.adapt]
fresh = 16
replay_from = 64
passes = 8
average = 0.98
edge_lr = 0.01
foundation_lr = 0.0
on_change = "reset"
"""

_LAYERNORM = """
[cohort.adapt]
fresh = 16
replay_from = 64
passes = 12
average = 0.95
edge_lr = 0.004
foundation_lr = 0.0
"""

_VIEWS = """
[views]
count = 5
shift = 1
"""


def adapt_settings(*, statistics: bool) -> str:
    """Return the section ``[cohort.adapt]`` of the cloud's configuration, as TOML.

    Parameters
    ----------
    statistics : bool
        Whether the edge model has BatchNorm layers.
    """
    return _BATCHNORM if statistics else _LAYERNORM


def edge_settings() -> str:
    """Return what a device's configuration has beyond the defaults, as TOML."""
    return _VIEWS
