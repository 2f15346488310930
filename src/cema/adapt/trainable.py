"""One model while it is being adapted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from cema.adapt import checkpoint
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.averaging import ParameterAverage
from cema.adapt.checkpoint import State
from cema.adapt.norm import normalising
from cema.adapt.optimizers import descend
from cema.adapt.pieces import activation_bytes, even_slices
from cema.adapt.recompute import checkpointing
from cema.adapt.statistics import RunningStatistics
from cema.errors import FormatError
from cema.models.norm_kinds import affine_names, is_own_norm
from cema.models.norm_state import norm_layers
from cema.ondevice.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np

    from cema.adapt.config import AdaptConfig
    from cema.models.spec import Model

__all__ = ["Lesson", "TrainableModel"]

# Enough to tell what an image takes.
PROBE = 2


class Lesson(NamedTuple):
    """What `TrainableModel.learn` did.

    Attributes
    ----------
    logits : torch.Tensor
        Shape (N, classes), float32, detached: as they were before the parameters moved.
    moved : bool
        False when a gradient was not finite: the parameters are as before.
    """

    logits: torch.Tensor
    moved: bool


class TrainableModel(AdaptableModel):
    """A copy of a model with its trainable norm state, optimiser and running statistics.

    Parameters
    ----------
    model : cema.models.spec.Model
        The source; copied.
    config : AdaptConfig
        What running statistics follow, SGD's momentum, chunk size, memory for activations and checkpointing.
    learning_rate : float
        SGD's.
    device : str
        A torch device.
    dtype : {"float32", "bfloat16"}
        Precision inside the network.
    average : float
        Decay of the average of its parameters, in [0, 1); 0 for none.

    Attributes
    ----------
    norm_layers : dict of str to torch.nn.Module
        All layers that have a place in the norm state.
    optimizer : torch.optim.SGD
        Over all `parameters`.
    statistics : RunningStatistics
        Moves those of all `layers`.
    average : ParameterAverage
        Of the parameters over the latest steps.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.
    ValueError
        When dtype is unknown or the device is not available.
    """

    def __init__(
        self,
        model: Model,
        config: AdaptConfig,
        learning_rate: float,
        *,
        device: str,
        dtype: str,
        average: float = 0.0,
    ) -> None:
        super().__init__(model, device=device, dtype=dtype)
        self._config = config
        self._piece: int | None = None
        self._source = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.norm_layers = norm_layers(self.module)
        self._source_vectors = {"parameters": _flat(self._source)}
        # Checkpoints from before these layers were adapted have no values for them: they are as in the source then.
        self._known_later = {
            f"parameter.{name}.{key}"
            for name, layer in self.norm_layers.items()
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
            share=config.source_share,
        )
        self.average = ParameterAverage(self.parameters, average)
        if self.layers:
            self._source_vectors["statistics"] = self.statistics.source

    @torch.no_grad()
    def logits(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return logits (N, C), float32, with running statistics, in chunks and without gradients."""
        if not len(images):
            return torch.empty(0, self.classes, device=self.device)
        return self.logits_of(self.inputs(images))

    @torch.no_grad()
    def logits_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (N, C) as `logits` does, of preprocessed inputs (N, channels, height, width)."""
        return torch.cat([self.run(chunk) for chunk in torch.split(inputs, self._config.chunk)])

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

    @property
    def follows(self) -> bool:
        """Whether running statistics move to every batch of new uploads, before it is learned from."""
        return bool(self.layers) and self._config.statistics in {"window", "fresh"}

    def enter(self, *, changed: bool) -> None:
        """Take note of new uploads, which may have shown that the domain has changed, before they are learned from."""
        if changed and self._config.on_change == "reset":
            self.reset_parameters()

    @torch.no_grad()
    def follow(self, fresh: Sequence[np.ndarray], *, reset: bool = False) -> torch.Tensor:
        """Move the running statistics to new uploads, as configured, without learning.

        Returns
        -------
        torch.Tensor
            Logits (N, classes), float32, with the statistics as they are then.
        """
        if self._whole and not self.statistics.started:
            self.observe(fresh, reset=reset)
        inputs = self.inputs(fresh)
        logits = self._follow(inputs, reset) if self.follows else None
        return self.logits_of(inputs) if logits is None else logits

    def learn(
        self,
        parts: Sequence[Batch],
        loss: Callable[[torch.Tensor, slice], torch.Tensor],
        *,
        follow: bool = False,
        reset: bool = False,
    ) -> Lesson:
        """Pass images forward and backward in pieces that fit into memory, and descend once.

        Batch renormalisation takes its gradient through the statistics of a piece; its values do not depend on them.

        Parameters
        ----------
        parts : sequence of Batch
            Images; no piece holds images of two parts.
        loss : callable
            Given logits (n, classes) and the slice of all images that they are of, returns what these add to the loss.
        follow : bool
            Whether the running statistics move to the first part, as configured, before it is normalised. Where that
            part is one piece, this costs no pass of its own.
        reset : bool
            Whether the window of statistics is cleared first.
        """
        if self._whole:
            if follow and not self.statistics.started:
                self.observe(parts[0], reset=reset)
            parts = [Batch.joined(*parts)]
        found: list[torch.Tensor] = []

        def losses() -> Iterator[torch.Tensor]:
            for logits in self._passes(parts, moving=follow and self.follows, reset=reset):
                done = sum(map(len, found))
                found.append(logits.detach())
                yield loss(logits, slice(done, done + len(logits)))

        with (
            torch.enable_grad(),
            normalising(self.layers.values(), "renorm"),
            checkpointing(self.module, self._config.checkpoint),
        ):
            moved = descend(self.optimizer, losses())
        if moved:
            self.average.moved()
        if self._whole:
            # By one full batch however many images there were, as in the published code.
            self.statistics.observe(self._config.fresh)
        return Lesson(torch.cat(found), moved)

    def _passes(self, parts: Sequence[Batch], *, moving: bool, reset: bool) -> Iterator[torch.Tensor]:
        """Yield the logits of one piece after another; where `moving`, running statistics follow the first part."""
        for part in filter(len, parts):
            inputs = self.inputs(part)
            pieces = even_slices(len(inputs), self._most_at_once(inputs))
            logits = None
            if moving:
                moving = False
                # In several pieces no layer sees all of a batch: its statistics are read in a pass without gradients.
                with torch.set_grad_enabled(len(pieces) == 1):
                    logits = self._follow(inputs, reset)
            if logits is not None and len(pieces) == 1:
                yield logits
                continue
            for rows in pieces:
                yield self.run(inputs[rows])

    def _follow(self, inputs: torch.Tensor, reset: bool) -> torch.Tensor | None:
        """Pass a batch while the running statistics move to it; None where it has no statistics: nothing moved then."""
        before = self.statistics.running()
        with self.statistics.following(len(inputs), reset=reset):
            logits = self.run(inputs)
        if self.statistics.observe(len(inputs), reset=reset, followed=True):
            return logits
        self.statistics.put_back(before)
        return None

    def _most_at_once(self, inputs: torch.Tensor) -> int:
        """Return how many images fit into one piece."""
        if self._whole:
            return len(inputs)
        if self._piece is None:
            taken = activation_bytes(self.module, self.network, inputs[:PROBE])
            self._piece = max(1, self._config.activations_mb * 2**20 // taken)
        return self._piece

    @property
    def _whole(self) -> bool:
        """Whether statistics follow everything in a step: then all of it is one pass."""
        return self._config.statistics == "step"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put the source model's affine parameters back and forget the optimiser's momentum."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self._source[name])
        self.optimizer.state.clear()
        self.average.restart()

    def norm_vectors(self) -> dict[str, torch.Tensor]:
        """Return copies of what was learned, averaged as configured, without what is as in the source model.

        Returns
        -------
        dict of str to torch.Tensor
            ``parameters`` (P,), all affine parameters one after the other; ``statistics`` (2, K), all running means and
            variances. Float32, on the CPU.
        """
        with self.average.in_place():
            vectors = {"parameters": _flat(self.parameters)}
        if self.layers:
            vectors["statistics"] = self.statistics.running()
        return {key: v for key, v in vectors.items() if not torch.equal(v, self._source_vectors[key])}

    def norm_vector_shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of all that `norm_vectors` may return."""
        return {key: vector.shape for key, vector in self._source_vectors.items()}

    @torch.no_grad()
    def put_norm_vectors(self, vectors: Mapping[str, torch.Tensor], count: int, *, parameters: bool) -> None:
        """Put back what `norm_vectors` returned; the source model's where it had none.

        Parameters
        ----------
        vectors : mapping of str to torch.Tensor
            As from `norm_vectors`.
        count : int
            Samples that the statistics count for in a window.
        parameters : bool
            Whether the parameters too, without the optimiser's momentum; or the statistics alone.
        """
        found = self._source_vectors | dict(vectors)
        if parameters:
            start = 0
            for parameter in self.parameters.values():
                part = found["parameters"][start : start + parameter.numel()]
                parameter.copy_(part.reshape(parameter.shape))
                start += parameter.numel()
            self.optimizer.state.clear()
            self.average.restart()
        if self.layers:
            self.statistics.begin_at(found["statistics"], count)

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
        shapes = {
            key: t.shape
            for key, t in self._own_tensors().items()
            if not key.startswith(("momentum.", "average."))
        }
        for key in self._known_later:
            if key not in state.tensors:
                shapes.pop(key)
        for name, parameter in self.parameters.items():
            # Before its first step an optimiser has no momentum; and an average may have been switched on since.
            for kind in ("momentum", "average"):
                if f"{kind}.{name}" in state.tensors:
                    shapes[f"{kind}.{name}"] = parameter.shape
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
        self.average.load(checkpoint.below("average", own))
        self.statistics.load(own, state.values)

    def _own_tensors(self) -> dict[str, torch.Tensor]:
        """Return copies of parameters, momenta and running statistics, on the CPU."""
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            found[f"parameter.{name}"] = parameter
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                found[f"momentum.{name}"] = momentum
        found |= {f"average.{name}": mean for name, mean in self.average.tensors().items()}
        for name, layer in self.layers.items():
            found[f"running_mean.{name}"] = layer.running_mean
            found[f"running_var.{name}"] = layer.running_var
        return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in found.items()}


def _flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the values of tensors one after the other, float32, on the CPU."""
    return torch.cat([t.detach().flatten() for t in tensors.values()]).to("cpu", torch.float32, copy=True)
