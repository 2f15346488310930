"""SAR: minimise the entropy of sure samples, where the loss is flat, and reset when predictions collapse.

Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World", ICLR 2023.
"""

from __future__ import annotations

import math
import re
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import TYPE_CHECKING

import msgspec
import torch

from cema._util.checks import require_fraction, require_rate
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.losses import softmax_entropy
from cema.adapt.norm import normalising
from cema.adapt.optimizers import as_array
from cema.methods.base import NotApplicable, StepResult, Uplink, method

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["SAR", "SARConfig", "below_top", "top_layers"]

# A component of a layer's name that says how deep it lies: "11", or "layer4", "stage_3", "denseblock2".
_NUMBERED = re.compile(r"(?P<kind>|[a-z_]*(?:layer|stage|block|group)s?_?)(?P<number>[0-9]+)", re.IGNORECASE)


class SARConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `SAR`.

    Attributes
    ----------
    lr, momentum : float
        SGD's; the paper's are 2.5e-4 for ResNet-50, 1e-3 for ViT-Base, and 0.9.
    e_margin : float
        E_0, the entropy from which on a sample is not learned from, as a fraction of ln C.
    rho : float
        Radius of the neighbourhood in which the loss is to be flat.
    recover_below : float
        Moving average of the loss below which the predictions have collapsed and the source model's parameters are put
        back, as a fraction of ln C; 0 for never. The default is 0.2 nats for 1,000 classes, as published.
    recover_momentum : float
        Share of itself that this average keeps at every step.
    skip : tuple of str, optional
        Patterns (as file names have them) of the names of normalisation layers that stay as they are; () for none of
        them. Left out, the topmost quarter by depth, rounded up, and what follows it: the last stage of two to four,
        blocks 9 to 11 of 12, 12 to 15 of 16, and the final normalisation; see `top_layers`.
    """

    lr: float = 2.5e-4
    momentum: float = 0.9
    e_margin: float = 0.4
    rho: float = 0.05
    recover_below: float = 0.2 / math.log(1000)
    recover_momentum: float = 0.9
    skip: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("lr", "e_margin", "rho", "recover_below"):
            require_rate(name, getattr(self, name))
        require_fraction("momentum", self.momentum, below_one=True)
        require_fraction("recover_momentum", self.recover_momentum, below_one=True)


# Niu et al., ICLR 2023: 2.5e-4, with GroupNorm too; for ViT 1e-3. 1e-3 on small images is this project's.
PAPERS = {
    "imagenet/layernorm": {"lr": 1e-3},
    **{key: {"lr": 0.001} for key in ("cifar", "cifar100", "digits")},
}


@method(
    "sar",
    config=SARConfig,
    cost=5.0,
    colour="#9467bd",
    papers=PAPERS,
    short={
        "cifar/batchnorm": {"lr": 0.025},
        "digits/batchnorm": {"lr": 2.5e-4},
        "digits/layernorm": {"lr": 0.01},
    },
)
class SAR:
    r"""Sharpness-aware and reliable entropy minimisation of norm affine parameters.

    On the samples S of a batch with an entropy below E_0, with g the gradient of their mean entropy at theta,

    .. math:: \hat\epsilon = \rho g / \|g\|, \quad \theta \leftarrow \theta -
        \eta \nabla_{\theta + \hat\epsilon} \, mean_{x \in S'} E(x; \theta + \hat\epsilon)

    where S' are those of S that are still below E_0 at theta + eps. The predictions are those of the first pass, before
    the step. BatchNorm normalises with batch statistics.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : SARConfig, optional
        None for the defaults.
    context : Context
        Device, precision and codec.

    Attributes
    ----------
    recoveries : int
        How often the source model's parameters were put back.

    Raises
    ------
    ModelError
        When the model has no normalisation layer.
    NotApplicable
        When all of them are to be skipped.

    Notes
    -----
    In a batch without a sample in S', nothing is learned; the authors' program then takes a step of momentum alone.

    The moving average outlives a recovery, as it does in the authors' program: until it has risen again, every step is
    taken back.

    Which layers are skipped by default equals the authors' lists for ResNet-50 and ViT-Base, the models that they had.
    """

    def __init__(self, edge: Model, config: SARConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or SARConfig()
        self.model = AdaptableModel(edge, device=context.device, dtype=context.dtype)
        self.parameters = below_top(self.model, self.config.skip, "SAR")
        self.optimizer = torch.optim.SGD(
            list(self.parameters.values()), lr=self.config.lr, momentum=self.config.momentum
        )
        self.uplink = Uplink(context.codec)
        self.recoveries = 0
        self._margin = self.config.e_margin * math.log(self.model.classes)
        self._collapsed = self.config.recover_below * math.log(self.model.classes)
        self._source = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._average: float | None = None

    @torch.enable_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch, then learn from it; see `cema.methods.base.Adapter`."""
        inputs = self.model.inputs(images)
        forwards, backwards = len(images), 0
        with normalising(self.model.layers.values(), "batch"):
            logits = self.model.run(inputs)
            entropy = softmax_entropy(logits)
            reliable = entropy.detach() < self._margin
            sure = int(reliable.sum())
            if sure:
                forwards, backwards = 2 * len(images), sure
                backwards += self._learn(inputs, entropy[reliable].mean(), reliable)
        return StepResult(
            logits=as_array(logits),
            uploads=sure,
            bytes_up=self.uplink.count([images[i] for i in reliable.nonzero().flatten().tolist()]),
            forwards=forwards,
            backwards=backwards,
        )

    def _learn(self, inputs: torch.Tensor, loss: torch.Tensor, reliable: torch.Tensor) -> int:
        """Make a step and return how many samples its gradient is of."""
        parameters = list(self.parameters.values())
        before = [p.detach().clone() for p in parameters]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        length = torch.stack([g.norm() for g in gradients]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient * (self.config.rho / (length + 1e-12)))
        entropy = softmax_entropy(self.model.run(inputs))[reliable]
        still = entropy.detach() < self._margin
        loss = entropy[still].mean()
        sure = int(still.sum())
        if sure:
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        if sure and all(bool(torch.isfinite(g).all()) for g in gradients):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._watch(float(loss.detach()))
        return sure

    @torch.no_grad()
    def _watch(self, loss: float) -> None:
        """Put the source model's parameters back when the average loss says that all predictions are one class."""
        keep = self.config.recover_momentum
        self._average = loss if self._average is None else keep * self._average + (1.0 - keep) * loss
        if self._average >= self._collapsed:
            return
        for name, parameter in self.parameters.items():
            parameter.copy_(self._source[name])
        self.optimizer.state.clear()
        self.recoveries += 1


def below_top(
    model: AdaptableModel, skip: Sequence[str] | None, method: str
) -> dict[str, torch.nn.Parameter]:
    """Freeze the normalisation layers that are to stay as they are, and return the parameters of the others by name.

    Parameters
    ----------
    model : AdaptableModel
        Whose layers to freeze.
    skip : sequence of str, optional
        Patterns of the names of these layers, as `SARConfig.skip` has them; None for the topmost, by `top_layers`.
    method : str
        What an error calls the method.

    Raises
    ------
    NotApplicable
        When all are to be skipped.
    """
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in model.parameters))
    if skip is None:
        skipped = top_layers(layers)
    else:
        skipped = {layer for layer in layers for pattern in skip if fnmatchcase(layer, pattern)}
    chosen = {}
    for name, parameter in model.parameters.items():
        if name.rpartition(".")[0] in skipped:
            parameter.requires_grad_(False)
        else:
            chosen[name] = parameter
    if not chosen:
        raise NotApplicable(
            f"{method} has nothing to learn: each normalisation layer of {model.name} matches one of the patterns in "
            f"skip = {list(skip or ())}; leave some out"
        )
    return chosen


def top_layers(names: Sequence[str]) -> set[str]:
    """Return which normalisation layers are a model's top, by the numbers in their names.

    A layer's depth is the number in the first component of its name that is one (``blocks.3.norm1``) or that is a
    numbered layer, stage, block or group (``layer4.0.bn1``); the digit of its own name (``bn1``) is none. Where names
    number several things, as a stem, the trunk and a head, it is the longest numbering that counts. Of the n depths
    that occur, those from place floor(0.75 n) on are the top. A layer without a depth goes with the layer before it:
    the final normalisation with the top, and the stem, before the first depth, with what is left.

    Parameters
    ----------
    names : sequence of str
        The dotted names in the module's order.

    Returns
    -------
    set of str
        Never all; empty where fewer than two depths occur.

    Examples
    --------
    >>> sorted(top_layers(["bn1", "layer1.0.bn1", "layer2.0.bn1", "layer3.0.bn1", "bn2"]))
    ['bn2', 'layer3.0.bn1']
    """
    # What all share, such as the place of the model in a wrapper, says nothing about depth.
    components = [name.split(".") for name in names]
    columns = zip(*components, strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    places = [_place(component[shared:]) for component in components]
    numberings = [numbering for numbering, _ in filter(None, places)]
    depths = {
        numbering: sorted({p[1] for p in places if p and p[0] == numbering}) for numbering in numberings
    }
    trunk = max(depths, key=lambda key: (len(depths[key]), numberings.count(key)), default="")
    if len(depths.get(trunk, ())) < 2:
        return set()
    first = depths[trunk][3 * len(depths[trunk]) // 4]
    top, inside = set(), False
    for name, place in zip(names, places, strict=True):
        if place and place[0] == trunk:
            inside = place[1] >= first
        if inside:
            top.add(name)
    return top


def _place(components: Sequence[str]) -> tuple[str, int] | None:
    """Return what is numbered, such as ``"encoder.layer"`` or ``"blocks."``, and the number."""
    for i, component in enumerate(components):
        found = _NUMBERED.fullmatch(component)
        if found and (not found["kind"] or i + 1 < len(components)):
            return ".".join([*components[:i], found["kind"]]), int(found["number"])
    return None
