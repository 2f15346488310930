"""All of a device that belongs to one bundle: it is exchanged as a whole when the device comes to another one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from cema.edge.background import Clock
from cema.edge.config import EdgeConfig
from cema.edge.guard import Guard
from cema.edge.retry import Backoff
from cema.edge.runtime import Active, Check, build_runtime
from cema.edge.state import StateFolder
from cema.formats.bundle import Bundle
from cema.ondevice.adaptation import DeviceAdaptation
from cema.ondevice.preprocess import Images
from cema.ondevice.selection.base import NotesChanges, TellsWhy
from cema.ondevice.selection.rules import make_selector

if TYPE_CHECKING:
    from cema.edge.own_model import OwnModel

__all__ = ["DeviceModel", "Serving"]


class DeviceModel:
    """A bundle's model with all that the device has found out about its inputs with it.

    Any number of threads may use it.

    Parameters
    ----------
    bundle : Bundle
    config : EdgeConfig
    count : callable
        Called with a counter's name and a number.
    clock : Clock
    on_change : callable
        Called after every step of its thread, if it has one.

    Raises
    ------
    FormatError, LogitsError
        When the model cannot be loaded, or does not give its golden logits on this device.

    Attributes
    ----------
    bundle : Bundle
    selector : Selector
        Decides what is sent.
    adaptation : DeviceAdaptation
    own : OwnModel or None
        Where the device has statistics of its own: a thread, started by who lets it serve.
    guard : Guard or None
    """

    def __init__(
        self,
        bundle: Bundle,
        config: EdgeConfig,
        *,
        count: Callable[[str, int], None],
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.selector = make_selector(config.selection, manifest.classes)
        self._config = config
        self._count = count
        self._selecting = threading.Lock()
        self._guarded = False  # whether the source model predicted the last call in an update's place
        self._changes = 0  # of the domain, by the device's own watch
        self.adaptation = DeviceAdaptation(
            config.adaptation,
            statistics=bundle.statistics(),
            mean_logits=None if manifest.mean_logits is None else np.array(manifest.mean_logits),
            classes=manifest.classes,
        )
        self.own: OwnModel | None = None
        if self.adaptation.own_statistics:
            # Loaded only where a bundle has statistics.
            from cema.edge.own_model import OwnModel  # noqa: PLC0415

            self.own = OwnModel(
                bundle,
                self.adaptation,
                count=count,
                threads=config.threads,
                clock=clock,
                backoff=Backoff(base=1.0, cap=300.0),
                on_change=on_change,
            )
        source = self._make_source()
        self.guard = Guard(source, config.guard.limit) if config.guard.limit else None
        self._first: Active | None = source

    @property
    def check(self) -> Check | None:
        """What tries an update's weights and biases, where statistics of the device's own are folded into them."""
        return self.own.check if self.own else None

    def begin(self) -> Active:
        """Return the model that the bundle came with, for the first time.

        It is held here for the guard alone: without one its memory is given back once an update serves.
        """
        first, self._first = self._first, None
        return first or self.fresh_source()

    def fresh_source(self) -> Active:
        """Return the model that the bundle came with, built where nobody holds it."""
        return self._make_source() if self.guard is None else self.guard.source

    def forward(self, installed: Active, images: Images) -> tuple[Active, npt.NDArray[np.float32]]:
        """Return what predicted, and the logits; the first images of a large batch choose for all of it."""
        size = self._config.batch
        preprocess = self.bundle.manifest.preprocessing
        try:
            count = len(images)
        except TypeError:
            count = 0  # no batch at all: preprocessing says what was expected
        parts = (
            preprocess(images[i : i + size] if count > size else images) for i in range(0, count or 1, size)
        )
        active: Active | None = None
        logits: list[npt.NDArray[np.float32]] = []
        for part in parts:
            chosen, rows = (installed, None) if self.guard is None else self.guard.consider(installed, part)
            active = active or chosen
            if len(part):
                logits.append(self._answer(active, part, rows))
        if not logits:
            logits = [np.empty((0, self.bundle.manifest.classes), np.float32)]
        return active or installed, logits[0] if len(logits) == 1 else np.concatenate(logits)

    def answer(self, active: Active, images: Images) -> npt.NDArray[np.float32]:
        """Return the logits (N, classes) of a version for at least one image, as it serves; nothing is read of them."""
        preprocess = self.bundle.manifest.preprocessing
        own, affine = self.own, active.affine
        run = active.model.run if own is None or affine is None else partial(own.again, affine)
        # One by one: the memory of a larger batch would stay with the session.
        return np.concatenate([run(preprocess(images[i : i + 1])) for i in range(len(images))])

    def select(
        self, logits: npt.NDArray[np.float32], entropy: npt.NDArray[np.float64], *, guarded: bool
    ) -> npt.NDArray[np.bool_]:
        """Return which images (N,) are worth sending, by their logits (N, C) and entropies (N,)."""
        with self._selecting:
            changes = self.adaptation.changes
            new = (guarded and not self._guarded) or changes > self._changes
            if new and isinstance(self.selector, NotesChanges):
                self.selector.changed()
            self._guarded, self._changes = guarded, changes
            selected = self.selector.select(logits, entropy)
            others = len(selected) - int(selected.sum())
            told = self.selector.left_out() if isinstance(self.selector, TellsWhy) else {"other": others}
        for reason, number in told.items():
            self._count(f"left_out.{reason}", int(number))
        return selected

    def save(self, state: StateFolder) -> None:
        """Remember where the selection stands; raises OSError when the disk refuses."""
        with self._selecting:
            snapshot = self.selector.state()
        state.save_selector(self.bundle.manifest.base, self._config.selection.rule, snapshot)

    def _answer(
        self, active: Active, inputs: npt.NDArray[np.float32], rows: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float32]:
        """Return the logits of preprocessed inputs, after what the device does about their domain by itself."""
        own, affine = self.own, active.affine
        reading = self.adaptation.before(inputs, affine, active.statistics, rows)
        if own is None or affine is None:
            run = active.model.run
            return self.adaptation.after(inputs, run(inputs), run)
        logits = own.run(affine, inputs, reading)
        return self.adaptation.after(inputs, logits, partial(own.again, affine))

    def _make_source(self) -> Active:
        if self.own is None:
            return Active(build_runtime(self.bundle, threads=self._config.threads))
        return Active(None, affine=self.bundle.affine_state())


class Serving(NamedTuple):
    """What predicts: exchanged by one assignment, so that a call has all of one bundle and one version."""

    model: DeviceModel
    active: Active
