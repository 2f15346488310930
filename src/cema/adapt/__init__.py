"""Adaptation: what the cloud does with uploads, shared with the benchmark."""

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
