"""What can be set about the adaptation, with the two published weightings as presets."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from cema._util.checks import require
from cema.ondevice.unsure import ViewSet

__all__ = ["PRESETS", "AdaptConfig", "LossWeights"]

Source = Literal["edge", "foundation"]


class LossWeights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the three terms of the distillation loss are weighed.

    Attributes
    ----------
    kl : float
        Weight of the divergence between the two models' predictions (the poster's alpha).
    ce : float
        Weight of the cross-entropy against the foundation model's label (the poster's beta).
    entropy : float
        Weight of the edge model's own entropy.
    divergence : {"edge||foundation", "foundation||edge"}
        Which of the two divergences the first term is: KL(g||f) or KL(f||g).
    teaching_weight, entropy_weight : {"edge", "foundation"}
        Whose entropy makes the sample weight H(x) of the first two terms, and of the third.
    """

    kl: float
    ce: float
    entropy: float
    divergence: Literal["edge||foundation", "foundation||edge"]
    teaching_weight: Source
    entropy_weight: Source


PRESETS: dict[str, LossWeights] = {
    # Chen et al. (2024): one H(x), defined by the foundation model's entropy, in front of all three terms.
    "poster": LossWeights(
        kl=3.0,
        ce=3.0,
        entropy=1.0,
        divergence="edge||foundation",
        teaching_weight="foundation",
        entropy_weight="foundation",
    ),
    # The authors' program: torch's kl_div(log g, f), which is KL(f||g), and two different weights.
    "reference": LossWeights(
        kl=3.0,
        ce=1.0,
        entropy=3.0,
        divergence="foundation||edge",
        teaching_weight="foundation",
        entropy_weight="edge",
    ),
}


class AdaptConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `cema.adapt.learner.CemaLearner`.

    Attributes
    ----------
    preset : {"poster", "reference"}
        The weighting of the distillation loss: the paper's or the published code's (`LossWeights`).
    kl, ce, entropy : float, optional
        Replace the preset's weight of one term: of the divergence, of the cross-entropy, of the edge model's entropy.
        At least 0.
    e_max : float
        E_max^0 of the sample weight H(x) = exp(E_max^0 - E), as a fraction of ln C; at least 0.
    edge_lr, foundation_lr : float
        SGD learning rates. At a rate of 0 only that model's statistics move.
    sgd_momentum : float
        Momentum of both optimisers, in [0, 1).
    fresh : int
        New uploads in one full step; at least 1.
    replayed : int
        Replayed samples added to a full step; a smaller step gets proportionally fewer. The paper has 96; 48 were as
        accurate on three pairs of models.
    passes : int
        Distillation steps for each batch of new uploads, at least 1; each beside others that are replayed. The
        foundation model answers once.
    average : float
        What is published is an exponential average of the edge model's parameters over the latest steps, replay-only
        ones and every pass counted: 1 - 1/n for about n of them (`cema.adapt.averaging.ParameterAverage`), 0 for those
        of the last step; in [0, 1).
    capacity : int
        Samples the replay buffer keeps, first in first out; 0 switches replay off.
    replay_from : int
        Samples that must be stored before replay begins; at least 1, at most `capacity`.
    start : {"first_batch", "source"}
        Where running statistics start: at those of the first uploads, or at the source model's.
    statistics : {"window", "fresh", "step", "source"}
        What running statistics follow: the average over the last `window` new uploads, an exponential average over new
        uploads, an exponential average over everything in a step (new and replayed, as the published code does), or
        nothing at all.
    window : int
        New uploads over which ``statistics = "window"`` averages; at least 1.
    source_share : float
        What the source model's statistics count for beside a window's, in [0, 1), and 0 unless ``statistics =
        "window"``: as the devices' own (``[statistics] source_share``).
    change_limit : float
        How far the latest of a batch of uploads must be from those in the window, in what the inputs look like (a
        squared distance), to be taken for a change of domain (`ChangeDetector`), at which the window is cleared; 0
        switches this off.
    on_change : {"keep", "reset"}
        Whether at such a change a model's affine parameters stay as they are, or go back to the source model's because
        what they learned was for another domain.
    bank : int
        Domains for which what was learned is kept, at most, to be put back when one comes again
        (`cema.adapt.bank.NormBank`); 0 switches this off.
    bank_limit : float
        How far a batch of uploads may be from those of a kept domain to be taken for it: as a multiple of how far two
        samples of one domain are by chance (`cema.adapt.bank.Spread.unlike`); at least 0.
    bank_parameters : {"foundation", "both"}
        Whose affine parameters are put back, beside the statistics of both models.
    replay_scope : {"since_change", "all"}
        Whether samples from before the last such change are replayed.
    statistics_momentum : float
        Rate of the exponential averages per full step, in (0, 1].
    chunk : int
        Images in one forward pass without gradients; bounds memory. At least 1.
    algorithm : str
        What learns: ``cema``, ``package.module:Class`` or ``path/to/file.py:Class`` (`cema.adapt.base.Learner`).
    options : dict
        Settings of an algorithm of one's own; ``cema`` has none.
    refreshed : int
        Replayed samples of a step for which the foundation model's answer is made again; the others are taught with the
        answer from before. With ``fresh + replayed`` or more, every answer is made again in every step, as in the
        published code. At least 0.
    views : ViewSet
        Views of an upload over which the foundation model's answer is averaged, once for each upload.
    activations_mb : int
        Memory, in MiB, for what one model keeps between a forward and its backward pass, at least 1; more images than
        fit into it are passed in pieces. ``statistics = "step"`` passes everything at once.
    checkpoint : bool
        Recompute activations of repeated blocks in the backward pass: less memory, about a third more time.
    """

    preset: Literal["poster", "reference"] = "poster"
    kl: float | None = None
    ce: float | None = None
    entropy: float | None = None
    e_max: float = 0.4
    edge_lr: float = 2.5e-3
    foundation_lr: float = 2.5e-4
    sgd_momentum: float = 0.9
    fresh: int = 32
    replayed: int = 48
    passes: int = 1
    average: float = 0.0
    capacity: int = 10_000
    replay_from: int = 256
    start: Literal["first_batch", "source"] = "first_batch"
    statistics: Literal["window", "fresh", "step", "source"] = "window"
    window: int = 96
    source_share: float = 0.0
    change_limit: float = 36.0
    on_change: Literal["keep", "reset"] = "keep"
    bank: int = 0
    bank_limit: float = 1.6
    bank_parameters: Literal["foundation", "both"] = "foundation"
    replay_scope: Literal["since_change", "all"] = "since_change"
    statistics_momentum: float = 0.1
    chunk: int = 32
    refreshed: int = 16
    views: ViewSet = ViewSet()
    activations_mb: int = 1536
    checkpoint: bool = False
    algorithm: str = "cema"
    options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("fresh", "passes", "replay_from", "window", "chunk", "activations_mb"):
            require(getattr(self, name) >= 1, name, "a whole number of at least 1", getattr(self, name))
        for name in (
            "replayed",
            "capacity",
            "edge_lr",
            "foundation_lr",
            "e_max",
            "change_limit",
            "bank",
            "bank_limit",
            "refreshed",
        ):
            require(getattr(self, name) >= 0, name, "a number of at least 0", getattr(self, name))
        for name in ("kl", "ce", "entropy"):
            value = getattr(self, name)
            require(value is None or value >= 0, name, "a number of at least 0", value)
        for name in ("sgd_momentum", "average", "source_share"):
            require(0 <= getattr(self, name) < 1, name, "a number in [0, 1)", getattr(self, name))
        rate = self.statistics_momentum
        require(0 < rate <= 1, "statistics_momentum", "a number in (0, 1]", rate)
        share = self.source_share
        fits = not share or self.statistics == "window"
        require(fits, "source_share", 'a share of 0 unless statistics = "window"', share)
        if self.algorithm == "cema" and self.options:
            raise ValueError(
                f"options: expected none for the algorithm cema, got {sorted(self.options)}; its settings stand beside "
                "algorithm"
            )
        if self.capacity and self.replay_from > self.capacity:
            raise ValueError(
                f"replay_from: expected at most the capacity of {self.capacity}, got {self.replay_from}; "
                "replay would never begin, so lower it, raise capacity, or set capacity = 0 for no replay"
            )

    @property
    def loss_weights(self) -> LossWeights:
        """The preset's weights with what was replaced."""
        replaced = {name: getattr(self, name) for name in ("kl", "ce", "entropy")}
        return msgspec.structs.replace(
            PRESETS[self.preset], **{name: value for name, value in replaced.items() if value is not None}
        )
