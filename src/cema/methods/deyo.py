"""DeYO: minimise the entropy of samples whose prediction is sure, and needs the shape of the object.

Lee et al., "Entropy is not Enough for Test-Time Adaptation: From the Perspective of Disentangled Factors", ICLR 2024.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch

from cema._util.checks import require, require_fraction, require_rate
from cema.adapt.losses import sample_weights, softmax_entropy
from cema.adapt.norm import normalising
from cema.adapt.optimizers import as_array
from cema.methods.base import Rates, StepResult, Uplink, method
from cema.methods.online import OnlineModel
from cema.methods.sar import below_top

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["DeYO", "DeYOConfig", "shuffle_patches"]


class DeYOConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `DeYO`; the defaults are those for ImageNet-C with GroupNorm.

    Attributes
    ----------
    lr, momentum : float
        SGD's; the authors' are 2.5e-4 for ResNet-50, 1e-3 for ViT-Base, and 0.9.
    e_margin : float
        Entropy tau_Ent below which a prediction is sure, as a fraction of ln C.
    plpd_margin : float
        Drop in probability tau_PLPD above which a prediction needed the shape, in [-1, 1].
    e_weight : float
        Entropy Ent_0 that the weights compare with, as a fraction of ln C.
    patches : int
        Patches in a row, and in a column, that are shuffled.
    skip : tuple of str, optional
        Patterns (as file names have them) of the names of normalisation layers that stay as they are; () for none of
        them. Left out, the topmost quarter by depth, as for SAR; see `cema.methods.sar.top_layers`.
    """

    lr: float = 2.5e-4
    momentum: float = 0.9
    e_margin: float = 0.5
    plpd_margin: float = 0.2
    e_weight: float = 0.4
    patches: int = 4
    skip: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("lr", "e_margin", "e_weight"):
            require_rate(name, getattr(self, name))
        require_fraction("momentum", self.momentum, below_one=True)
        require(-1 <= self.plpd_margin <= 1, "plpd_margin", "a number in [-1, 1]", self.plpd_margin)
        require(self.patches >= 2, "patches", "a whole number of at least 2", self.patches)


# Lee et al., ICLR 2024, and their program: 2.5e-4, for ViT 1e-3; tau_PLPD 0.3 with BatchNorm, 0.2 with GroupNorm and
# for ViT. Beside ImageNet they have only biased data of two classes; the rate on small images is this project's, as
# for SAR.
PAPERS: Rates = {
    "imagenet/batchnorm": {"plpd_margin": 0.3},
    "imagenet/layernorm": {"lr": 1e-3},
    **{key: {"lr": 1e-3} for key in ("cifar", "cifar100", "digits")},
}


@method(
    "deyo",
    config=DeYOConfig,
    cost=4.0,
    colour="#c5b0d5",
    papers=PAPERS,
    short={
        "cifar/batchnorm": {"lr": 0.005},
        "digits/batchnorm": {"lr": 2.5e-4},
        "digits/layernorm": {"lr": 0.01},
    },
)
class DeYO:
    r"""Destroy Your Object: two filters and two weights, of the entropy and of what a destroyed object costs.

    x' is x with its patches in random order, and y the class that x is predicted to be. The pseudo-label probability
    difference (PLPD) says how much of y's probability goes with the shape of the object:

    .. math:: PLPD(x) = p_y(x) - p_y(x')

    .. math:: S = \{x: E(x) < \tau_{Ent},\ PLPD(x) > \tau_{PLPD}\}

    .. math:: L = mean_{x \in S} \, (e^{Ent_0 - E(x)} + e^{PLPD(x)}) \, E(x; \theta)

    the weights without gradient (eqn. 8 and 10 of the paper). The predictions are those of x, before the step. Only
    samples that pass the first filter are destroyed and predicted again. What passes both is uploaded.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : DeYOConfig, optional
        None for the defaults.
    context : Context
        Device, precision, codec, and the seed of the patches' order.

    Attributes
    ----------
    parameters : dict of str to torch.nn.Parameter
        What is learned.

    Raises
    ------
    ModelError
        When the model has no normalisation layer.
    NotApplicable
        When all of them are to be skipped.

    Notes
    -----
    BatchNorm normalises x with the statistics of the whole batch, and x' with those of the destroyed samples, however
    few they are, as in the authors' program; so the gradient flows through all of the batch.

    `StepResult.forwards` counts x and x'.
    """

    def __init__(self, edge: Model, config: DeYOConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or DeYOConfig()
        self.model = OnlineModel(edge, context, lr=self.config.lr, momentum=self.config.momentum)
        # The optimiser passes over what is frozen, since no gradient reaches it.
        self.parameters = below_top(self.model, self.config.skip, "DeYO")
        self.uplink = Uplink(context.codec)
        self._margin, self._e_0 = (
            share * math.log(edge.classes) for share in (self.config.e_margin, self.config.e_weight)
        )
        self._rng = np.random.default_rng(context.seed)

    @torch.enable_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch and learn from what passes; without finite gradients nothing is learned."""
        inputs = self.model.inputs(images)
        with normalising(self.model.layers.values(), "batch"):
            logits = self.model.run(inputs)
            entropy = softmax_entropy(logits)
            sure = torch.nonzero(entropy.detach() < self._margin).flatten()
            drop = self._probability_lost(inputs[sure], logits[sure])
        shaped = drop > self.config.plpd_margin
        passed = sure[shaped]
        if len(passed):
            chosen = entropy[passed]
            weights = sample_weights(chosen, self._e_0) + drop[shaped].exp()
            self.model.descend((weights * chosen).mean())
        return StepResult(
            logits=as_array(logits),
            uploads=len(passed),
            bytes_up=self.uplink.count([images[i] for i in passed.tolist()]),
            forwards=len(images) + len(sure),
            backwards=len(passed),
        )

    @torch.no_grad()
    def _probability_lost(self, inputs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the PLPD (N,) of inputs (N, C, H, W), N may be 0, and their logits."""
        if not len(inputs):
            return logits.new_zeros(0)
        one = np.arange(self.config.patches**2)
        order = self._rng.permuted(np.tile(one, (len(inputs), 1)), axis=1)
        destroyed = self.model.run(shuffle_patches(inputs, torch.from_numpy(order)))
        before, labels = logits.softmax(dim=1).max(dim=1)
        after = destroyed.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
        return before - after


def shuffle_patches(inputs: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return images with their patches in another order.

    Parameters
    ----------
    inputs : torch.Tensor
        Shape (N, C, H, W). Where P does not divide a side, the images are resized to the next smaller side that it
        does divide (at least P), and the result is resized back, both bilinearly.
    order : torch.Tensor of int64
        Shape (N, P * P): which patch of its image comes to each place, both counted row by row.

    Returns
    -------
    torch.Tensor
        Of the shape of `inputs`.

    Examples
    --------
    >>> image = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> shuffle_patches(image, torch.tensor([[3, 0, 1, 2]])).flatten().tolist()
    [3.0, 0.0, 1.0, 2.0]
    """
    count, channels, *size = inputs.shape
    across = math.isqrt(order.shape[1])
    high, wide = (max(1, side // across) for side in size)
    fitting = [across * high, across * wide]
    # To (N, row, column, C, h, w), then (N, place, C, h, w), and back.
    cut = _resized(inputs, fitting).reshape(count, channels, across, high, across, wide)
    patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    each = torch.arange(count, device=inputs.device)[:, None]
    moved = patches[each, order.to(inputs.device)].reshape(count, across, across, channels, high, wide)
    whole = moved.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, *fitting)
    return _resized(whole, size)


def _resized(inputs: torch.Tensor, size: list[int]) -> torch.Tensor:
    if list(inputs.shape[2:]) == size:
        return inputs
    return torch.nn.functional.interpolate(inputs, size=size, mode="bilinear")
