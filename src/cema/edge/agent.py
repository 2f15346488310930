"""The agent: predicts, selects, and leaves everything slow to its background threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cema.edge.background import BackgroundThread, Clock
from cema.edge.config import CloudLink, EdgeConfig
from cema.edge.device_model import DeviceModel, Serving
from cema.edge.encoder import Capture, Encoder
from cema.edge.fetched_bundles import FetchedBundles
from cema.edge.random_share import RandomShare
from cema.edge.retry import Backoff
from cema.edge.runtime import Active
from cema.edge.serving import Facts, ServingLog, selection_told, thresholds_told
from cema.edge.spool import Spool
from cema.edge.spool_order import SendOrder
from cema.edge.state import Resumed, StateFolder
from cema.edge.status import EdgeStatus, Prediction
from cema.edge.system import return_free_memory, run_behind
from cema.errors import CemaError
from cema.formats.bundle import Bundle
from cema.formats.draw import Draw
from cema.formats.image import CodecConfig
from cema.formats.report import REPORTED_COUNTS
from cema.formats.sample import Sample
from cema.ondevice.preprocess import Images
from cema.ondevice.selection.entropy import softmax_entropy

if TYPE_CHECKING:
    from cema.edge.budget import Budget
    from cema.edge.client import CloudClient
    from cema.edge.near_duplicates import NearDuplicates
    from cema.edge.own_model import OwnModel
    from cema.edge.probation import Probation
    from cema.edge.updater import Updater
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
        self._exchanging = threading.Lock()
        self._drawing = threading.Lock()
        self._random_share = RandomShare(config.upload.random_share)
        self._closed = False
        self._swapped = False
        self._uploader: Uploader | None = None
        self._updater: Updater
        self._link: CloudClient | None = None
        self._budget: Budget | None = None
        self._probation: Probation | None = None
        provisioned = Bundle.load(Path(config.bundle))
        self._state = StateFolder(Path(config.state))
        with ExitStack() as undo:
            self._spool = Spool(
                self._state.spool_path,
                max_bytes=config.upload.spool_bytes,
                on_change=self._spool_changed,
                order=SendOrder(config.budget.first, config.budget.seed),
            )
            undo.callback(self._spool.close)
            # The spool is ours, so nobody else writes in the folder.
            cohort = config.cloud.cohort if config.cloud else None
            self._bundles = FetchedBundles(self._state, provisioned, cohort)
            model, bundle_error = self._first_model()
            manifest = model.bundle.manifest
            self._state.load_selector(manifest.base, config.selection.rule, model.selector)
            if self._bundles.serial:
                self._state.put_update_aside(manifest.base)
            resumed = self._state.load_update(
                model.bundle, cohort=cohort, threads=config.threads, check=model.check
            )
            self._state.clean(resumed.active.digest if resumed.active else None)
            self._resume_error = resumed.error
            self._bundle_error = bundle_error
            first = model.begin()
            self._serving = Serving(model, resumed.active or first)
            self._log = ServingLog(self._active.version)
            self._recorder = self._make_recorder()
            self._threads: list[BackgroundThread] = [self._recorder, *([model.own] if model.own else [])]
            if config.cloud is not None:
                self._connect(config.cloud, resumed)
            undo.pop_all()
        for thread in self._threads:
            thread.start()

    @property
    def bundle(self) -> Bundle:
        """The bundle that serves: the one that the device was provisioned with, or a newer one that it has fetched."""
        return self._serving.model.bundle

    @property
    def _active(self) -> Active:
        return self._serving.active

    @property
    def _own(self) -> OwnModel | None:
        return self._serving.model.own

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
        model, installed = self._serving
        captured_at = max(0.0, self._clock.now())  # a clock that was never set may be before 1970
        active, logits = model.forward(installed, images)
        entropy = softmax_entropy(logits)
        labels = logits.argmax(axis=1).astype(np.int64)
        guarded = active is not installed
        selected = model.select(logits, entropy, guarded=guarded)
        self._log.note(installed.version, entropy, guarded=guarded)
        if self._probation is not None:
            self._probation.note(installed, labels, entropy, images, guarded=guarded)
        with self._drawing:
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
        manifest = model.bundle.manifest
        return Prediction(
            logits,
            labels,
            entropy,
            selected,
            active.version,
            guarded,
            captured_at,
            drawn,
            base=manifest.base,
            class_names=manifest.labels,
        )

    def status(self) -> EdgeStatus:
        """Say how things are, without waiting for anything."""
        counters = self._spool.counters()
        model, active = self._serving
        manifest = model.bundle.manifest
        selection = model.selector.describe()
        errors = [thread.last_error for thread in self._threads]
        problem = self._spool.problem
        if problem is not None and not any(problem in (error or "") for error in errors):
            errors.append(problem)
        if active.version == 0:
            errors.append(self._resume_error)
        errors.append(self._bundle_error)
        return EdgeStatus(
            version=active.version,
            drifted=model.guard is not None and model.guard.drifted,
            digest=active.digest,
            base=manifest.base,
            model=manifest.model,
            cohort=self._config.cloud.cohort if self._config.cloud else None,
            predicted=counters.get("predicted", 0),
            selected=counters.get("selected", 0),
            left_out=self._spool.grouped("left_out."),
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
            rejected_bundles=self._spool.grouped("rejected_bundle."),
            swaps=counters.get("swaps", 0),
            on_trial=self._probation is not None and self._probation.on_trial,
            own_statistics=model.adaptation.own_statistics,
            read=counters.get("read", 0),
            domain_changes=model.adaptation.changes,
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
        with self._exchanging:  # from here on no other bundle comes
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

    def _first_model(self) -> tuple[DeviceModel, str | None]:
        """Return the model to begin with, and why it is not that of the bundle that was fetched, if it should be."""
        bundle = self._bundles.chosen()
        if bundle is not self._bundles.provisioned:
            try:
                return self._make_model(bundle), None
            except CemaError as error:
                self._bundles.give_up(error)
        return self._make_model(self._bundles.provisioned), self._bundles.error

    def _make_model(self, bundle: Bundle) -> DeviceModel:
        return DeviceModel(
            bundle, self._config, count=self._spool.count, clock=self._clock, on_change=self._notify
        )

    def _make_recorder(self) -> Encoder:
        upload = self._config.upload
        return Encoder(
            self._spool,
            self._codec(),
            max_samples=upload.queue_samples,
            max_bytes=upload.queue_bytes,
            save=self._save,
            save_seconds=_SAVE_SECONDS,
            clock=self._clock,
            backoff=Backoff(base=0.1, cap=5.0),
            on_change=self._notify,
        )

    def _codec(self) -> CodecConfig:
        return self._config.upload.image_codec(self.bundle.manifest.upload_side)

    def _connect(self, cloud: CloudLink, resumed: Resumed) -> None:
        # What talks HTTP takes as long to load as all else: a device without a cloud does without.
        from cema.edge.client import CloudClient  # noqa: PLC0415
        from cema.edge.migrator import Migrator  # noqa: PLC0415
        from cema.edge.reports import Reporter  # noqa: PLC0415
        from cema.edge.updater import Updater  # noqa: PLC0415
        from cema.edge.uploader import Uploader  # noqa: PLC0415

        upload = self._config.upload
        if self._config.budget.limited:
            from cema.edge.budget import Budget  # noqa: PLC0415

            self._budget = Budget(self._config.budget, self._state.budget_path, self._clock)
        cloud.read_token()  # a missing token is told at the start rather than at the first request
        self._link = CloudClient(
            cloud.url,
            cloud.cohort,
            cloud.read_token,
            upload.timeout_seconds,
            self._clock,
            ca_file=cloud.ca_file,
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
        migrator = Migrator(
            self._link,
            self._bundles,
            cloud.cohort,
            config=self._config.update,
            behind=self._config.threads == 1,
            build=self._make_model,
            base=lambda: self.bundle.manifest.base,
            counters=self._spool,
            clock=self._clock,
            backoff=self._own_backoff(),
            on_change=self._notify,
        )
        self._probation = self._make_probation(cloud.cohort) if self._config.probation.images else None
        updater = Updater(
            self._link,
            self.bundle,
            cloud.cohort,
            state=self._state,
            resumed=resumed,
            activate=self._activate,
            source=self._fresh_source,
            counters=self._spool,
            reports=Reporter(
                self._link, self._facts, seconds=self._config.update.report_seconds, clock=self._clock
            ),
            poll_seconds=self._config.update.poll_seconds,
            threads=self._config.threads,
            clock=self._clock,
            backoff=self._own_backoff(),
            on_change=self._updater_stepped,
            check=self._serving.model.check,
            probation=self._probation,
            migrator=migrator,
            exchange=self._exchange,
        )
        self._updater = updater
        self._threads += [self._uploader, updater, migrator]
        if self._probation is not None:
            self._threads.append(self._probation)
            if resumed.on_trial:
                self._probation.begin(self._active, resumed=True)

    def _make_probation(self, cohort: str) -> Probation:
        from cema.edge.probation import Probation  # noqa: PLC0415

        def before() -> Active:
            model = self._serving.model
            keyring = self._state.keyring(model.bundle, cohort)
            found = self._state.load_before(
                model.bundle, keyring, threads=self._config.threads, check=model.check
            )
            return found or model.fresh_source()

        def answer(active: Active, images: Images) -> npt.NDArray[np.float32]:
            return self._serving.model.answer(active, images)

        def verdict(version: int, reason: str | None, active: Active | None) -> None:
            self._updater.tried(version, reason, active)

        return Probation(
            self._config.probation,
            self.bundle.manifest.classes,
            answer=answer,
            before=before,
            verdict=verdict,
            clock=self._clock,
            backoff=self._own_backoff(),
            on_change=self._notify,
        )

    def _make_near_duplicates(self) -> NearDuplicates | None:
        budget = self._config.budget
        if not budget.duplicates:
            return None
        from cema.edge.near_duplicates import NearDuplicates  # noqa: PLC0415

        return NearDuplicates(self._spool, distance=budget.duplicates, most=budget.remember)

    def _facts(self) -> Facts:
        """Return what reports say."""
        status = self.status()
        serving, before = self._log.read()
        counts = {name: getattr(status, name) for name in REPORTED_COUNTS}
        counts["dropped"] = sum(status.dropped.values())
        return Facts(
            serving,
            before,
            counts,
            status.last_error,
            selection=selection_told(status),
            thresholds=thresholds_told(status),
        )

    def _own_backoff(self) -> Backoff:
        return replace(self._backoff, failures=0)

    def _activate(self, active: Active) -> None:
        self._log.installed(active.version)
        # One assignment: a call sees the old model or the new one, never a mixture.
        self._serving = Serving(self._serving.model, active)
        self._swapped = True
        self._notify()
        guard = self._serving.model.guard
        source = None if guard is None or active is guard.source else guard.source.runtime
        if source is not None:  # it waits from now on, with no more than its weights
            run_behind(source.release)

    def _exchange(self, model: DeviceModel) -> None:
        """Let the model of another bundle serve, as it came; called by the thread that installs updates."""
        with self._exchanging:
            if self._closed:
                return
            before = self._serving.model.own
            if model.own is not None:
                model.own.start()
            self._log = ServingLog(0)
            self._serving = Serving(model, model.begin())  # one assignment, as for an update
            self._recorder.codec = self._codec()
            kept = [thread for thread in self._threads if thread is not before]
            self._threads = [*kept, *([model.own] if model.own else [])]
        if before is not None:
            before.stop()
        self._resume_error = self._bundle_error = None
        self._swapped = True
        self._notify()

    def _fresh_source(self) -> Active:
        return self._serving.model.fresh_source()  # of whichever bundle serves by then

    def _updater_stepped(self) -> None:
        if self._swapped:  # nothing refers to the model that was replaced, once the step has ended
            self._swapped = False
            return_free_memory()
        self._notify()

    def _save(self) -> None:
        if self._budget is not None:
            self._budget.look()
        try:
            self._serving.model.save(self._state)
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
