"""What a device does about a domain by itself: statistics of its own, views, centred logits.

The decisions are here, and need no model. The edge agent and the benchmark's devices use the same object.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from cema._util.checks import require
from cema.ondevice.label_runs import LabelRuns
from cema.ondevice.own_domain import OwnDomain
from cema.ondevice.own_statistics import OwnStatistics, Reading, StatisticsConfig
from cema.ondevice.recentre import RecentreConfig
from cema.ondevice.unsure import UnsureViews, ViewsConfig

__all__ = ["AdaptationConfig", "DeviceAdaptation"]

Float32 = npt.NDArray[np.float32]


class AdaptationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device does by itself.

    Attributes
    ----------
    change_limit : float
        How unlike its first ones the inputs of a domain must become to be of another
        (`cema.ondevice.own_domain.OwnDomain`): then a device begins anew with all of this. 0 for never.
    statistics : StatisticsConfig
        Whose statistics BatchNorm layers use.
    views : ViewsConfig
        Views of unsure images.
    recentre : RecentreConfig
        Re-centring of logits.
    """

    change_limit: float = 36.0
    statistics: StatisticsConfig = StatisticsConfig()
    views: ViewsConfig = ViewsConfig()
    recentre: RecentreConfig = RecentreConfig()

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        fits = math.isfinite(self.change_limit) and self.change_limit >= 0
        require(fits, "change_limit", "a finite number of at least 0", self.change_limit)


class DeviceAdaptation:
    """What a device has found out about its own inputs. Any number of threads may use it.

    Parameters
    ----------
    config : AdaptationConfig
        Its settings.
    statistics : ndarray of float32 (2, K), optional
        The source model's means and variances; None for a model whose statistics cannot be read.
    mean_logits : ndarray of float (C,), optional
        The source model's mean logits on clean images, where they are known.
    classes : int
        C.
    """

    def __init__(
        self,
        config: AdaptationConfig,
        *,
        statistics: npt.NDArray[Any] | None,
        mean_logits: npt.NDArray[Any] | None,
        classes: int,
    ) -> None:
        there = statistics is not None and statistics.size > 0
        own = there and config.statistics.source == "own"
        self._source = statistics
        self._own = OwnStatistics(statistics, config.statistics) if own and statistics is not None else None
        self._centre = config.recentre.centre(mean_logits, classes=classes, statistics=there)
        self._views = UnsureViews(config.views)
        self._runs = LabelRuns(classes)
        watched = self._own is not None or self._centre is not None
        self._domain = OwnDomain(config.change_limit if watched else 0.0)
        self._parameters: object = None
        self._lock = threading.Lock()

    @property
    def own_statistics(self) -> bool:
        """Whether statistics are the device's own."""
        return self._own is not None

    @property
    def source_share(self) -> float:
        """What the source model's statistics count for beside the device's own."""
        return self._own.window.share if self._own is not None else 0.0

    @property
    def changes(self) -> int:
        """How often the domain changed."""
        return self._domain.changes

    def before(
        self,
        inputs: Float32,
        parameters: object,
        prior: npt.NDArray[Any] | None = None,
        rows: Float32 | None = None,
    ) -> Reading | None:
        """Take note of a call's inputs, and return the reading to make of them, if one is due.

        Parameters
        ----------
        inputs : ndarray of float32 (N, C, H, W)
            Preprocessed.
        parameters : object
            The affine parameters that are about to predict: others than in the call before make a reading due.
        prior : ndarray of float32 (2, K), optional
            The statistics that they were learned with; the source model's when left out.
        rows : ndarray of float32 (N, F), optional
            `cema.ondevice.drift.input_statistics` of the inputs, where somebody has asked for them already.
        """
        with self._lock:
            if self._domain.observe_inputs(inputs, rows):
                self._begin_anew()
            if self._own is None:
                return None
            if parameters is not self._parameters:
                if self._parameters is not None:
                    self._own.renew()
                self._parameters = parameters
                known = self._source if prior is None else prior
                if known is not None:
                    self._own.window.begin_at(known)
            if self._own.due(len(inputs)):
                self._own.window.trust(self._runs.trust())
                return self._own.begin(len(inputs))
            return None

    def _begin_anew(self) -> None:
        if self._own is not None:
            self._own.restart()
        if self._centre is not None:
            self._centre.clear()

    def read(self, reading: Reading, observed: npt.NDArray[Any], count: int) -> bool:
        """Take in what a reading of `count` inputs observed (2, K).

        Returns
        -------
        bool
            False, and nothing was taken, when it is not finite, or the domain changed meanwhile.
        """
        with self._lock:
            return self._own is not None and self._own.took(reading, observed, count)

    @property
    def settled(self) -> bool:
        """Whether enough was read for now, so that `statistics` are worth folding."""
        return self._own is not None and not self._own.reading

    def statistics(self) -> Float32:
        """Return the device's own statistics (2, K) as they are now: the same array until they change."""
        with self._lock:
            assert self._own is not None  # noqa: S101 - for the type; nobody asks else
            return self._own.window.current()

    def after(self, inputs: Float32, logits: Float32, run: Callable[[Float32], Float32]) -> Float32:
        """Return the answers (N, C) of what the model gave: centred, and averaged over views where it is unsure.

        Parameters
        ----------
        inputs : ndarray of float32 (N, C, H, W)
            Preprocessed.
        logits : ndarray of float32 (N, C)
            The model's.
        run : callable
            Returns the model's logits (M, C) of other inputs (M, C, H, W).
        """
        if self._centre is None and not self._views and self._own is None:
            return logits
        with self._lock:
            answers, shift = logits, np.zeros(1, np.float32)
            # First: a call of one label throughout is to be known before its mean is taken off.
            self._runs.observe(logits.argmax(axis=1))
            if self._centre is not None:
                self._centre.observe(logits)
                shift = self._centre.shift(self._runs.trust())
                answers = logits - shift
            if not self._views:
                return answers
            places = self._views.places(answers) if np.isfinite(answers).all() else np.empty(0, np.intp)
        return self._views.average(inputs, answers, places, lambda views: run(views) - shift)
