"""The protocol between the cloud's worker and the algorithm that it runs.

The worker reads samples, asks a learner to learn from them, and publishes what comes of it. It knows nothing else of
the algorithm, and the algorithm nothing of stores, updates or the network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cema.adapt.config import AdaptConfig
    from cema.models.spec import Model
    from cema.ondevice.batch import Batch
    from cema.ondevice.drift import Domain
    from cema.ondevice.folding import StatisticsLayer

__all__ = [
    "Forgets",
    "HasStatistics",
    "LabelsOf",
    "Learner",
    "LearnerFactory",
    "PutsBack",
    "Recall",
    "StepReport",
    "TakesLabels",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)
Recall: TypeAlias = "Callable[[Sequence[T]], Sequence[npt.NDArray[np.uint8] | None]]"
"""Returns the images of items that are replayed, in their order; None where an image is gone."""
LabelsOf: TypeAlias = "Callable[[Sequence[T]], Sequence[int | None]]"
"""Returns the true classes of items, in their order; None where nobody has given one."""


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
        Items whose image could not be had any more; they will not be replayed again.
    skipped : int
        Parameter updates that were not made because a gradient was not finite.
    forwards, backwards : int
        Samples passed through any network: forward, and those of them that were passed backward.
    losses : mapping of str to float
        By name, before the step; what the algorithm calls them.
    labels : ndarray of int64, optional
        The foundation model's labels of the new samples, shape (fresh,), where the step made them; None leaves it to
        the worker to ask for its logits.
    """

    step: int = 0
    fresh: int = 0
    replayed: int = 0
    dropped: int = 0
    skipped: int = 0
    forwards: int = 0
    backwards: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    labels: npt.NDArray[np.int64] | None = field(default=None, compare=False)


class Learner(Protocol[T_contra]):
    """One cohort's adaptation: everything that the worker asks of an algorithm.

    `T_contra` is what stands for a sample: the worker hands sequence numbers of its store, a benchmark the images
    themselves. A call that raises may leave the learner half changed: the worker then makes a new one from the last
    checkpoint.

    A learner may also tell which statistics it has (`HasStatistics`), put back what it learned for a domain that comes
    again (`PutsBack`), forget samples (`Forgets`), and learn what people say is on them (`TakesLabels`).
    """

    @property
    def steps(self) -> int:
        """Steps made so far, replay-only steps included."""
        ...

    @property
    def replayable(self) -> int:
        """Samples that may be replayed."""
        ...

    @property
    def since_change(self) -> int:
        """New samples since the domain changed last, the batch that showed the change included."""
        ...

    def learn(self, items: Sequence[T_contra], batch: Batch) -> StepReport:
        """Make one step on new samples; `batch` holds their images, in the same order."""
        ...

    def replay(self) -> StepReport:
        """Make one step on replayed samples only; ``step == 0`` when there are too few."""
        ...

    def skip(self, items: Sequence[T_contra]) -> None:
        """Take new samples in for replay, without a step of their own."""
        ...

    def redraw(self) -> None:
        """Make the next replay draw other samples: those that it would have drawn end the process."""
        ...

    def restart(self) -> None:
        """Begin again at the source models; what may be replayed stays."""
        ...

    def edge_logits(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Return the adapted edge model's logits (N, C) on images."""
        ...

    def foundation_logits(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Return the foundation model's logits (N, C) on images."""
        ...

    def norm_state(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return what an update carries: folded, float32, finite; FormatError otherwise."""
        ...

    def domain(self) -> Domain | None:
        """Return what the inputs look like that the norm state is for; None while too few are known."""
        ...

    def dumps(self) -> bytes:
        """Return everything that an exact continuation needs. No pickle."""
        ...

    def loads(self, data: bytes) -> None:
        """Continue from what `dumps` returned; FormatError, and nothing changed, when it does not fit."""
        ...


@runtime_checkable
class HasStatistics(Protocol):
    """A learner that tells statistics apart from what it learned, for devices that have statistics of their own.

    Without these two methods, updates carry `Learner.norm_state` as it is, with statistics folded into it: a device
    runs it so, and its own statistics do not enter.
    """

    def statistics(self) -> npt.NDArray[np.float32]:
        """Return the statistics that are folded into `Learner.norm_state`: means and variances, (2, K), finite."""
        ...

    def statistics_layers(self) -> tuple[StatisticsLayer, ...]:
        """Return whose they are, in their order: the model's normalisation layers with running statistics."""
        ...


@runtime_checkable
class PutsBack(Protocol):
    """A learner that puts back what it learned earlier for a domain when the domain comes again.

    The worker asks before it tests the adapted model on a batch, so that the test is of what was put back.
    """

    def prepare(self, batch: Batch) -> bool:
        """Take note of a batch that `Learner.learn` is given next; True when what was learned earlier was put back."""
        ...


@runtime_checkable
class Forgets(Protocol[T_contra]):
    """A learner that can forget samples which were deleted; the worker begins anew with one that cannot."""

    def forget(self, items: Collection[T_contra]) -> None:
        """Forget everything that is kept of items, or was made of them one by one: `Learner.dumps` is free of it.

        Those that are not known are ignored. What was learned from them together with others, such as parameters and
        running statistics, stays.
        """
        ...


@runtime_checkable
class TakesLabels(Protocol[T_co]):
    """A learner that learns true labels in the place of the foundation model's."""

    def labels_from(self, source: LabelsOf[T_co]) -> None:
        """Learn what `source` returns, from the next step on.

        Parameters
        ----------
        source : callable
            Asked in every step, of new uploads and of all that may be replayed; what it returns may change. As long as
            it knows no label, every step is the very same as without it.
        """
        ...


class LearnerFactory(Protocol):
    """The constructor that every learner has; ``[cohort.adapt] algorithm`` names it."""

    def __call__(
        self,
        edge: Model,
        foundation: Model,
        config: AdaptConfig,
        *,
        device: str = "cpu",
        dtype: Literal["float32", "bfloat16"] = "float32",
        recall: Recall[T],
        seed: int = 0,
    ) -> Learner[T]:
        """Make a learner that begins at the source models."""
        ...
