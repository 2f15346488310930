"""The agent: predicts, selects, and leaves everything slow to its background threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cema.edge.background import BackgroundThread, Clock
from cema.edge.config import CloudLink, EdgeConfig
from cema.edge.encoder import Capture, Encoder
from cema.edge.guard import Guard
from cema.edge.random_share import RandomShare
from cema.edge.retry import Backoff
from cema.edge.runtime import Active, build_runtime
from cema.edge.spool import Spool
from cema.edge.spool_order import SendOrder
from cema.edge.state import Resumed, StateFolder
from cema.edge.status import EdgeStatus, Prediction
from cema.edge.system import return_free_memory, run_behind
from cema.errors import CemaError
from cema.formats.bundle import Bundle
from cema.formats.draw import Draw
from cema.formats.sample import Sample
from cema.ondevice.adaptation import DeviceAdaptation
from cema.ondevice.preprocess import Images
from cema.ondevice.selection.base import NotesChanges
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.selection.rules import make_selector

if TYPE_CHECKING:
    from cema.edge.budget import Budget
    from cema.edge.client import CloudClient
    from cema.edge.near_duplicates import NearDuplicates
    from cema.edge.own_model import OwnModel
    from cema.edge.uploader import Uploader

__all__ = ["EdgeAgent"]

logger = logging.getLogger(__name__)

_SAVE_SECONDS = 30.0
_CLOSE_SECONDS = 30.0


class EdgeAgent:
    """A deployed model that adapts: ``predict`` runs it, and background threads do the rest.

    Use it as a context manager, or call :meth:`close`.

    Parameters
    ----------
    config : EdgeConfig
    clock : Clock, optional
        Time, for tests.
    backoff : Backoff, optional
        How long the threads that talk to the cloud wait after failures; each gets a copy.
    on_delivered : callable, optional
        Called, on a background thread, with the samples of which the cloud answered that it has them.

    Raises
    ------
    ConfigError, FormatError, LogitsError, SpoolError
        When the configuration or the bundle is wrong, the model does not give its golden logits on this
        device, or another process uses the state folder.

    Examples
    --------
    ::

        with EdgeAgent.from_config("edge.toml") as agent:
            for image in camera:
                label = agent.predict([image]).labels[0]
    """

    def __init__(
        self,
        config: EdgeConfig,
        *,
        clock: Clock | None = None,
        backoff: Backoff | None = None,
        on_delivered: Callable[[Sequence[Sample]], None] | None = None,
    ) -> None:
        self._config = config
        self._on_delivered = on_delivered
        self._clock = clock or Clock()
        self._backoff = backoff or Backoff()
        self._changed = threading.Condition()
        self._selecting = threading.Lock()
        self._random_share = RandomShare(config.upload.random_share)
        self._closed = False
        self._swapped = False
        self._guarded = False  # whether the source model predicted the last call in an update's place
        self._changes = 0  # of the domain, by the device's own watch
        self._uploader: Uploader | None = None
        self._link: CloudClient | None = None
        self._budget: Budget | None = None
        self.bundle = Bundle.load(Path(config.bundle))
        manifest = self.bundle.manifest
        self._selector = make_selector(config.selection, manifest.classes)
        self._state = StateFolder(Path(config.state))
        with ExitStack() as undo:
            self._spool = Spool(
                self._state.spool_path,
                max_bytes=config.upload.spool_bytes,
                on_change=self._spool_changed,
                order=SendOrder(config.budget.first, config.budget.seed),
            )
            undo.callback(self._spool.close)
            self._state.load_selector(manifest.base, config.selection.rule, self._selector)
            cohort = config.cloud.cohort if config.cloud else None
            self._adaptation = self._make_adaptation()
            self._own = self._make_own_model() if self._adaptation.own_statistics else None
            resumed = self._state.load_update(
                self.bundle,
                cohort=cohort,
                threads=config.threads,
                check=self._own.check if self._own else None,
            )
            # The spool is ours, so nobody else writes in the folder.
            self._state.clean(resumed.active.digest if resumed.active else None)
            self._resume_error = resumed.error
            source = self._source()
            self._active = resumed.active or source
            self._guard = Guard(source, config.guard.limit) if config.guard.limit else None
            self._recorder = self._make_recorder()
            self._threads: list[BackgroundThread] = [self._recorder, *([self._own] if self._own else [])]
            if config.cloud is not None:
                self._connect(config.cloud, resumed)
            undo.pop_all()
        for thread in self._threads:
            thread.start()

    @classmethod
    def from_config(cls, path: Path | str) -> EdgeAgent:
        """Read a TOML file and start an agent; see :class:`~cema.edge.config.EdgeConfig`."""
        return cls(EdgeConfig.load(Path(path)))

    def predict(self, images: Images) -> Prediction:
        """Predict a batch, decide which of its samples to send, and hand those to the background.

        Waits for the model only: not for the network, the disk, or an update that is being prepared. One call
        uses one version throughout. Any number of threads may call it.

        Parameters
        ----------
        images : ndarray of uint8 (N, H, W, C), or sequence of ndarray of uint8 (H, W, C)
            Pixels of any size, C is 1 or 3; N may be 0. They are copied where they are kept.

        Returns
        -------
        Prediction

        Raises
        ------
        ImageError
            When the images are not as above.
        LogitsError
            When the model gives NaN or infinity; nothing of the batch is sent or counted.
        """
        if self._closed:
            raise CemaError("the agent is closed; make a new one")
        installed = self._active
        captured_at = max(0.0, self._clock.now())  # a clock that was never set may be before 1970
        active, logits = self._forward(installed, images)
        entropy = softmax_entropy(logits)
        labels = logits.argmax(axis=1).astype(np.int64)
        guarded = active is not installed
        with self._selecting:
            changes = self._adaptation.changes
            new = (guarded and not self._guarded) or changes > self._changes
            if new and isinstance(self._selector, NotesChanges):
                self._selector.changed()
            self._guarded, self._changes = guarded, changes
            selected = self._selector.select(logits, entropy)
            drawn = self._random_share.draw(len(labels))
        self._spool.count("predicted", len(labels))
        self._spool.count("selected", int(selected.sum()))
        self._spool.count("drawn", int(np.count_nonzero(drawn)))
        if guarded:
            self._spool.count("guarded", len(labels))
        share = self._random_share.share
        self._recorder.offer(
            [
                Capture(
                    *(images[i], float(entropy[i]), int(labels[i]), active.version, captured_at),
                    Draw(share, bool(selected[i])) if drawn[i] else None,
                )
                for i in np.flatnonzero(selected | drawn).tolist()
            ]
        )
        return Prediction(logits, labels, entropy, selected, active.version, guarded, captured_at, drawn)

    def status(self) -> EdgeStatus:
        """Say how things are, without waiting for anything."""
        counters = self._spool.counters()
        active = self._active
        selection = self._selector.describe()
        errors = [thread.last_error for thread in self._threads]
        problem = self._spool.problem
        if problem is not None and not any(problem in (error or "") for error in errors):
            errors.append(problem)
        if active.version == 0:
            errors.append(self._resume_error)
        return EdgeStatus(
            version=active.version,
            drifted=self._guard is not None and self._guard.drifted,
            digest=active.digest,
            model=self.bundle.manifest.model,
            cohort=self._config.cloud.cohort if self._config.cloud else None,
            predicted=counters.get("predicted", 0),
            selected=counters.get("selected", 0),
            drawn=counters.get("drawn", 0),
            drawn_uploaded=counters.get("drawn_uploaded", 0),
            drawn_lost=counters.get("drawn_lost", 0),
            guarded=counters.get("guarded", 0),
            queued=self._recorder.waiting,
            spooled=self._spool.samples,
            uploaded=counters.get("uploaded", 0),
            bytes_up=counters.get("uploaded_bytes", 0),
            bytes_down=counters.get("bytes_down", 0),
            requests=counters.get("requests", 0),
            dropped=self._spool.grouped("dropped."),
            rejected_updates=self._spool.grouped("rejected_update."),
            swaps=counters.get("swaps", 0),
            own_statistics=self._adaptation.own_statistics,
            read=counters.get("read", 0),
            domain_changes=self._adaptation.changes,
            selection=selection,
            e_max=selection.get("e_max"),
            spool_bytes=self._spool.bytes,
            budget=None if self._budget is None else self._budget.status(),
            last_error="; ".join(error for error in errors if error) or None,
        )

    def flush(self, timeout: float) -> bool:
        """Wait until every selected or drawn sample is delivered (without a cloud: is in the spool).

        Parameters
        ----------
        timeout : float
            Seconds.

        Returns
        -------
        bool
            Whether it came to that.
        """
        deadline = self._clock.monotonic() + timeout
        if not self._wait(lambda: not self._recorder.waiting, timeout):
            return False
        if self._uploader is None:
            return True
        self._uploader.hurry()
        left = max(0.0, deadline - self._clock.monotonic())
        return self._wait(lambda: not self._recorder.waiting and not self._spool.samples, left)

    def wait_for_version(self, version: int, timeout: float) -> bool:
        """Wait up to `timeout` seconds until `version`, or a newer one, serves; return whether it does."""
        return self._wait(lambda: self._active.version >= version, timeout)

    def close(self) -> None:
        """Stop the background threads; what was selected is in the spool then. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        for thread in self._threads:
            thread.stop()
        if self._link is not None:
            self._link.close()
        deadline = self._clock.monotonic() + _CLOSE_SECONDS
        ended = [
            thread.join(max(0.0, deadline - self._clock.monotonic())) for thread in reversed(self._threads)
        ]
        if all(ended):
            self._spool.close()
            if self._link is not None:
                self._link.release()
        else:
            logger.error(
                "a background thread did not end within %.0f s; it is left to itself", _CLOSE_SECONDS
            )

    def __enter__(self) -> EdgeAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forward(self, installed: Active, images: Images) -> tuple[Active, npt.NDArray[np.float32]]:
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
            chosen, rows = (installed, None) if self._guard is None else self._guard.consider(installed, part)
            active = active or chosen
            if len(part):
                logits.append(self._answer(active, part, rows))
        if not logits:
            logits = [np.empty((0, self.bundle.manifest.classes), np.float32)]
        return active or installed, logits[0] if len(logits) == 1 else np.concatenate(logits)

    def _answer(
        self, active: Active, inputs: npt.NDArray[np.float32], rows: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float32]:
        """Return the logits of preprocessed inputs, after what the device does about their domain by itself."""
        own, affine = self._own, active.affine
        reading = self._adaptation.before(inputs, affine, active.statistics, rows)
        if own is None or affine is None:
            run = active.model.run
            return self._adaptation.after(inputs, run(inputs), run)
        logits = own.run(affine, inputs, reading)
        return self._adaptation.after(inputs, logits, partial(own.again, affine))

    def _source(self) -> Active:
        """Return the model that the device was provisioned with."""
        if self._own is None:
            return Active(build_runtime(self.bundle, threads=self._config.threads))
        return Active(None, affine=self.bundle.affine_state())

    def _make_adaptation(self) -> DeviceAdaptation:
        manifest = self.bundle.manifest
        return DeviceAdaptation(
            self._config.adaptation,
            statistics=self.bundle.statistics(),
            mean_logits=None if manifest.mean_logits is None else np.array(manifest.mean_logits),
            classes=manifest.classes,
        )

    def _make_own_model(self) -> OwnModel:
        # Loaded only where a bundle has statistics.
        from cema.edge.own_model import OwnModel  # noqa: PLC0415

        return OwnModel(
            self.bundle,
            self._adaptation,
            count=self._spool.count,
            threads=self._config.threads,
            clock=self._clock,
            backoff=Backoff(base=1.0, cap=300.0),
            on_change=self._notify,
        )

    def _make_recorder(self) -> Encoder:
        upload = self._config.upload
        return Encoder(
            self._spool,
            upload.image_codec(self.bundle.manifest.upload_side),
            max_samples=upload.queue_samples,
            max_bytes=upload.queue_bytes,
            save=self._save,
            save_seconds=_SAVE_SECONDS,
            clock=self._clock,
            backoff=Backoff(base=0.1, cap=5.0),
            on_change=self._notify,
        )

    def _connect(self, cloud: CloudLink, resumed: Resumed) -> None:
        # What talks HTTP takes as long to load as all else: a device without a cloud does without.
        from cema.edge.client import CloudClient  # noqa: PLC0415
        from cema.edge.updater import Updater  # noqa: PLC0415
        from cema.edge.uploader import Uploader  # noqa: PLC0415

        upload = self._config.upload
        if self._config.budget.limited:
            from cema.edge.budget import Budget  # noqa: PLC0415

            self._budget = Budget(self._config.budget, self._state.budget_path, self._clock)
        cloud.read_token()  # a missing token is told at the start rather than at the first request
        self._link = CloudClient(
            cloud.url, cloud.cohort, cloud.read_token, upload.timeout_seconds, self._clock
        )
        self._uploader = Uploader(
            self._spool,
            self._link,
            batch_samples=upload.batch_samples,
            batch_bytes=upload.batch_bytes,
            linger_seconds=upload.linger_seconds,
            clock=self._clock,
            backoff=self._own_backoff(),
            on_change=self._notify,
            on_delivered=self._on_delivered,
            budget=self._budget,
            near_duplicates=self._make_near_duplicates(),
        )
        updater = Updater(
            self._link,
            self.bundle,
            cloud.cohort,
            state=self._state,
            resumed=resumed,
            activate=self._activate,
            source=lambda: self._source() if self._guard is None else self._guard.source,
            counters=self._spool,
            poll_seconds=self._config.update.poll_seconds,
            threads=self._config.threads,
            clock=self._clock,
            backoff=self._own_backoff(),
            on_change=self._updater_stepped,
            check=self._own.check if self._own else None,
        )
        self._threads += [self._uploader, updater]

    def _make_near_duplicates(self) -> NearDuplicates | None:
        budget = self._config.budget
        if not budget.duplicates:
            return None
        from cema.edge.near_duplicates import NearDuplicates  # noqa: PLC0415

        return NearDuplicates(self._spool, distance=budget.duplicates, most=budget.remember)

    def _own_backoff(self) -> Backoff:
        return replace(self._backoff, failures=0)

    def _activate(self, active: Active) -> None:
        self._active = active  # one assignment: a call sees the old model or the new one, never a mixture
        self._swapped = True
        self._notify()
        guard = self._guard
        source = None if guard is None or active is guard.source else guard.source.runtime
        if source is not None:  # it waits from now on, with no more than its weights
            run_behind(source.release)

    def _updater_stepped(self) -> None:
        if self._swapped:  # nothing refers to the model that was replaced, once the step has ended
            self._swapped = False
            return_free_memory()
        self._notify()

    def _save(self) -> None:
        if self._budget is not None:
            self._budget.look()
        with self._selecting:
            snapshot = self._selector.state()
        try:
            self._state.save_selector(self.bundle.manifest.base, self._config.selection.rule, snapshot)
        finally:
            self._spool.save()

    def _spool_changed(self) -> None:
        if self._uploader is not None:
            self._uploader.notify()
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, done: Callable[[], bool], timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(done, timeout)
