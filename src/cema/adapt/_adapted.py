"""One model while it is being adapted."""

from __future__ import annotations

import copy
import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from cema.adapt._checkpoint import checkpointing
from cema.adapt.norm import normalising, prepare
from cema.adapt.statistics import RunningStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from cema.adapt.config import AdaptConfig
    from cema.models.spec import Model

__all__ = ["AdaptedModel"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class AdaptedModel:
    """A copy of a model with its trainable norm state, optimiser and running statistics.

    Parameters
    ----------
    model : cema.models.spec.Model
        The source; copied.
    config : AdaptConfig
        What running statistics follow, SGD's momentum, chunk size and checkpointing.
    learning_rate : float
        SGD's.
    device : str
        A torch device.
    dtype : {"float32", "bfloat16"}
        Precision inside the network.

    Attributes
    ----------
    module : torch.nn.Module
        The adapted copy.
    parameters : dict of str to torch.nn.Parameter
        What is trained.
    layers : dict of str to AdaptiveBatchNorm
        Whose statistics move.
    source_digest : str
        Hex SHA-256 of the source model's tensors; identifies what this adaptation began from.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.
    ValueError
        When dtype is unknown or the device is not available.
    """

    def __init__(
        self, model: Model, config: AdaptConfig, learning_rate: float, *, device: str, dtype: str
    ) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(sorted(_DTYPES))}, got {dtype!r}")
        self.name = model.name
        self.classes = model.classes
        self.preprocessing = model.preprocessing
        self.device = _available(device)
        self.dtype = _DTYPES[dtype]
        self._config = config
        self.source_digest = _digest(model.module)
        self._memory = _memory_format(model.module)
        self.module = copy.deepcopy(model.module).to(self.device, torch.float32)
        self.module.to(memory_format=self._memory)  # type: ignore[call-overload]
        self.parameters, self.layers = prepare(self.module)
        self._source = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.SGD(
            list(self.parameters.values()), lr=learning_rate, momentum=config.sgd_momentum
        )
        self.statistics = RunningStatistics(
            list(self.layers.values()),
            start=config.start,
            window=config.window if config.statistics == "window" else None,
            momentum=config.statistics_momentum,
            batch=config.fresh,
            restart=config.restart,
        )

    def forward(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return logits (N, C), float32, of uint8 HWC images, in whatever mode the layers are."""
        pixels = torch.from_numpy(self.preprocessing(images))
        x = pixels.to(self.device, memory_format=self._memory)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            logits: torch.Tensor = self.module(x)
        return logits.float()

    @torch.no_grad()
    def logits(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return logits (N, C), float32, with running statistics, in chunks and without gradients."""
        chunk = self._config.chunk
        parts = [self.forward(images[i : i + chunk]) for i in range(0, len(images), chunk)]
        return torch.cat(parts) if parts else torch.empty(0, self.classes, device=self.device)

    @torch.no_grad()
    def observe(self, images: Sequence[np.ndarray]) -> bool:
        """Move the running statistics by a pass in which every layer uses this batch's own statistics.

        Returns
        -------
        bool
            False when the model has no running statistics, or the batch is too small to have a variance.
        """
        if not self.layers:
            return False
        with normalising(self.layers.values(), "batch"):
            self.forward(images)
        return self.statistics.observe(len(images))

    def follow(self, fresh: Sequence[np.ndarray]) -> None:
        """Move the running statistics before a step, as configured.

        Parameters
        ----------
        fresh : sequence of ndarray
            New uploads.
        """
        first = self._config.statistics == "step" and not self.statistics.started
        restarts = self.statistics.restarts
        if first or self._config.statistics in {"window", "fresh"}:
            self.observe(fresh)
        if self.statistics.restarts > restarts and self._config.on_change == "reset":
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put the source model's affine parameters back and forget the optimiser's momentum."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self._source[name])
        self.optimizer.state.clear()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let layers renormalise, and activations be recomputed if so configured, inside a ``with`` block.

        With ``statistics = "step"`` the running statistics move when the block is left, by one full batch
        however many images there were, as in the published code.
        """
        with normalising(self.layers.values(), "renorm"), checkpointing(self.module, self._config.checkpoint):
            yield
        if self._config.statistics == "step":
            self.statistics.observe(self._config.fresh)

    def step(self, loss: torch.Tensor) -> bool:
        """Descend by one SGD step.

        Returns
        -------
        bool
            False when a gradient was not finite: the parameters are as before.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        finite = bool(torch.stack([torch.isfinite(g).all() for g in gradients]).all())
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return finite


def _memory_format(module: torch.nn.Module) -> torch.memory_format:
    """Return the faster layout of activations that works for a model.

    Convolutions are faster with channels last: measured on one core, forward and backward, 1.9 times for
    EfficientNet-Lite0 and 1.2 times for Lite2. GroupNorm is not: its backward pass crashed (torch 2.13, CPU).
    """
    if any(isinstance(layer, torch.nn.GroupNorm) for layer in module.modules()):
        return torch.contiguous_format
    return torch.channels_last


def _available(device: str) -> torch.device:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f'device: expected one that this torch can use, got {device!r} ({error}); "cpu" always works'
        ) from error
    return torch.device(device)


def _digest(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
