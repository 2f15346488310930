"""CEMA's learner: adapt a foundation model, distil it into a copy of the edge model.

Yaofo Chen et al., "Towards Robust and Efficient Cloud-Edge Elastic Model Adaptation via Selective Entropy
Distillation", ICLR 2024.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from cema.adapt import checkpoint
from cema.adapt.bank import NormBank
from cema.adapt.base import StepReport
from cema.adapt.changes import ChangeDetector
from cema.adapt.checkpoint import State
from cema.adapt.config import AdaptConfig
from cema.adapt.fitting import FORMAT, check_pair, check_values
from cema.adapt.labels import Labelled, TrueLabels
from cema.adapt.reading import statistics_layers, statistics_of
from cema.adapt.replay import ReplayBuffer
from cema.adapt.steps import Descent, DistillationStep, FoundationStep
from cema.adapt.taught import Replayed, TaughtReplay
from cema.adapt.teacher import Teacher
from cema.adapt.trainable import TrainableModel
from cema.models.norm_state import folded_norm_state
from cema.ondevice.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Literal

    from cema.adapt.base import LabelsOf, Recall
    from cema.models.spec import Model
    from cema.ondevice.drift import Domain
    from cema.ondevice.folding import StatisticsLayer

__all__ = ["CemaLearner", "images_themselves"]

T = TypeVar("T")


class _Again(NamedTuple):
    """What one more pass over a batch of uploads did."""

    replayed: int
    dropped: int
    skipped: int


def images_themselves(items: Sequence[Any]) -> Sequence[np.ndarray]:
    """Return items that are their own images: what a benchmark replays."""
    return items


class CemaLearner(Generic[T]):
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
    recall : callable, optional
        Returns the images (uint8, height x width x channels) of replayed items; None for one whose image is gone: the
        item is dropped. By default items are their images.
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
        recall: Recall[T] = images_themselves,
        seed: int = 0,
    ) -> None:
        self.config = config or AdaptConfig()
        check_pair(edge, foundation)
        self._sources = (edge, foundation)
        self._placement: dict[str, Any] = {"device": device, "dtype": dtype}
        self._seed = seed
        self.replay_buffer: ReplayBuffer[T] = ReplayBuffer(self.config.capacity)
        self._recall = recall
        self._taught = TaughtReplay(self.replay_buffer, edge.classes, recall, self.config.refreshed)
        self._truth = TrueLabels(self.replay_buffer, edge.classes, recall)
        self._since_change = 0
        self._mixed = 0
        self._begin()

    def _begin(self) -> None:
        """Make everything again from the source models, but for the replay buffer."""
        config = self.config
        edge, foundation = self._sources
        self.edge = TrainableModel(edge, config, config.edge_lr, average=config.average, **self._placement)
        self.foundation = TrainableModel(foundation, config, config.foundation_lr, **self._placement)
        self.teacher = Teacher(self.foundation, config.views)
        self.foundation_step = FoundationStep(self.foundation, config)
        self.distillation_step = DistillationStep(self.edge, config)
        self.changes = ChangeDetector(window=config.window, limit=config.change_limit, batch=config.fresh)
        self.bank = self._new_bank()
        self.counters = {"steps": 0, "fresh": 0, "replayed": 0, "dropped": 0, "skipped": 0}
        self._rng = np.random.default_rng(self._seed)
        self._reported = (0, 0)
        self._prepared: tuple[Batch, bool] | None = None

    def _new_bank(self) -> NormBank:
        return NormBank({"edge": self.edge, "foundation": self.foundation}, self.config)

    @property
    def steps(self) -> int:
        """Steps made so far, replay-only steps included."""
        return self.counters["steps"]

    @property
    def replayable(self) -> int:
        """Samples in the replay buffer."""
        return len(self.replay_buffer)

    @property
    def since_change(self) -> int:
        """New samples since the domain changed last, the batch that showed the change included."""
        return self._since_change

    def learn(self, items: Sequence[T], batch: Batch | None = None) -> StepReport:
        """Make one step: the foundation model learns from the new uploads, then the edge model from it.

        Each model's running statistics follow the new uploads in the pass in which it learns from them. What the
        foundation model answers in that pass is what the edge model is taught for them.

        Parameters
        ----------
        items : sequence
            New uploads, at least one; ``config.fresh`` of them for a full step. Samples replayed beside them
            come from what was there before; then the new ones enter the buffer.
        batch : Batch, optional
            Their images, in the same order; made of the items, which are images then, when left out.

        Returns
        -------
        StepReport
            With the losses ``foundation_loss``, ``distillation_loss``, and the latter's weighted terms ``kl``, ``ce``
            and ``entropy``; a model whose learning rate is 0 has none.

        Raises
        ------
        ValueError
            When there are no items, or not as many as images.
        ImageError
            When an image is not uint8 height x width x channels; nothing was learned and nothing stored.
        """
        images = Batch(self._recall(items)) if batch is None else batch  # type: ignore[arg-type]
        if not items or len(items) != len(images):
            raise ValueError(
                f"expected at least one item and an image for each, got {len(items)} items and {len(images)} images; "
                "wait for uploads, or leave out items without an image"
            )
        self._reported = self._passes()
        # At the rate of a full batch, steps of some four samples each went with a collapse of EfficientNet-Lite0.
        share = min(1.0, len(images) / self.config.fresh)
        reset = self._watch(images)
        self.changes.name_latest(items)
        truth, again = self._truth.of(items), self._draw_labelled(share)
        foundation, logits = self.foundation_step(images, share, reset=reset, labels=truth, again=again)
        answers = self._answers(images, logits)
        replayed = self._draw(round(self.config.replayed * share), again=again)
        targets = torch.cat([answers, replayed.targets.to(answers.device)])
        labels = self._truth.joined(truth, len(images), replayed.items)
        edge = self.distillation_step(images, replayed.images, targets, share, reset=reset, labels=labels)
        repeated = [self._again(images, answers, truth, share) for _ in range(self.config.passes - 1)]
        self._take_in(items, answers)
        return self._report(
            fresh=len(images),
            replayed=len(replayed.images) + sum(again.replayed for again in repeated),
            dropped=replayed.dropped + sum(again.dropped for again in repeated),
            skipped=foundation.skipped + edge.skipped + sum(again.skipped for again in repeated),
            losses=foundation.losses | edge.losses,
            labels=answers.argmax(dim=1).cpu().numpy(),
        )

    def _again(
        self, images: Batch, answers: torch.Tensor, truth: torch.Tensor | None, share: float
    ) -> _Again:
        """Distil once more on new uploads and others to replay; nothing is asked of the foundation model."""
        again = self._draw_labelled(share)
        replayed = self._draw(round(self.config.replayed * share), refresh=False, again=again)
        targets = torch.cat([answers, replayed.targets.to(answers.device)])
        labels = self._truth.joined(truth, len(images), replayed.items)
        edge = self.distillation_step(images, replayed.images, targets, share, follow=False, labels=labels)
        return _Again(len(replayed.images), replayed.dropped, edge.skipped)

    def prepare(self, batch: Batch) -> bool:
        """Take note of what new uploads look like before they are learned from, in the next call of `learn`.

        Where they show another domain, what was learned for the one before is kept, and what was learned earlier for
        this one is put back (`cema.adapt.bank.NormBank`).

        Parameters
        ----------
        batch : Batch
            The images of the new uploads; the same object that `learn` is given.

        Returns
        -------
        bool
            Whether the models have other parameters now, which were learned earlier.
        """
        rows, known = batch.statistics(self.edge.preprocessing), self.changes.rows()
        before = self.changes.changes
        reset = self.changes.observe(rows, known=self.bank.recognises(rows, known))
        changed = self.changes.changes > before
        if changed:
            self.bank.leave(known)
            self._since_change = 0
        if reset:
            # The batch that showed the change holds samples of the domain before too. Replayed, they would be taught
            # under statistics of this one.
            self._mixed = self._since_change
        # What a batch of two domains taught goes too, unless it was taught to a state that was put back.
        begins = changed or (reset and not self.bank.has_put_back)
        for model in (self.foundation, self.edge):
            model.enter(changed=begins)
        found = self.bank.enter(rows) if reset else None
        if found is not None:
            self.changes.remember(found.entry.rows)
        self.bank.learn_from(len(batch))
        self._prepared = (batch, reset and found is None)
        return found is not None and found.other

    def _watch(self, images: Batch) -> bool:
        """Tell whether the window of statistics is to be cleared, because new uploads show another domain."""
        if self._prepared is None or self._prepared[0] is not images:
            self.prepare(images)
        prepared, self._prepared = self._prepared, None
        return prepared is not None and prepared[1]

    def _answers(self, images: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return what the edge model is to be taught for new uploads."""
        if self.config.statistics == "step":
            # The statistics moved after that pass, and the published code asks once more.
            return self.teacher(images)
        return self.teacher(images, logits)

    def replay(self) -> StepReport:
        """Make one distillation step on replayed samples only, as many as a full step has.

        Returns
        -------
        StepReport
            With ``step == 0`` when fewer than ``config.replay_from`` samples are stored: nothing was learned.
        """
        self._reported = self._passes()
        again = self._draw_labelled()
        foundation = self.foundation_step(Batch(), again=again)[0] if again.items else Descent({}, 0)
        replayed = self._draw(self.config.fresh + self.config.replayed, again=again)
        if not replayed.images:
            return self._report(dropped=replayed.dropped)
        targets = replayed.targets.to(self.edge.device)
        labels = self._truth.joined(None, 0, replayed.items)
        edge = self.distillation_step(Batch(), replayed.images, targets, labels=labels)
        return self._report(
            replayed=len(replayed.images),
            dropped=replayed.dropped,
            skipped=foundation.skipped + edge.skipped,
            losses=foundation.losses | edge.losses,
        )

    def start_at(self, images: Sequence[np.ndarray]) -> bool:
        """Let the edge model's running statistics start at those of a batch that a device predicts.

        A simulation can do that; a device that only runs forward has no batch statistics. Returns False when the model
        has no running statistics.
        """
        return self.edge.observe(images)

    def skip(self, items: Sequence[T]) -> None:
        """Put new samples into the replay buffer."""
        self._take_in(items)

    def redraw(self) -> None:
        """Make the next replay draw other samples."""
        self._rng.random()

    def forget(self, items: Collection[T]) -> None:
        """Forget items that stand for samples, such as ids: references, answers for them, statistics of their inputs.

        Where there is a bank, all of it is forgotten: whose inputs its statistics are of is not known.

        Parameters
        ----------
        items : collection
            Hashable; those that are not known are ignored.
        """
        gone = frozenset(items)
        latest = sum(item in gone for item in self.replay_buffer.newest(self._since_change))
        own = [item for item in self.replay_buffer.items() if item in gone]
        self.replay_buffer.discard(own)
        self._taught.targets.forget(own)
        self._since_change -= latest
        self._mixed = min(self._mixed, self._since_change)
        self.changes.forget(gone)
        self.bank.forget()

    def labels_from(self, source: LabelsOf[T]) -> None:
        """Learn true labels that people have given, see `cema.adapt.base.TakesLabels`."""
        self._truth.source = source

    def restart(self) -> None:
        """Begin again at the source models; the replay buffer stays."""
        self._begin()
        self._taught.targets.clear()

    def norm_state(self) -> dict[str, np.ndarray]:
        """Return the edge model's norm state, folded, float32: what an update carries, averaged as configured.

        Raises
        ------
        FormatError
            When a folded value is not finite.
        """
        with self.edge.average.in_place():
            return folded_norm_state(self.edge.module, self.edge.norm_layers)

    def statistics(self) -> np.ndarray:
        """Return the statistics that are folded into `norm_state`, float32 (2, K), in the order of `statistics_layers`.

        They lie as `cema.ondevice.folding` describes; K is 0 for a model without running statistics.
        """
        return statistics_of(self.edge.layers)

    def statistics_layers(self) -> tuple[StatisticsLayer, ...]:
        """Return whose statistics these are."""
        return statistics_layers(self.edge.layers)

    def domain(self) -> Domain | None:
        """Return what the inputs look like that the norm state is for; None while too few are known."""
        return self.changes.domain()

    def edge_logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the edge model's logits on uint8 HWC images, running statistics, (N, C) float32.

        With its parameters as in `norm_state`.
        """
        with self.edge.average.in_place():
            return self.edge.logits(images).cpu().numpy()

    def foundation_logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the foundation model's logits on uint8 HWC images, running statistics, (N, C) float32."""
        return self.foundation.logits(images).cpu().numpy()

    def state_dict(self) -> State:
        """Return everything that an exact continuation needs.

        Raises
        ------
        TypeError
            When replayed items are not strings, numbers, or None, as where a benchmark replays arrays.
        """
        sides = {"edge": self.edge.state(), "foundation": self.foundation.state()}
        inputs, changes = self.changes.state()
        replay, targets = self._taught.state()
        values = {
            "format": FORMAT,
            "models": {side: state.values for side, state in sides.items()},
            "counters": dict(self.counters),
            "since_change": self._since_change,
            "mixed": self._mixed,
            "surroundings": changes,
            "rng": self._rng.bit_generator.state,
            "replay": replay,
        }
        tensors: dict[str, torch.Tensor] = {
            f"{side}.{key}": t for side, state in sides.items() for key, t in state.tensors.items()
        }
        tensors |= {f"targets.{key}": t for key, t in targets.items()}
        bank = self.bank.state()
        tensors |= {f"bank.{key}": t for key, t in bank.tensors.items()}
        if bank.values:
            values["bank"] = bank.values
        return State(tensors | checkpoint.as_tensors(inputs), values)

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state_dict` was called, in a learner made from the same models.

        Raises
        ------
        FormatError
            When the state is of another format, of other models, or has missing, unknown or misshapen
            tensors; nothing was changed then.
        """
        tensors, values = state
        check_values(values)
        models = {"edge": self.edge, "foundation": self.foundation}
        parts = {side: State(checkpoint.below(side, tensors), values["models"][side]) for side in models}
        expected = checkpoint.shapes_of(self.changes.shapes(values["surroundings"]))
        for side, model in models.items():
            shapes = model.expected_shapes(parts[side], side)
            expected |= {f"{side}.{key}": shape for key, shape in shapes.items()}
        targets = checkpoint.below("targets", tensors)
        expected |= {f"targets.{key}": shape for key, shape in self._taught.targets.shapes(targets).items()}
        bank, kept = self._new_bank(), checkpoint.below("bank", tensors)
        bank.load(State(kept, values.get("bank", {})))
        expected |= {f"bank.{key}": t.shape for key, t in kept.items()}
        checkpoint.check_tensors(expected, tensors)
        for side, model in models.items():
            model.load(parts[side])
        self.counters.update(values["counters"])
        self._rng.bit_generator.state = values["rng"]
        self._since_change = values["since_change"]
        # Checkpoints from before do not tell: the batch that showed a change was replayed then.
        self._mixed = values.get("mixed", 0)
        self.changes.load(checkpoint.as_arrays(tensors), values["surroundings"])
        self._taught.load(values["replay"], targets)
        self.bank, self._prepared = bank, None

    def dumps(self) -> bytes:
        """Return `state_dict` as one safetensors file, the JSON part in its metadata."""
        return checkpoint.encode(self.state_dict())

    def loads(self, data: bytes) -> None:
        """Continue from what `dumps` returned; raises FormatError like `load_state_dict`."""
        self.load_state_dict(checkpoint.decode(data))

    def _take_in(self, items: Sequence[T], answers: torch.Tensor | None = None) -> None:
        self._taught.add(items, answers)
        self._since_change += len(items)

    def _draw(self, count: int, *, refresh: bool = True, again: Labelled[T]) -> Replayed:
        """Return replayed images with their targets, those with true labels among them."""
        if len(self.replay_buffer) < self.config.replay_from:
            count = 0
            if not again.items:
                return Replayed(Batch(), torch.empty(0, self.edge.classes), 0)
        return self._taught.draw(
            count,
            self._rng,
            newest=self._newest,
            teacher=self.teacher,
            refresh=refresh,
            certain=again.items,
        )

    def _draw_labelled(self, share: float = 1.0) -> Labelled[T]:
        """Return samples with true labels that are learned again: at most half of what is replayed."""
        return self._truth.draw(round(self.config.replayed * share) // 2, self._rng, newest=self._newest)

    @property
    def _newest(self) -> int | None:
        """How many of the newest samples may be replayed; None for all."""
        return self._since_change - self._mixed if self.config.replay_scope == "since_change" else None

    def _report(
        self, *, losses: dict[str, float] | None = None, labels: np.ndarray | None = None, **what: int
    ) -> StepReport:
        for name in ("fresh", "replayed", "dropped", "skipped"):
            self.counters[name] += what.get(name, 0)
        learned = what.get("fresh", 0) + what.get("replayed", 0) > 0
        self.counters["steps"] += int(learned)
        forwards, backwards = (
            now - before for now, before in zip(self._passes(), self._reported, strict=True)
        )
        return StepReport(
            step=self.steps if learned else 0,
            forwards=forwards,
            backwards=backwards,
            losses=losses or {},
            labels=labels,
            **what,
        )

    def _passes(self) -> tuple[int, int]:
        """Return how many samples have passed forward and backward so far."""
        models = (self.edge, self.foundation)
        return sum(m.forwards for m in models), sum(m.backwards for m in models)
