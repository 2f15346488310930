"""SAR: minimise the entropy of sure samples, where the loss is flat, and start again when answers collapse.

Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World", ICLR 2023.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import msgspec
import torch

from cema.adapt._checks import require_fraction, require_rate
from cema.adapt._copy import ModelCopy
from cema.adapt._online import as_array
from cema.adapt.adapter import NotApplicable, Outcome, Uplink
from cema.adapt.losses import softmax_entropy
from cema.adapt.norm import normalising

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.adapt.adapter import Context
    from cema.models.spec import Model

__all__ = ["SAR", "SARConfig"]

# What the authors' program leaves out (ResNet's last stage, and of ViT-Base the last three blocks and the last norm),
# and what the same layers are called in the models of transformers.
_TOP = (
    *("*layer4*", "*blocks.9*", "*blocks.10*", "*blocks.11*", "*norm.*", "norm"),
    *("*encoder.stages.3.*", "*encoder.layer.9.*", "*encoder.layer.10.*", "*encoder.layer.11.*"),
    *("*vit.layernorm", "*deit.layernorm"),
)


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
        Moving average of the loss, in nats, below which the answers have collapsed and the source model's parameters
        are put back; 0 for never.
    recover_momentum : float
        Share of itself that this average keeps at every step.
    skip : tuple of str
        Patterns (as file names have them) of the names of normalisation layers that stay as they are.
    """

    lr: float = 2.5e-4
    momentum: float = 0.9
    e_margin: float = 0.4
    rho: float = 0.05
    recover_below: float = 0.2
    recover_momentum: float = 0.9
    skip: tuple[str, ...] = _TOP

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("lr", "e_margin", "rho", "recover_below"):
            require_rate(name, getattr(self, name))
        require_fraction("momentum", self.momentum, below_one=True)
        require_fraction("recover_momentum", self.recover_momentum, below_one=True)


class SAR:
    r"""Sharpness-aware and reliable entropy minimisation of norm affine parameters.

    On the samples S of a batch with an entropy below E_0, with g the gradient of their mean entropy at theta,

    .. math:: \hat\epsilon = \rho g / \|g\|, \quad \theta \leftarrow \theta -
        \eta \nabla_{\theta + \hat\epsilon} \, mean_{x \in S'} E(x; \theta + \hat\epsilon)

    where S' are those of S that are still below E_0 at theta + eps. The answers are those of the first pass, before the
    step. BatchNorm normalises with batch statistics.

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
    """

    def __init__(self, edge: Model, config: SARConfig | None = None, *, context: Context) -> None:
        self.config = config or SARConfig()
        self.model = ModelCopy(edge, device=context.device, dtype=context.dtype)
        self.parameters = self._chosen()
        self.optimizer = torch.optim.SGD(
            list(self.parameters.values()), lr=self.config.lr, momentum=self.config.momentum
        )
        self.uplink = Uplink(context.codec)
        self.recoveries = 0
        self._margin = self.config.e_margin * math.log(self.model.classes)
        self._source = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._average: float | None = None

    def _chosen(self) -> dict[str, torch.nn.Parameter]:
        chosen = {}
        for name, parameter in self.model.parameters.items():
            layer = name.rpartition(".")[0]
            if any(fnmatchcase(layer, pattern) for pattern in self.config.skip):
                parameter.requires_grad_(False)
            else:
                chosen[name] = parameter
        if not chosen:
            raise NotApplicable(
                f"SAR has nothing to learn: each normalisation layer of {self.model.name} matches one of the patterns "
                f"in skip = {list(self.config.skip)}; leave some out"
            )
        return chosen

    @torch.enable_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> Outcome:
        """Predict a batch, then learn from it; see `cema.adapt.adapter.Adapter`."""
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
        return Outcome(
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
        """Put the source model's parameters back when the average loss says that all answers are one."""
        keep = self.config.recover_momentum
        self._average = loss if self._average is None else keep * self._average + (1.0 - keep) * loss
        if self._average >= self.config.recover_below:
            return
        for name, parameter in self.parameters.items():
            parameter.copy_(self._source[name])
        self.optimizer.state.clear()
        self._average = None
        self.recoveries += 1
