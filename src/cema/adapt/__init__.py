"""Adaptation: what the cloud does with uploads, and every method of the benchmark.

Importing this package loads no torch, so that a process without it can read and check `AdaptConfig`. Names are
loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cema.adapt.adapter import Adapter, Context, NotApplicable, Outcome, Uplink
    from cema.adapt.bn import BN, BNConfig
    from cema.adapt.cema import AdapterState, CemaAdapter, DistillationStep, FoundationStep, StepReport
    from cema.adapt.cema_stream import CemaStream, CemaStreamConfig
    from cema.adapt.config import PRESETS, AdaptConfig, LossWeights
    from cema.adapt.cotta import CoTTA, CoTTAConfig
    from cema.adapt.eata import EATA, EATAConfig
    from cema.adapt.eta import ETA, ETAConfig
    from cema.adapt.lame import Lame, LameConfig
    from cema.adapt.losses import DistillationTerms, distillation_loss, entropy_loss, sample_weights
    from cema.adapt.methods import METHODS, default_settings, make_adapter
    from cema.adapt.norm import AdaptiveBatchNorm, prepare
    from cema.adapt.onda import ONDA, ONDAConfig
    from cema.adapt.pl import PL, PLConfig
    from cema.adapt.replay import ReplayBuffer
    from cema.adapt.sar import SAR, SARConfig
    from cema.adapt.source import Source, SourceConfig
    from cema.adapt.statistics import RunningStatistics
    from cema.adapt.tent import Tent, TentConfig

__all__ = [
    "BN",
    "EATA",
    "ETA",
    "METHODS",
    "ONDA",
    "PL",
    "PRESETS",
    "SAR",
    "AdaptConfig",
    "Adapter",
    "AdapterState",
    "AdaptiveBatchNorm",
    "BNConfig",
    "CemaAdapter",
    "CemaStream",
    "CemaStreamConfig",
    "CoTTA",
    "CoTTAConfig",
    "Context",
    "DistillationStep",
    "DistillationTerms",
    "EATAConfig",
    "ETAConfig",
    "FoundationStep",
    "Lame",
    "LameConfig",
    "LossWeights",
    "NotApplicable",
    "ONDAConfig",
    "Outcome",
    "PLConfig",
    "ReplayBuffer",
    "RunningStatistics",
    "SARConfig",
    "Source",
    "SourceConfig",
    "StepReport",
    "Tent",
    "TentConfig",
    "Uplink",
    "default_settings",
    "distillation_loss",
    "entropy_loss",
    "make_adapter",
    "prepare",
    "sample_weights",
]

_HOMES = {
    "BN": "bn",
    "EATA": "eata",
    "ETA": "eta",
    "METHODS": "methods",
    "ONDA": "onda",
    "PL": "pl",
    "PRESETS": "config",
    "SAR": "sar",
    "AdaptConfig": "config",
    "Adapter": "adapter",
    "AdapterState": "cema",
    "AdaptiveBatchNorm": "norm",
    "BNConfig": "bn",
    "CemaAdapter": "cema",
    "CemaStream": "cema_stream",
    "CemaStreamConfig": "cema_stream",
    "CoTTA": "cotta",
    "CoTTAConfig": "cotta",
    "Context": "adapter",
    "DistillationStep": "cema",
    "DistillationTerms": "losses",
    "EATAConfig": "eata",
    "ETAConfig": "eta",
    "FoundationStep": "cema",
    "Lame": "lame",
    "LameConfig": "lame",
    "LossWeights": "config",
    "NotApplicable": "adapter",
    "ONDAConfig": "onda",
    "Outcome": "adapter",
    "PLConfig": "pl",
    "ReplayBuffer": "replay",
    "RunningStatistics": "statistics",
    "SARConfig": "sar",
    "Source": "source",
    "SourceConfig": "source",
    "StepReport": "cema",
    "Tent": "tent",
    "TentConfig": "tent",
    "Uplink": "adapter",
    "default_settings": "methods",
    "distillation_loss": "losses",
    "entropy_loss": "losses",
    "make_adapter": "methods",
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
