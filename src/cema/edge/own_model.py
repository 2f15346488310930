"""A model with statistics of the device's own: read while it predicts, and folded in the background.

One session over the bundle's second graph serves every update at once, with the affine parameters as an input; it is
slower than a session with everything folded. So it answers only while statistics are read, and until what was read is
folded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cema.edge.background import BackgroundThread, Clock, Pause
from cema.edge.retry import Backoff
from cema.edge.runtime import Runtime
from cema.edge.statistics import StatisticsRuntime, UnfoldedModel
from cema.edge.system import return_free_memory, run_behind
from cema.formats.bundle import Bundle, check_golden
from cema.formats.payload import NormState
from cema.ondevice.adaptation import DeviceAdaptation
from cema.ondevice.folding import fold
from cema.ondevice.own_statistics import Reading

__all__ = ["OwnModel"]

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Folded:
    """A session, and what is folded into it."""

    runtime: Runtime
    affine: NormState
    statistics: Float32


class OwnModel(BackgroundThread):
    """Predicts with any affine parameters under the device's own statistics.

    Parameters
    ----------
    bundle : Bundle
        One with statistics.
    adaptation : DeviceAdaptation
        With own statistics.
    count : callable
        Called with a counter's name and a number: ``read`` images, ``folds``.
    threads : int
        For the sessions.
    clock, backoff, on_change
        See :class:`~cema.edge.background.BackgroundThread`.

    Raises
    ------
    FormatError
        When ONNX Runtime cannot load the graph, or it is of an old bundle and a share of the source model's statistics
        is asked for.
    LogitsError
        When it does not give the bundle's golden logits on this device.
    """

    def __init__(
        self,
        bundle: Bundle,
        adaptation: DeviceAdaptation,
        *,
        count: Callable[[str, int], None],
        threads: int,
        clock: Clock,
        backoff: Backoff,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__("statistics", clock=clock, backoff=backoff, on_change=on_change)
        self._bundle, self._adaptation, self._count, self._threads = bundle, adaptation, count, threads
        self._graph = StatisticsRuntime(bundle, threads=threads)
        self._graph.check_share(adaptation.source_share)
        source = bundle.statistics()
        assert source is not None  # noqa: S101 - for the type; the runtime has refused others
        self._source_statistics: Float32 = source
        self._golden = bundle.manifest.preprocessing(bundle.golden_images)
        self._unfolded_model: tuple[NormState, UnfoldedModel] | None = None
        self._folded: _Folded | None = None
        self.check(bundle.affine_state(), bundle.golden_logits)

    @property
    def folded(self) -> bool:
        """Whether the parameters that were asked for last have a session with the statistics of now."""
        wanted = self._unfolded_model
        return (
            wanted is not None
            and self._adaptation.settled
            and self._session(wanted[0], self._adaptation.statistics()) is not None
        )

    def check(self, affine: NormState, golden_logits: Float32) -> None:
        """Try affine parameters on the bundle's golden images, under the source model's statistics.

        Raises
        ------
        FormatError
            When they do not fit the model.
        LogitsError
            When other logits come out.
        """
        model = self._graph.under(affine)
        got = [model.run(image[None], self._source_statistics) for image in self._golden]
        check_golden(np.concatenate(got), golden_logits, self._bundle.manifest.tolerance)

    def run(self, affine: NormState, batch: Float32, reading: Reading | None) -> Float32:
        """Return the logits (N, classes) of preprocessed inputs; any number of threads may call this.

        Parameters
        ----------
        affine : dict of str to ndarray
            Norm parameters, unfolded: the very same object as long as they are the same.
        batch : ndarray of float32 (N, channels, height, width)
            At least one input.
        reading : Reading or None
            What `DeviceAdaptation.before` said of them.

        Raises
        ------
        LogitsError
            When a logit or a statistic is not finite.
        """
        if reading is None:
            return self.again(affine, batch)
        logits, observed = self._unfolded(affine).observe(batch, reading.blend)
        if self._adaptation.read(reading, observed, len(batch)):
            self._count("read", len(batch))
            if self._adaptation.settled:
                self.notify()
        return logits

    def again(self, affine: NormState, batch: Float32) -> Float32:
        """Return logits as `run` does, of inputs that are not to be read: views of others."""
        statistics = self._adaptation.statistics()
        session = self._session(affine, statistics)
        return self._unfolded(affine).run(batch, statistics) if session is None else session.run(batch)

    def step(self) -> Pause:
        """Fold what was read, if that is worth it and not done."""
        wanted = self._unfolded_model
        if wanted is None or not self._adaptation.settled:
            return Pause(None)
        affine = wanted[0]
        statistics = self._adaptation.statistics()
        if self._session(affine, statistics) is None:
            behind = self._threads == 1  # more threads would stay slow (see `cema.edge.runtime.build_active`)
            runtime = (
                run_behind(lambda: self._fold(affine, statistics))
                if behind
                else self._fold(affine, statistics)
            )
            self._folded = _Folded(runtime, affine, statistics)
            self._count("folds", 1)
            return_free_memory()
        self.succeeded()
        return Pause(None)

    def _session(self, affine: NormState, statistics: Float32) -> Runtime | None:
        """Return the session that these very parameters and statistics are folded into, if there is one."""
        folded = self._folded
        fits = folded is not None and folded.affine is affine and folded.statistics is statistics
        return folded.runtime if fits and folded is not None else None

    def _fold(self, affine: NormState, statistics: Float32) -> Runtime:
        """Build a session, and let it serve only if it predicts as the graph does that the statistics are from."""
        bundle = self._bundle
        norm = bundle.pack_norm(fold(affine, statistics, bundle.manifest.statistics))
        model = self._graph.under(affine)
        expected = [model.run(image[None], statistics) for image in self._golden]
        # Not while these intermediate results are there: to build a session takes several times the model's size.
        runtime = Runtime(bundle, norm, threads=self._threads)
        return_free_memory()
        got = [runtime.run(image[None], release=True) for image in self._golden]
        check_golden(np.concatenate(got), np.concatenate(expected), bundle.manifest.tolerance)
        return runtime

    def _unfolded(self, affine: NormState) -> UnfoldedModel:
        """Return the model under parameters, which are laid out once."""
        known = self._unfolded_model
        if known is None or known[0] is not affine:
            known = (affine, self._graph.under(affine))
            self._unfolded_model = known  # one assignment: another thread sees both or neither
            self.notify()  # they may be worth folding
        return known[1]
