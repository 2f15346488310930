"""RoTTA: learn from a balanced memory, with statistics that follow it slowly.

Yuan et al., "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np
import torch

from cema._util.checks import require_at_least, require_fraction, require_rate
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.losses import softmax_entropy
from cema.adapt.optimizers import as_array, descend, make_optimizer
from cema.methods.base import StepResult, Uplink, method
from cema.methods.cotta_views import Scene, draw_view
from cema.methods.rotta_memory import BalancedMemory
from cema.methods.soft_labels import cross_entropies

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cema.adapt.norm import AdaptiveBatchNorm
    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["RoTTA", "RoTTAConfig"]


class RoTTAConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `RoTTA`; the defaults are the paper's, for CIFAR-10-C and CIFAR-100-C.

    Attributes
    ----------
    lr, momentum : float
        Adam's learning rate, and its first beta, in [0, 1).
    ema : float
        Share of itself that the teacher keeps at every update; 1 - nu of the paper.
    alpha : float
        Share of the memory's statistics in the new running statistics, at every update.
    capacity : int
        N, the most images in the memory.
    every : int
        Images of the stream from one update to the next.
    age_weight, entropy_weight : float
        lambda_t and lambda_u: how much age and uncertainty count where an image has to leave the memory.
    flip : float
        Probability of a view to be mirrored left to right; 0 where that makes another class of an image, as of a digit.
    """

    lr: float = 1e-3
    momentum: float = 0.9
    ema: float = 0.999
    alpha: float = 0.05
    capacity: int = 64
    every: int = 64
    age_weight: float = 1.0
    entropy_weight: float = 1.0
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("lr", "age_weight", "entropy_weight"):
            require_rate(name, getattr(self, name))
        require_fraction("momentum", self.momentum, below_one=True)
        for name in ("ema", "alpha", "flip"):
            require_fraction(name, getattr(self, name))
        require_at_least(self, 1, "capacity", "every")


# Yuan et al., CVPR 2023, have CIFAR-10 and CIFAR-100. Marsden et al., WACV 2024, run it on ImageNet-C with the same
# values, for every architecture. A mirrored digit is another one, or none. On short streams the rate makes no
# difference: in 31 updates the teacher goes 3 % of the way to the student.
PAPERS = {"digits": {"flip": 0.0}}


@method("rotta", config=RoTTAConfig, cost=7.0, colour="#f7b6d2", papers=PAPERS)
class RoTTA:
    r"""A teacher's predictions of a memory of sure and recent images, learned on strong augmentations of them.

    The predictions are those of a teacher theta', with running statistics. Each goes with its image to a memory
    (`cema.methods.rotta_memory.BalancedMemory`). After every 64 images a student theta learns from the memory's n
    images x_i of age A_i, and from a strong augmentation x'_i of each,

    .. math:: L = \frac{1}{n} \sum_i \frac{\exp(-A_i)}{1 + \exp(-A_i)}
        \left(-\sum_c softmax(f_{\theta'}(x_i))_c \log softmax(f_\theta(x'_i))_c\right)

    by norm affine parameters; ages are fractions of the memory's capacity. Then theta' <- a theta' + (1 - a) theta.

    In an update, and only there, a BatchNorm normalises robustly: its running statistics move to
    mu <- (1 - alpha) mu + alpha mu_B and sigma^2 <- (1 - alpha) sigma^2 + alpha sigma_B^2, and are used at once.
    Gradients flow through the share of the batch. Student and teacher have statistics of their own.

    An image is uploaded if an update learns from it, or if it is in the memory when its batch has been predicted.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied twice.
    config : RoTTAConfig, optional
        None for the defaults.
    context : Context
        Device, precision, codec, and the seed of views.

    Raises
    ------
    ModelError
        When the model has no normalisation layer.

    Notes
    -----
    The authors' program adapts BatchNorm only and has nothing to learn without it. As in the program of Marsden et al.,
    the affine parameters of LayerNorm and GroupNorm learn too; these layers have no statistics to be robust about.

    sigma_B^2 is the biased variance, as in the authors' program. Its views are those of CoTTA
    (`cema.methods.cotta_views`). A BatchNorm that sees a single value per channel keeps its statistics and uses them.
    """

    def __init__(self, edge: Model, config: RoTTAConfig | None = None, *, context: MethodContext) -> None:
        self.config = c = config or RoTTAConfig()
        self.student, self.teacher = (
            AdaptableModel(edge, device=context.device, dtype=context.dtype) for _ in range(2)
        )
        self.optimizer = make_optimizer(
            "adam", self.student.parameters.values(), lr=c.lr, momentum=c.momentum
        )
        self.memory: BalancedMemory[torch.Tensor] = BalancedMemory(
            c.capacity, edge.classes, age_weight=c.age_weight, entropy_weight=c.entropy_weight
        )
        self.uplink = Uplink(context.codec)
        self._rng = np.random.default_rng(context.seed)
        self._generator = torch.Generator(self.student.device).manual_seed(context.seed)

    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch and fill the memory with it; whenever an update is due, learn from the memory."""
        inputs, logits, entropy = self._predict(images)
        labels = logits.argmax(dim=1).tolist()
        first, learned = self.memory.seen, 0
        needed: set[int] = set()
        for place, (label, uncertainty) in enumerate(zip(labels, entropy.tolist(), strict=True)):
            # A copy: a part of the batch would keep all of it in memory.
            self.memory.offer(inputs[place : place + 1].clone(), label, uncertainty)
            if self.memory.seen % self.config.every == 0:
                needed |= self._kept_since(first)
                learned += self._learn()
        needed |= self._kept_since(first)
        return StepResult(
            logits=as_array(logits),
            uploads=len(needed),
            bytes_up=self.uplink.count([images[place] for place in sorted(needed)]),
            forwards=len(images) + 2 * learned,
            backwards=learned,
        )

    @torch.no_grad()
    def _predict(self, images: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = self.teacher.inputs(images)
        logits = self.teacher.run(inputs)
        return inputs, logits, softmax_entropy(logits)

    def _kept_since(self, first: int) -> set[int]:
        """Return which images of a batch are in the memory, by their place in the batch that began at `first`."""
        return {kept.number - first for kept in self.memory.kept() if kept.number >= first}

    @torch.enable_grad()
    def _learn(self) -> int:
        """Learn from the memory and return how many images are in it."""
        kept = self.memory.kept()
        inputs = torch.cat([one.sample for one in kept])
        ages = torch.tensor([self.memory.age(one) for one in kept], device=inputs.device)
        view = draw_view(self._rng, inputs.shape[2], inputs.shape[3], self.config.flip)
        seen = Scene(inputs, self.student.preprocessing).seen(view, self._generator)
        alpha = self.config.alpha
        with torch.no_grad(), _robust(self.teacher.layers.values(), alpha):
            labels = self.teacher.run(inputs)
        with _robust(self.student.layers.values(), alpha):
            losses = cross_entropies(self.student.run(seen), labels)
        # exp(-A) / (1 + exp(-A))
        descend(self.optimizer, (torch.sigmoid(-ages) * losses).mean())
        self._follow()
        return len(kept)

    @torch.no_grad()
    def _follow(self) -> None:
        for name, slow in self.teacher.parameters.items():
            slow.lerp_(self.student.parameters[name], 1.0 - self.config.ema)


@contextmanager
def _robust(layers: Iterable[AdaptiveBatchNorm], alpha: float) -> Iterator[None]:
    """Let layers move their running statistics by `alpha`, and normalise with what they have become."""
    hooks = [layer.register_forward_hook(partial(_normalise, alpha=alpha)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _normalise(
    layer: AdaptiveBatchNorm, inputs: tuple[torch.Tensor, ...], output: torch.Tensor, *, alpha: float
) -> torch.Tensor:
    """Return what a layer is to answer in the place of `output`, and move its running statistics."""
    x = inputs[0].to(layer.running_var.dtype)
    if x.numel() // x.shape[1] < 2:
        return output
    variance, mean = torch.var_mean(x, dim=(0, *range(2, x.dim())), correction=0)
    mean = (1.0 - alpha) * layer.running_mean + alpha * mean
    variance = (1.0 - alpha) * layer.running_var + alpha * variance
    layer.running_mean.copy_(mean.detach())
    layer.running_var.copy_(variance.detach())
    # One map per channel: with (x - mean) / sigma written out, two more tensors of the input's size would be kept.
    scale = layer.weight * torch.rsqrt(variance + layer.eps)
    shift = layer.bias - mean * scale
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = torch.addcmul(shift.reshape(shape), x, scale.reshape(shape)).to(inputs[0].dtype)
    return cast("torch.Tensor", layer.act(layer.drop(y)))
