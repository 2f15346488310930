"""CEMA over a stream: edges that select, a link, the cloud's learner, and updates that take their time.

Chen et al., "Towards Robust and Efficient Cloud-Edge Elastic Model Adaptation via Selective Entropy Distillation",
ICLR 2024.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from cema._util.checks import require, require_rate
from cema.adapt.algorithms import make_learner
from cema.adapt.base import Learner, StepReport
from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner, images_themselves
from cema.errors import ConfigError
from cema.formats.payload import round_norm_state
from cema.methods.base import NotApplicable, StepResult, Uplink, method
from cema.methods.simulated_device import Arrived, DeviceConfig, DeviceNetwork, SimulatedDevice
from cema.ondevice.batch import Batch
from cema.ondevice.folding import neutral_statistics, unfold
from cema.ondevice.own_statistics import StatisticsConfig
from cema.ondevice.recentre import RecentreConfig
from cema.ondevice.selection.base import NotesChanges
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.selection.rules import make_selector
from cema.ondevice.unsure import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["Cema", "CemaConfig", "paper_defaults", "reference_defaults"]


class CemaConfig(SelectionConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `Cema`: those of an edge's selection (`SelectionConfig`), and these.

    Attributes
    ----------
    adapt : AdaptConfig
        The cloud's.
    delay : int
        Batches of the stream, of all edges together, that an update takes to arrive; with 0 it serves the next one.
    replay_steps : bool
        Whether a batch that completes no step of new uploads is followed by one on replayed samples only.
    guard, change_limit, statistics, views, recentre
        A device's; see `cema.methods.simulated_device.DeviceConfig`.
    first_inferred : bool
        Whether running statistics start, on edge and cloud, at those of the first batch that an edge predicts, which a
        simulation can compute and a forward-only device cannot; with ``adapt.statistics = "step"`` only.
    """

    adapt: AdaptConfig = AdaptConfig()
    delay: int = 0
    replay_steps: bool = False
    guard: float = 36.0
    change_limit: float = 36.0
    statistics: StatisticsConfig = StatisticsConfig()
    views: ViewsConfig = ViewsConfig()
    recentre: RecentreConfig = RecentreConfig()
    first_inferred: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        super().__post_init__()
        fits = not self.first_inferred or self.adapt.statistics == "step"
        require(fits, "first_inferred", 'false unless adapt.statistics = "step"', self.first_inferred)
        require(self.delay >= 0, "delay", "a whole number of at least 0", self.delay)
        require_rate("guard", self.guard)

    @property
    def device(self) -> DeviceConfig:
        """What concerns one device."""
        return DeviceConfig(
            guard=self.guard,
            change_limit=self.change_limit,
            statistics=self.statistics,
            views=self.views,
            recentre=self.recentre,
        )


# The authors' configuration never reaches the number of samples after which the threshold would begin to move.
_NEVER = 10**12


def _as_published(preset: Literal["poster", "reference"]) -> CemaConfig:
    """Return settings without anything that this project added, on the device and in the cloud."""
    adapt = AdaptConfig(
        preset=preset,
        statistics="step",
        change_limit=0.0,
        replay_scope="all",
        replayed=96,
        refreshed=128,
    )
    return CemaConfig(
        adapt=adapt,
        guard=0.0,
        change_limit=0.0,
        floor=0.0,
        statistics=StatisticsConfig(source="update"),
        recentre=RecentreConfig(mode="off"),
    )


def paper_defaults() -> CemaConfig:
    """Return the settings that do what the paper and its poster say, and nothing of this project's own.

    Both thresholds on the entropy, the upper one dynamic; the poster's weights of the losses; three replayed samples
    beside each new one, from all that were stored, with targets that are made anew; statistics that move by a tenth in
    every step and come with updates; and nothing that notices a change of domain.
    """
    return _as_published("poster")


def reference_defaults() -> CemaConfig:
    """Return the settings that do what the authors' program does with its configuration for ImageNet-C.

    A fixed upper threshold, no lower one, and ETA's second filter; statistics that start at the first batch predicted
    and follow every training pass; its weights of the losses; a step on replayed samples alone wherever no batch of
    uploads is full; targets that are made anew in every step; and nothing that notices a change of domain, neither on
    the edge nor in the cloud.
    """
    return msgspec.structs.replace(
        _as_published("reference"),
        replay_steps=True,
        e_min=0.0,
        group=_NEVER,
        d_margin=0.05,
        first_inferred=True,
    )


@dataclass(frozen=True, eq=False)
class _Update:
    """A norm state on its way to the edges."""

    due: int
    arrived: Arrived


@method(
    "cema",
    config=CemaConfig,
    cost=12.0,
    colour="#d62728",
    short={
        "cifar/batchnorm": {
            "on_change": "restart",
            "adapt": {"edge_lr": 5e-4, "foundation_lr": 0.01, "source_share": 0.2},
            "statistics": {"prior": 64.0, "source_share": 0.2},
            "views": {"count": 9, "shift": 1, "mirror": True, "above": 0.25},
        },
        "digits/batchnorm": {
            "adapt": {
                "fresh": 16,
                "replay_from": 64,
                "passes": 8,
                "average": 0.98,
                "edge_lr": 0.01,
                "foundation_lr": 0.0,
                "on_change": "reset",
                "window": 192,
            },
            "views": {"count": 5, "shift": 1},
        },
        "digits/layernorm": {
            "adapt": {
                "fresh": 16,
                "replay_from": 64,
                "passes": 12,
                "average": 0.95,
                "edge_lr": 4e-3,
                "foundation_lr": 0.0,
            },
            "views": {"count": 5, "shift": 1},
        },
        "imagenet/batchnorm": {
            "adapt": {"fresh": 16, "replay_from": 64, "passes": 4, "average": 0.9, "source_share": 0.7},
            "statistics": {"source_share": 0.7},
            "views": {"count": 5, "shift": 7, "mirror": True, "above": 0.5},
        },
    },
)
@method(
    "cema-paper",
    config=CemaConfig,
    defaults=paper_defaults,
    cost=12.0,
    colour="#8c1515",
    short={
        "cifar/batchnorm": {"adapt": {"edge_lr": 5e-4, "foundation_lr": 0.01}},
        "digits/batchnorm": {"adapt": {"edge_lr": 0.01}},
        "digits/layernorm": {"adapt": {"edge_lr": 5e-4}},
    },
)
@method(
    "cema-reference",
    config=CemaConfig,
    defaults=reference_defaults,
    cost=12.0,
    colour="#ff9896",
    papers={key: {"d_margin": 0.4} for key in ("cifar", "cifar100", "digits")},
    short={
        "cifar/batchnorm": {"adapt": {"edge_lr": 5e-4, "foundation_lr": 0.025}},
        "digits/batchnorm": {"adapt": {"edge_lr": 0.01}},
        "digits/layernorm": {"adapt": {"edge_lr": 2.5e-3}},
    },
)
class Cema:
    """Edges that only run forward, and the cloud that learns for them.

    A step is what happens around one batch of one edge. The edge predicts it with the newest update that has arrived,
    or with the source model while its inputs are of another domain than that update's; selects by entropy what to
    upload; and the cloud, which sees what the codec leaves of it, makes a step on every full batch of new uploads. What
    it then publishes is rounded as an update's payload is, and arrives after the delay.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : CemaStreamConfig, optional
        None for the defaults.
    context : Context
        The foundation model, how many edges there are, device, precision, codec and seed.

    Attributes
    ----------
    learner : cema.adapt.base.Learner
        The cloud's.
    uplink : Uplink
        What was sent.

    Raises
    ------
    NotApplicable
        When there is no foundation model.
    ModelError
        When the models' classes differ, or one has no adaptable normalisation layer.

    Notes
    -----
    The selector and the watch are an edge's own. The network that runs an update is shared, as all edges get an update
    at once. The service's test of updates before they are published is not part of this: it is about which version a
    fleet may run, not about learning. Uploads that fill no batch at the end of a stream are not learned from.
    """

    def __init__(self, edge: Model, config: CemaConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or CemaConfig()
        if context.foundation is None:
            raise NotApplicable(
                "CEMA distils a foundation model and was given none: name one (--foundation), such as the larger model "
                "of the same family"
            )
        self.uplink = Uplink(context.codec)
        self.learner: Learner[np.ndarray] = make_learner(
            edge,
            context.foundation,
            self.config.adapt,
            device=context.device,
            dtype=context.dtype,
            recall=images_themselves,
            seed=context.seed,
        )
        clean = context.source_images if self.config.recentre.mode != "off" else ()
        self._network = DeviceNetwork(edge, device=context.device, dtype=context.dtype, clean=clean)
        self._selectors = [make_selector(self.config, edge.classes) for _ in range(context.edges)]
        self._devices = [SimulatedDevice(self._network, self.config.device) for _ in range(context.edges)]
        self._queue: deque[np.ndarray] = deque()
        self._coming: deque[_Update] = deque()
        self._batches = 0
        if self.config.first_inferred and not isinstance(self.learner, CemaLearner):
            raise ConfigError("first_inferred: expected the algorithm cema, got another; set it to false")

    @property
    def drifted(self) -> tuple[bool, ...]:
        """For each edge, whether the source model predicts for it until its inputs are like the update's again."""
        return tuple(device.drifted for device in self._devices)

    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch of one edge, then learn from what it uploads; see `cema.methods.base.Adapter`.

        Raises
        ------
        ConfigError
            When there is no such edge.
        """
        if not 0 <= edge < len(self._selectors):
            raise ConfigError(
                f"expected an edge from 0 to {len(self._selectors) - 1}, got {edge}; set Context.edges"
            )
        if self.config.first_inferred and not self._batches:
            self._start_at(images)
        self._receive()
        device, selector = self._devices[edge], self._selectors[edge]
        before = device.changes
        logits, forwards = device.predict(images)
        if device.changes > before and isinstance(selector, NotesChanges):
            selector.changed()  # as the agent does
        selected = selector.select(logits, softmax_entropy(logits))
        before = self.uplink.bytes
        self._queue.extend(self.uplink.send([images[i] for i in np.flatnonzero(selected).tolist()]))
        reports = self._learn()
        self._batches += 1
        return StepResult(
            logits=logits,
            uploads=int(selected.sum()),
            bytes_up=self.uplink.bytes - before,
            forwards=forwards + sum(report.forwards for report in reports),
            backwards=sum(report.backwards for report in reports),
        )

    def _start_at(self, images: Sequence[np.ndarray]) -> None:
        """Let running statistics start at those of a batch, if the model has any."""
        if isinstance(self.learner, CemaLearner) and self.learner.start_at(images):
            for device in self._devices:
                device.install(self._made())

    def _receive(self) -> None:
        """Install what has arrived by now; of several updates the newest."""
        arrived = None
        while self._coming and self._coming[0].due <= self._batches:
            arrived = self._coming.popleft().arrived
        if arrived is not None:
            for device in self._devices:
                device.install(arrived)

    def _made(self) -> Arrived:
        """Return what the cloud learned, rounded as a payload is."""
        layers, folded, domain = self._network.layers, self.learner.norm_state(), self.learner.domain()
        apart = isinstance(self.learner, CemaLearner) and self.config.statistics.source == "own"
        if not apart:
            return Arrived(round_norm_state(folded), neutral_statistics(layers), domain, folded=True)
        statistics = self.learner.statistics()  # type: ignore[attr-defined]
        return Arrived(round_norm_state(unfold(folded, statistics, layers)), statistics, domain)

    def _learn(self) -> list[StepReport]:
        """Make a step on every full batch of uploads, and publish what came of it."""
        fresh, reports = self.config.adapt.fresh, []
        while len(self._queue) >= fresh:
            images = [self._queue.popleft() for _ in range(fresh)]
            reports.append(self.learner.learn(images, Batch(images)))
        if not reports and self.config.replay_steps:
            reports.append(self.learner.replay())
        if any(report.step for report in reports):
            self._coming.append(_Update(self._batches + 1 + self.config.delay, self._made()))
        return reports
