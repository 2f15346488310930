"""CoTTA: learn every parameter from a slow copy of oneself, and forget a little of what was learned.

Wang et al., "Continual Test-Time Domain Adaptation", CVPR 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from cema._util.checks import require, require_fraction, require_rate
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.norm import normalising
from cema.adapt.optimizers import OptimizerName, as_array, descend, make_optimizer, require_optimizer
from cema.methods.base import StepResult, Uplink, method
from cema.methods.cotta_views import Scene, draw_view
from cema.methods.soft_labels import cross_entropies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["CoTTA", "CoTTAConfig"]


class CoTTAConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `CoTTA`; the defaults are the paper's for CIFAR-10-C.

    For CIFAR-100-C its confidence is 0.72. For ImageNet-C confidence 0.1, restore 0.001, SGD at 0.01, and the symmetric
    loss of the authors' program.

    Attributes
    ----------
    optimizer : {"adam", "sgd"}
        Adam, or SGD with Nesterov's momentum.
    lr : float
        Its learning rate.
    momentum : float
        Adam's first beta, or SGD's momentum, in [0, 1).
    ema : float
        Share of itself that the teacher keeps at every step.
    views : int
        Augmented views whose logits are averaged where the anchor is unsure; 0 for none ever.
    flip : float
        Probability of a view to be mirrored left to right; 0 where that makes another class of an image, as of a digit.
    confidence : float
        Mean confidence of the anchor below which the pseudo-labels are averaged over views.
    restore : float
        Probability of each weight to go back to the source model's, at every step.
    symmetric : bool
        Whether the loss is the mean of the cross-entropies in both directions, or the student's against the teacher.
    """

    optimizer: OptimizerName = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    ema: float = 0.999
    views: int = 32
    flip: float = 0.5
    confidence: float = 0.92
    restore: float = 0.01
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require_optimizer(self.optimizer)
        require_rate("lr", self.lr)
        require_fraction("momentum", self.momentum, below_one=True)
        for name in ("ema", "flip", "confidence", "restore"):
            require_fraction(name, getattr(self, name))
        require(self.views >= 0, "views", "a whole number of at least 0", self.views)


# Wang et al., CVPR 2022: Adam, 1e-3, confidence 0.92 (CIFAR-10) or 0.72 (CIFAR-100); SGD, 0.01, confidence 0.1
# (ImageNet).
PAPERS: dict[str, dict[str, Any]] = {
    "imagenet": {"optimizer": "sgd", "lr": 0.01, "confidence": 0.1, "restore": 0.001, "symmetric": True},
    "cifar100": {"confidence": 0.72},
    # A mirrored digit is another one, or none.
    "digits": {"flip": 0.0},
}


@method(
    "cotta",
    config=CoTTAConfig,
    cost=12.0,
    colour="#e377c2",
    papers=PAPERS,
    short={"digits/layernorm": {"lr": 1e-4}},
)
class CoTTA:
    r"""Weight-averaged and augmentation-averaged pseudo-labels, and stochastic restoration.

    For every batch x, with a student theta, a teacher theta' and the source model theta_0, all normalising with batch
    statistics: the pseudo-logits y' are the teacher's, or their mean over augmented views of x if the mean confidence
    of theta_0 is below a threshold; the student learns from

    .. math:: L = -\sum_c softmax(y')_c \log softmax(f_\theta(x))_c

    then theta' follows, theta' <- a theta' + (1 - a) theta, and each weight of theta goes back to theta_0's with a
    small probability. The predictions are y'.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied three times.
    config : CoTTAConfig, optional
        None for the defaults.
    context : Context
        Device, precision, codec, and the seed of views and restoration.

    Raises
    ------
    ModelError
        When the model has no normalisation layer.

    Notes
    -----
    All parameters learn, as the paper says; the program leaves out those that are not called weight or bias. Dropout
    stays off. A BatchNorm that sees a single value per channel uses the source statistics.
    """

    def __init__(self, edge: Model, config: CoTTAConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or CoTTAConfig()
        self.student, self.teacher, self.anchor = (
            AdaptableModel(edge, device=context.device, dtype=context.dtype) for _ in range(3)
        )
        self.student.module.requires_grad_(True)
        self.optimizer = make_optimizer(
            self.config.optimizer,
            self.student.module.parameters(),
            lr=self.config.lr,
            momentum=self.config.momentum,
            nesterov=self.config.momentum
            > 0,  # torch refuses it without momentum, where it would change nothing
        )
        self.uplink = Uplink(context.codec)
        self._rng = np.random.default_rng(context.seed)
        self._generator = torch.Generator(self.student.device).manual_seed(context.seed)
        self._layers = [
            layer for model in (self.student, self.teacher, self.anchor) for layer in model.layers.values()
        ]

    @torch.enable_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch, then learn from it; see `cema.methods.base.Adapter`."""
        count = len(images)
        inputs = self.student.inputs(images)
        with normalising(self._layers, "batch"):
            teacher, passes = self._pseudo_logits(inputs)
            losses = cross_entropies(self.student.run(inputs), teacher, symmetric=self.config.symmetric)
            descend(self.optimizer, losses.mean())
        self._follow()
        self._restore()
        return StepResult(
            logits=as_array(teacher),
            uploads=count,
            bytes_up=self.uplink.count(images),
            forwards=count * (passes + 1),
            backwards=count,
        )

    @torch.no_grad()
    def _pseudo_logits(self, inputs: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return the teacher's logits, and how often each sample was passed through a network for them."""
        confidence = float(self.anchor.run(inputs).softmax(dim=1).amax(dim=1).mean())
        views = self.config.views
        if not views or confidence >= self.config.confidence:
            return self.teacher.run(inputs), 2
        scene = Scene(inputs, self.student.preprocessing)
        total = torch.zeros(1, device=inputs.device)
        # View by view: batch statistics are those of a view.
        for _ in range(views):
            view = draw_view(self._rng, inputs.shape[2], inputs.shape[3], self.config.flip)
            total = total + self.teacher.run(scene.seen(view, self._generator))
        return total / views, 1 + views

    @torch.no_grad()
    def _follow(self) -> None:
        pairs = zip(self.teacher.module.parameters(), self.student.module.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1.0 - self.config.ema)

    @torch.no_grad()
    def _restore(self) -> None:
        if not self.config.restore:
            return
        pairs = zip(self.student.module.parameters(), self.anchor.module.parameters(), strict=True)
        for parameter, source in pairs:
            chance = torch.rand(parameter.shape, generator=self._generator, device=parameter.device)
            parameter.copy_(torch.where(chance < self.config.restore, source, parameter))
