"""One model while it is being adapted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from cema.adapt.adaptable import AdaptableModel
from cema.adapt.checkpoint import State
from cema.adapt.norm import normalising
from cema.adapt.optimizers import descend
from cema.adapt.recompute import checkpointing
from cema.adapt.statistics import RunningStatistics
from cema.errors import FormatError
from cema.models.norm_kinds import affine_names, is_own_norm
from cema.models.norm_state import norm_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from cema.adapt.config import AdaptConfig
    from cema.models.spec import Model

__all__ = ["TrainableModel"]


class TrainableModel(AdaptableModel):
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
    optimizer : torch.optim.SGD
        Over all `parameters`.
    statistics : RunningStatistics
        Moves those of all `layers`.

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
        super().__init__(model, device=device, dtype=dtype)
        self._config = config
        self._source = {name: p.detach().clone() for name, p in self.parameters.items()}
        # Checkpoints from before these layers were adapted have no values for them: they are as in the source then.
        self._known_later = {
            f"parameter.{name}.{key}"
            for name, layer in norm_layers(self.module).items()
            if is_own_norm(layer)
            for key in affine_names(layer).values()
        }
        self.optimizer = torch.optim.SGD(
            list(self.parameters.values()), lr=learning_rate, momentum=config.sgd_momentum
        )
        self.statistics = RunningStatistics(
            list(self.layers.values()),
            start=config.start,
            window=config.window if config.statistics == "window" else None,
            momentum=config.statistics_momentum,
            batch=config.fresh,
        )

    @torch.no_grad()
    def logits(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return logits (N, C), float32, with running statistics, in chunks and without gradients."""
        if not len(images):
            return torch.empty(0, self.classes, device=self.device)
        inputs, chunk = self.inputs(images), self._config.chunk
        return torch.cat([self.run(inputs[i : i + chunk]) for i in range(0, len(inputs), chunk)])

    @torch.no_grad()
    def observe(self, images: Sequence[np.ndarray], *, reset: bool = False) -> bool:
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
        return self.statistics.observe(len(images), reset=reset)

    def follow(self, fresh: Sequence[np.ndarray], *, changed: bool = False, reset: bool = False) -> None:
        """Move the running statistics before a step, as configured.

        Parameters
        ----------
        fresh : sequence of ndarray
            New uploads.
        changed, reset : bool
            Whether they show that the domain has changed, and whether the window of statistics is cleared first.
        """
        first = self._config.statistics == "step" and not self.statistics.started
        if first or self._config.statistics in {"window", "fresh"}:
            self.observe(fresh, reset=reset)
        if changed and self._config.on_change == "reset":
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put the source model's affine parameters back and forget the optimiser's momentum."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self._source[name])
        self.optimizer.state.clear()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train inside a ``with`` block: layers renormalise, gradients are kept, activations recomputed if configured.

        With ``statistics = "step"`` the running statistics move when the block is left, by one full batch
        however many images there were, as in the published code.
        """
        with (
            torch.enable_grad(),
            normalising(self.layers.values(), "renorm"),
            checkpointing(self.module, self._config.checkpoint),
        ):
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
        return descend(self.optimizer, loss)

    def state(self) -> State:
        """Return what an exact continuation needs, as copies."""
        window, progress = self.statistics.state()
        values = {"name": self.name, "source": self.source_digest, **progress}
        return State(self._own_tensors() | window, values)

    def expected_shapes(self, state: State, side: str) -> dict[str, torch.Size]:
        """Return which tensors a state must have, before `load`.

        Raises
        ------
        FormatError
            When the state is of another source model; `side` names this one in the message.
        """
        told = state.values
        if told["source"] != self.source_digest:
            raise FormatError(
                f"the adapter state began from another {side} model ({told['name']}, "
                f"{told['source'][:12]}), and this one is {self.name}, {self.source_digest[:12]}; use the "
                "model it began from, or start anew"
            )
        shapes = {key: t.shape for key, t in self._own_tensors().items() if not key.startswith("momentum.")}
        for key in self._known_later:
            if key not in state.tensors:
                shapes.pop(key)
        for name, parameter in self.parameters.items():
            # Before its first step an optimiser has no momentum.
            if f"momentum.{name}" in state.tensors:
                shapes[f"momentum.{name}"] = parameter.shape
        return shapes | self.statistics.expected_shapes(told)

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Restore what `state` returned."""
        own = state.tensors
        for name, parameter in self.parameters.items():
            parameter.copy_(own.get(f"parameter.{name}", self._source[name]))
            momentum = own.get(f"momentum.{name}")
            self.optimizer.state.pop(parameter, None)
            if momentum is not None:
                self.optimizer.state[parameter] = {
                    "momentum_buffer": momentum.to(parameter.device, copy=True)
                }
        for name, layer in self.layers.items():
            layer.running_mean.copy_(own[f"running_mean.{name}"])
            layer.running_var.copy_(own[f"running_var.{name}"])
        self.statistics.load(own, state.values)

    def _own_tensors(self) -> dict[str, torch.Tensor]:
        """Return copies of parameters, momenta and running statistics, on the CPU."""
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            found[f"parameter.{name}"] = parameter
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                found[f"momentum.{name}"] = momentum
        for name, layer in self.layers.items():
            found[f"running_mean.{name}"] = layer.running_mean
            found[f"running_var.{name}"] = layer.running_var
        return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in found.items()}
