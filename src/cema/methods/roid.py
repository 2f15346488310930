"""ROID: sure and unusual predictions are made surer, near the source model, and corrected for the batch's classes.

Marsden et al., "Universal Test-time Adaptation through Weight Ensembling, Diversity Weighting, and Prior Correction",
WACV 2024.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from torch.nn import functional

from cema._util.checks import require, require_fraction, require_rate
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.losses import softmax_entropy
from cema.adapt.norm import normalising
from cema.adapt.optimizers import OptimizerName, as_array, descend, make_optimizer, require_optimizer
from cema.methods.base import Rates, StepResult, Uplink, method
from cema.methods.cotta_views import Scene, View, draw_view
from cema.methods.soft_labels import cross_entropies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["ROID", "ROIDConfig", "likelihood_ratio", "prior_corrected"]

# The authors' program: a probability above has no gradient, and a ratio of zero has a logarithm.
_MOST, _LEAST_RATIO = 0.99, 1e-5


class ROIDConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `ROID`; the defaults are those for ImageNet-C.

    Attributes
    ----------
    optimizer : {"sgd", "adam"}
        SGD with Nesterov's momentum, or Adam.
    lr : float
        Its learning rate.
    momentum : float
        SGD's momentum, or Adam's first beta, in [0, 1).
    ensemble : float
        Share of itself that the model keeps when it is averaged with the source model, after every step.
    average : float
        How much of the average prediction stays at each batch, in [0, 1).
    temperature : float
        What the product of diversity and certainty is divided by.
    consistency : bool
        Whether an augmented view is to be predicted as the image itself.
    prior_correction : bool
        Whether the logits are multiplied by how often the batch's predictions are of a class.
    flip : float
        Probability of a view to be mirrored left to right; 0 where that makes another class of an image, as of a digit.
    """

    optimizer: OptimizerName = "sgd"
    lr: float = 0.00025
    momentum: float = 0.9
    ensemble: float = 0.99
    average: float = 0.9
    temperature: float = 1 / 3
    consistency: bool = True
    prior_correction: bool = True
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require_optimizer(self.optimizer)
        require_rate("lr", self.lr)
        require_fraction("momentum", self.momentum, below_one=True)
        require_fraction("average", self.average, below_one=True)
        for name in ("ensemble", "flip"):
            require_fraction(name, getattr(self, name))
        require(self.temperature > 0, "temperature", "a number above 0", self.temperature)


# The authors' program: SGD, 2.5e-4 (ImageNet-C, every architecture); Adam, 1e-3 (CIFAR-10-C and CIFAR-100-C, with
# batches of 200). No paper has digits: they take CIFAR-10's values, but a mirrored digit is another one, or none.
PAPERS: Rates = {
    "cifar": {"optimizer": "adam", "lr": 1e-3},
    "cifar100": {"optimizer": "adam", "lr": 1e-3},
    "digits": {"optimizer": "adam", "lr": 1e-3, "flip": 0.0},
}
SHORT: Rates = {"cifar/batchnorm": {"lr": 0.01}, "digits/batchnorm": {"lr": 2.5e-4}}


@method("roid", config=ROIDConfig, cost=5.0, colour="#0b3d91", papers=PAPERS, short=SHORT)
class ROID:
    r"""Soft likelihood ratio and consistency, weighted by diversity and certainty; weight ensembling; prior correction.

    With p_i the prediction of image i with batch statistics, m the average prediction so far (at first 1 / C for every
    class), and every min-max scaled over the batch,

    .. math:: d_i = scale(1 - \cos(m, p_i)), \quad u_i = scale(-E(p_i)), \quad
        w_i = \exp(d_i u_i / \tau) \text{ where } d_i \geq mean(d), \text{ else } 0

    the loss is, over a stream in batches of N,

    .. math:: L = \frac{1}{N} \sum_i w_i \left[ -\sum_c p_{ic} \log \frac{p_{ic}}{1 - p_{ic}}
        + \frac{1}{2} CE(p_i, p'_i) + \frac{1}{2} CE(p'_i, p_i) \right]

    with p'_i the prediction of an augmented view, made from the images that have a weight, and gradients through both.
    After the step every norm affine parameter is averaged with the source's, theta <- a theta + (1 - a) theta_0, and m
    moves to the mean prediction of the batch. The logits from before the step are corrected; see `prior_corrected`.
    Images that have a weight are uploaded.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : ROIDConfig, optional
        None for the defaults.
    context : Context
        Device, precision, codec, the seed of views, and N: a smaller last batch teaches less.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.

    Notes
    -----
    As in the authors' program, ratios are of probabilities up to 0.99, and the view is that of CoTTA without blur and
    noise, with mirrored borders. Where the predictions of a batch are all alike, as of a single image, the program
    gives NaN; here nothing is scaled then, and every weight is 1.
    """

    def __init__(self, edge: Model, config: ROIDConfig | None = None, *, context: MethodContext) -> None:
        self.config: ROIDConfig = config or ROIDConfig()
        self.model = AdaptableModel(edge, device=context.device, dtype=context.dtype)
        self.optimizer = make_optimizer(
            self.config.optimizer,
            self.model.parameters.values(),
            lr=self.config.lr,
            momentum=self.config.momentum,
            nesterov=self.config.momentum > 0,  # torch refuses it without momentum
        )
        self.uplink = Uplink(context.codec)
        self._batch = context.batch
        self._source = {name: p.detach().clone() for name, p in self.model.parameters.items()}
        self._average = torch.full((edge.classes,), 1 / edge.classes, device=self.model.device)
        self._rng = np.random.default_rng(context.seed)

    @torch.enable_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch and learn from what has a weight; without finite gradients nothing is learned."""
        inputs = self.model.inputs(images)
        with normalising(self.model.layers.values(), "batch"):
            logits = self.model.run(inputs)
            weights = self._weigh(logits.detach())
            passed = weights.nonzero().flatten()
            losses = likelihood_ratio(logits[passed])
            if self.config.consistency:
                seen = self.model.run(self._view(inputs[passed]))
                losses = losses + cross_entropies(seen, logits[passed], symmetric=True)
            descend(self.optimizer, (weights[passed] * losses).sum() / self._batch)
        self._ensemble()
        answers = prior_corrected(logits.detach()) if self.config.prior_correction else logits
        backwards = len(passed) * (1 + self.config.consistency)
        return StepResult(
            logits=as_array(answers),
            uploads=len(passed),
            bytes_up=self.uplink.count([images[place] for place in passed.tolist()]),
            forwards=len(images) + backwards - len(passed),
            backwards=backwards,
        )

    @torch.no_grad()
    def _weigh(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the images' weights, (N,), and move the average prediction to the batch's."""
        p = logits.softmax(dim=1)
        diversity = _scaled(1.0 - functional.cosine_similarity(self._average[None], p, dim=1))
        certainty = _scaled(-softmax_entropy(logits))
        weights = torch.exp(diversity * certainty / self.config.temperature)
        self._average.lerp_(p.mean(dim=0), 1.0 - self.config.average)
        return weights.masked_fill(diversity < diversity.mean(), 0.0)

    def _view(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs (N, C, H, W) in a view of CoTTA's without blur and noise, with mirrored borders."""
        view = draw_view(self._rng, inputs.shape[2], inputs.shape[3], self.config.flip)
        scene = Scene(inputs, self.model.preprocessing)
        return scene.seen(replace(view, sigma=View().sigma), None, noise=0.0, border="reflect")

    @torch.no_grad()
    def _ensemble(self) -> None:
        """Average the parameters with the source's."""
        for name, parameter in self.model.parameters.items():
            parameter.lerp_(self._source[name], 1.0 - self.config.ensemble)


def likelihood_ratio(logits: torch.Tensor) -> torch.Tensor:
    """Return the soft likelihood ratio -sum_c p_c log(p_c / (1 - p_c)) of logits (N, C), as (N,)."""
    p = logits.softmax(dim=1).clamp(max=_MOST)
    return -(p * torch.log(p / (1.0 - p) + _LEAST_RATIO)).sum(dim=1)


def prior_corrected(logits: torch.Tensor) -> torch.Tensor:
    """Multiply logits by how often their batch is predicted to be of each class.

    z_c <- z_c (q_c + s) / (1 + s C),  s = max(1 / N, 1 / C) / max_c q_c,  q the mean prediction of the N images: the
    fewer images and the more even their classes, the less it changes which class is the largest.

    Parameters
    ----------
    logits : torch.Tensor
        Shape (N, C), N at least 1.

    Returns
    -------
    torch.Tensor
        Shape (N, C).

    Notes
    -----
    Logits are multiplied, as in the authors' program, not probabilities: a constant added to all logits of an image
    would change what comes out. It helps where the classes of a batch are uneven, and harms where the model prefers a
    class by mistake.
    """
    count, classes = logits.shape
    prior = logits.softmax(dim=1).mean(dim=0)
    smooth = max(1 / count, 1 / classes) / prior.max()
    return logits * ((prior + smooth) / (1.0 + smooth * classes))


def _scaled(values: torch.Tensor) -> torch.Tensor:
    """Return values (N,), shifted and scaled to 0..1; zeros where all are alike."""
    low, high = values.aminmax()
    return (values - low) / (high - low) if bool(high > low) else torch.zeros_like(values)
