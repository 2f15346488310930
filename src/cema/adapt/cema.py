"""The cloud's half of CEMA: adapt a foundation model, distil it into a copy of the edge model.

Yaofo Chen et al., "Towards Robust and Efficient Cloud-Edge Elastic Model Adaptation via Selective Entropy
Distillation", ICLR 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from cema.adapt import _state
from cema.adapt._adapted import AdaptedModel
from cema.adapt.config import AdaptConfig
from cema.adapt.losses import distillation_loss, entropy_loss
from cema.adapt.replay import ReplayBuffer
from cema.adapt.surroundings import Surroundings
from cema.environment import input_statistics
from cema.norms import folded_norm_state
from cema.preprocess import check_images

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Literal

    from cema.environment import Environment
    from cema.models.spec import Model

__all__ = ["AdapterState", "CemaAdapter", "DistillationStep", "FoundationStep", "StepReport"]

T = TypeVar("T")
AdapterState = _state.AdapterState


def _identity(item: Any) -> np.ndarray:
    image: np.ndarray = item
    return image


def _unmoved(result: tuple[Any, bool] | None) -> int:
    return int(result is not None and not result[1])


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes
    ----------
    step : int
        Number of this step, from 1, replay-only steps included; 0 when nothing could be done.
    fresh, replayed : int
        Samples it learned from.
    dropped : int
        Items whose image could not be had any more; they left the replay buffer.
    foundation_loss : float or None
        H(x) E(x; theta), or None without a foundation step.
    distillation_loss, kl, ce, entropy : float or None
        The distillation loss and its three weighted terms, or None when there was nothing to learn from.
    skipped : int
        Parameter updates (0, 1 or 2) that were not made because a gradient was not finite.
    """

    step: int = 0
    fresh: int = 0
    replayed: int = 0
    dropped: int = 0
    foundation_loss: float | None = None
    distillation_loss: float | None = None
    kl: float | None = None
    ce: float | None = None
    entropy: float | None = None
    skipped: int = 0


class FoundationStep:
    """Entropy minimisation of the foundation model on new uploads.

    Parameters
    ----------
    foundation : AdaptedModel
        What is adapted.
    config : AdaptConfig
        Learning rate and E_max^0.
    """

    def __init__(self, foundation: AdaptedModel, config: AdaptConfig) -> None:
        self.foundation = foundation
        self.e_max = config.e_max * math.log(foundation.classes)
        self.enabled = config.foundation_lr > 0

    def __call__(self, images: Sequence[np.ndarray], share: float = 1.0) -> tuple[float, bool] | None:
        """Make one step.

        Parameters
        ----------
        images : sequence of ndarray
            uint8, height x width x channels.
        share : float
            How much of a full batch of new uploads this is, in (0, 1]; the learning rate shrinks by it.

        Returns
        -------
        tuple of float and bool, or None
            The loss before the step and whether parameters moved; None when the learning rate is 0.
        """
        if not self.enabled:
            return None
        with self.foundation.training():
            loss = entropy_loss(self.foundation.forward(images), self.e_max)
            return float(loss.detach()), self.foundation.step(share * loss)


class DistillationStep:
    """Distillation of the foundation model into the edge model.

    Parameters
    ----------
    edge, foundation : AdaptedModel
        The pupil and the teacher.
    config : AdaptConfig
        Learning rate, loss weights and E_max^0.
    """

    def __init__(self, edge: AdaptedModel, foundation: AdaptedModel, config: AdaptConfig) -> None:
        self.edge = edge
        self.foundation = foundation
        self.weights = config.loss_weights
        self.e_max = config.e_max * math.log(edge.classes)
        self.enabled = config.edge_lr > 0

    def __call__(
        self, images: Sequence[np.ndarray], share: float = 1.0
    ) -> tuple[dict[str, float], bool] | None:
        """Make one step.

        Parameters
        ----------
        images : sequence of ndarray
            New and replayed ones, uint8, height x width x channels.
        share : float
            How much of a full batch of new uploads is among them, in (0, 1]; the learning rate shrinks by it.

        Returns
        -------
        tuple of dict and bool, or None
            ``distillation_loss`` and its terms ``kl``, ``ce``, ``entropy`` before the step, and whether
            parameters moved; None when the learning rate is 0.
        """
        if not self.enabled:
            return None
        teacher = self.foundation.logits(images)
        with self.edge.training():
            terms = distillation_loss(self.edge.forward(images), teacher, self.weights, self.e_max)
            losses = {
                "distillation_loss": float(terms.total.detach()),
                "kl": float(terms.kl.detach()),
                "ce": float(terms.ce.detach()),
                "entropy": float(terms.entropy.detach()),
            }
            return losses, self.edge.step(share * terms.total)


class CemaAdapter(Generic[T]):
    """One cohort's adaptation state: both models, their optimisers and statistics, and the replay buffer.

    Parameters
    ----------
    edge, foundation : cema.models.spec.Model
        The source models; copied, never changed. Both must have the same classes in the same order.
    config : AdaptConfig, optional
        Settings; the defaults when left out.
    device : str
        A torch device such as ``"cpu"`` or ``"cuda:0"``.
    dtype : {"float32", "bfloat16"}
        Precision of the networks' inner computations. Parameters, statistics, losses and optimisers are
        always float32.
    decode : callable, optional
        Turns an item into its image (uint8, height x width x channels). A KeyError from it means that the
        image is gone: the item is dropped. By default items are the images.
    seed : int
        Seed of the draws from the replay buffer, the only chance in here.

    Raises
    ------
    ModelError
        When the models' classes differ, or one has no adaptable normalisation layer.
    ValueError
        When dtype is unknown or the device is not available.
    """

    def __init__(
        self,
        edge: Model,
        foundation: Model,
        config: AdaptConfig | None = None,
        *,
        device: str = "cpu",
        dtype: Literal["float32", "bfloat16"] = "float32",
        decode: Callable[[T], np.ndarray] = _identity,
        seed: int = 0,
    ) -> None:
        self.config = config or AdaptConfig()
        _state.check_pair(edge, foundation)
        self.edge = AdaptedModel(edge, self.config, self.config.edge_lr, device=device, dtype=dtype)
        self.foundation = AdaptedModel(
            foundation, self.config, self.config.foundation_lr, device=device, dtype=dtype
        )
        self.foundation_step = FoundationStep(self.foundation, self.config)
        self.distillation_step = DistillationStep(self.edge, self.foundation, self.config)
        self.replay: ReplayBuffer[T] = ReplayBuffer(self.config.capacity)
        self.counters = {"steps": 0, "fresh": 0, "replayed": 0, "dropped": 0, "skipped": 0}
        self.surroundings = Surroundings(
            window=self.config.window, limit=self.config.change_limit, batch=self.config.fresh
        )
        self.since_change = 0
        self._decode = decode
        self._rng = np.random.default_rng(seed)

    def learn(self, items: Sequence[T]) -> StepReport:
        """Make one step: statistics, foundation step and distillation step, in this order.

        Parameters
        ----------
        items : sequence
            New uploads, at least one; ``config.fresh`` of them for a full step. Samples replayed beside them
            come from what was there before; then the new ones enter the buffer.

        Returns
        -------
        StepReport
            With ``step == 0`` when no image could be decoded: nothing was learned.

        Raises
        ------
        ValueError
            When there are no items.
        ImageError
            When an image is not uint8 height x width x channels; nothing was learned and nothing stored.
        """
        if not items:
            raise ValueError("expected at least one item to learn from, got none; wait for uploads")
        fresh, images, dropped = self._decode_all(items)
        if not images:
            return self._report(dropped=dropped)
        check_images(images)
        # At the rate of a full batch, steps of some four samples each went with a collapse of EfficientNet-Lite0.
        share = min(1.0, len(images) / self.config.fresh)
        wanted = round(self.config.replayed * share)
        changes = self.surroundings.changes
        anew = self.surroundings.observe(input_statistics(self.edge.preprocessing(images)))
        changed = self.surroundings.changes > changes
        for model in (self.foundation, self.edge):
            model.follow(images, changed=changed, anew=anew)
        if changed:
            self.since_change = 0
        again, gone = self._draw(wanted)
        both = [*images, *again]
        foundation = self.foundation_step(images, share)
        distillation = self.distillation_step(both, share)
        self.replay.add(fresh)
        self.since_change += len(fresh)
        return self._report(
            fresh=len(images),
            replayed=len(again),
            dropped=dropped + gone,
            foundation_loss=foundation[0] if foundation else None,
            skipped=_unmoved(foundation) + _unmoved(distillation),
            **(distillation[0] if distillation else {}),
        )

    def replay_step(self) -> StepReport:
        """Make one distillation step on replayed samples only, as many as a full step has.

        Returns
        -------
        StepReport
            With ``step == 0`` when fewer than ``config.replay_from`` samples are stored: nothing was learned.
        """
        images, gone = self._draw(self.config.fresh + self.config.replayed)
        if not images:
            return self._report(dropped=gone)
        distillation = self.distillation_step(images)
        return self._report(
            replayed=len(images),
            dropped=gone,
            skipped=_unmoved(distillation),
            **(distillation[0] if distillation else {}),
        )

    def norm_state(self) -> dict[str, np.ndarray]:
        """Return the edge model's norm state, folded, float32: what an update carries.

        Raises
        ------
        FormatError
            When a folded value is not finite.
        """
        return folded_norm_state(self.edge.module)

    def environment(self) -> Environment | None:
        """Return what the inputs look like that the norm state is for; None while too few are known."""
        return self.surroundings.environment()

    def edge_logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the edge model's logits on uint8 HWC images, running statistics, (N, C) float32."""
        return self.edge.logits(images).cpu().numpy()

    def foundation_logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the foundation model's logits on uint8 HWC images, running statistics, (N, C) float32."""
        return self.foundation.logits(images).cpu().numpy()

    def state_dict(self) -> AdapterState:
        """Return everything that an exact continuation needs.

        Returns
        -------
        AdapterState
            ``tensors``, a flat dict of tensors on the CPU, and ``values``, a JSON-able dict.

        Raises
        ------
        TypeError
            When replayed items are not strings, numbers, or None, as where a benchmark replays arrays.
        """
        return _state.collect(self)

    def load_state_dict(self, state: AdapterState) -> None:
        """Continue exactly where `state_dict` was called, in an adapter made from the same models.

        Raises
        ------
        FormatError
            When the state is of another format, of other models, or has missing, unknown or misshapen
            tensors; nothing was changed then.
        """
        _state.restore(self, state)

    def dumps(self) -> bytes:
        """Return `state_dict` as one safetensors file, the JSON part in its metadata."""
        return _state.encode(self.state_dict())

    def loads(self, data: bytes) -> None:
        """Continue from what `dumps` returned; raises FormatError like `load_state_dict`."""
        self.load_state_dict(_state.decode(data))

    def _draw(self, count: int) -> tuple[list[np.ndarray], int]:
        if len(self.replay) < self.config.replay_from:
            return [], 0
        newest = self.since_change if self.config.replay_scope == "since_change" else None
        drawn = self.replay.draw(count, self._rng, newest=newest)
        kept, images, gone = self._decode_all(drawn)
        if gone:
            present = {id(item) for item in kept}
            self.replay.discard([item for item in drawn if id(item) not in present])
        return images, gone

    def _decode_all(self, items: Sequence[T]) -> tuple[list[T], list[np.ndarray], int]:
        kept, images = [], []
        for item in items:
            try:
                image = self._decode(item)
            except KeyError:
                continue
            kept.append(item)
            images.append(image)
        return kept, images, len(items) - len(kept)

    def _report(self, **what: Any) -> StepReport:
        for name in ("fresh", "replayed", "dropped", "skipped"):
            self.counters[name] += what.get(name, 0)
        learned = what.get("fresh", 0) + what.get("replayed", 0) > 0
        self.counters["steps"] += int(learned)
        return StepReport(step=self.counters["steps"] if learned else 0, **what)
