"""Adaptation: what the cloud does with uploads, shared with the benchmark.

Importing this package loads no torch, so that a process without it can read and check `AdaptConfig`. Names are
loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cema.adapt.cema import AdapterState, CemaAdapter, DistillationStep, FoundationStep, StepReport
    from cema.adapt.config import PRESETS, AdaptConfig, LossWeights
    from cema.adapt.losses import DistillationTerms, distillation_loss, entropy_loss, sample_weights
    from cema.adapt.norm import AdaptiveBatchNorm, prepare
    from cema.adapt.replay import ReplayBuffer
    from cema.adapt.statistics import RunningStatistics

__all__ = [
    "PRESETS",
    "AdaptConfig",
    "AdapterState",
    "AdaptiveBatchNorm",
    "CemaAdapter",
    "DistillationStep",
    "DistillationTerms",
    "FoundationStep",
    "LossWeights",
    "ReplayBuffer",
    "RunningStatistics",
    "StepReport",
    "distillation_loss",
    "entropy_loss",
    "prepare",
    "sample_weights",
]

_HOMES = {
    "PRESETS": "config",
    "AdaptConfig": "config",
    "AdapterState": "cema",
    "AdaptiveBatchNorm": "norm",
    "CemaAdapter": "cema",
    "DistillationStep": "cema",
    "DistillationTerms": "losses",
    "FoundationStep": "cema",
    "LossWeights": "config",
    "ReplayBuffer": "replay",
    "RunningStatistics": "statistics",
    "StepReport": "cema",
    "distillation_loss": "losses",
    "entropy_loss": "losses",
    "prepare": "norm",
    "sample_weights": "losses",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
