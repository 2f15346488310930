"""What stands behind the HTTP application: the store, the devices, and whatever adapts."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cema._util.events import report
from cema._util.memory import worker_environment
from cema.cloud import events
from cema.cloud.config import CloudConfig
from cema.cloud.data_folder import lock_data_folder
from cema.cloud.migration import bundle_line, offer_files
from cema.cloud.signing.passphrase import pass_on, read_passphrase
from cema.cloud.signing.signers import descriptors, signing_public_keys
from cema.cloud.signing.trust import check_signers
from cema.cloud.store.base import OtherBase, Store
from cema.cloud.store.devices import DeviceRegister
from cema.cloud.worker.process import EXIT_CONFIG
from cema.errors import ConfigError, StoreError
from cema.formats.bundle import Bundle

__all__ = ["Engine", "LocalEngine"]

log = logging.getLogger(__name__)

FIRST_DELAY = 0.5
LONGEST_DELAY = 60.0
# A worker that lived so long did not fail at its start: the next restart is quick again.
STEADY_SECONDS = 60.0
STOP_SECONDS = 15.0


class Engine(Protocol):
    """What the application needs; another engine may run its workers elsewhere.

    Attributes
    ----------
    config
        The cloud's configuration.
    store
        Samples, updates, counters.
    devices
        Who may talk to the cloud.
    """

    @property
    def config(self) -> CloudConfig:
        """The cloud's configuration."""
        ...

    @property
    def store(self) -> Store:
        """Samples, updates, counters."""
        ...

    @property
    def devices(self) -> DeviceRegister:
        """Who may talk to the cloud."""
        ...

    def start(self) -> None:
        """Begin to adapt. Called once, before the first request."""
        ...

    def stop(self) -> None:
        """Stop adapting and close the store. Called once, after the last request."""
        ...

    def healthy(self) -> bool:
        """Tell whether samples are being adapted to; quick, and never raises."""
        ...


class LocalEngine:
    """One worker process on this machine, restarted when it dies.

    Parameters
    ----------
    config
        The configuration, as `CloudConfig.load` read it.
    path
        Its file: the worker reads it too.
    on_misconfigured
        Called, from a thread, when the worker's first start finds a fault in the configuration that no
        restart will mend. Without it the engine goes on trying.

    Raises
    ------
    FormatError, ConfigError
        A bundle, a signing key or a passphrase cannot be read.
    StoreError
        The store cannot be opened, belongs to other bundles, or another cloud is using it.

    Notes
    -----
    The worker has a process of its own so that neither its load nor its death touches uploads. Its standard
    input is a pipe that this process holds: the worker ends when the pipe does, also after ``kill -9``.
    Should an old worker still finish a step beside a new one, the store refuses its commit.

    Only the worker signs. Passphrases that come by a file descriptor can be read once: they stay in this process's
    memory, and every worker gets them by a pipe of its own. It reads all others itself.
    """

    def __init__(
        self, config: CloudConfig, path: Path, *, on_misconfigured: Callable[[], None] | None = None
    ) -> None:
        self._config = config
        self._path = path
        self._on_misconfigured = on_misconfigured
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: threading.Thread | None = None
        bundles = _check_files(config)
        keys = signing_public_keys(config.signers)
        self._passphrases = {source: read_passphrase(source) for source in descriptors(config.signers)}
        self._lock = lock_data_folder(Path(config.data))
        try:
            self._store = config.open_store()
        except BaseException:
            self._lock.close()
            raise
        try:
            for name, bundle in bundles.items():
                _open_cohort(self._store, path, name, bundle)
                check_signers(self._store, name, bundle, keys)
            for name, reason in offer_files(config, self._store).items():
                report(log, events.BUNDLE_NOT_OFFERED, cohort=name, reason=reason)
        except BaseException:
            self._close()
            raise
        self._devices = self._store.devices(list(bundles))

    @property
    def config(self) -> CloudConfig:
        """The cloud's configuration."""
        return self._config

    @property
    def store(self) -> Store:
        """Samples, updates, counters."""
        return self._store

    @property
    def devices(self) -> DeviceRegister:
        """Who may talk to the cloud."""
        return self._devices

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, or None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the worker and the thread that watches over it."""
        for cohort in self._config.cohort:
            # The report of an earlier process would still say "ready".
            self._store.put_report(cohort.name, {"ready": False}, now=time.time())
        self._supervisor = threading.Thread(target=self._supervise, name="cema-supervisor", daemon=True)
        self._supervisor.start()

    def stop(self) -> None:
        """Let the worker finish its step, then end it; close the store."""
        self._stopping.set()
        if self._supervisor is not None:
            self._supervisor.join()
        self._close()

    def healthy(self) -> bool:
        """Tell whether the worker process is alive."""
        return self.worker_pid is not None

    def _close(self) -> None:
        self._store.close()
        self._lock.close()

    def _supervise(self) -> None:
        delay = FIRST_DELAY
        first = True
        while not self._stopping.is_set():
            begin = time.monotonic()
            try:
                status = self._run_worker()
            except OSError as error:
                report(log, events.WORKER_NOT_STARTED, error=str(error))
                status = 1
            if self._stopping.is_set():
                return
            if status == EXIT_CONFIG and first and self._on_misconfigured is not None:
                self._on_misconfigured()
                return
            first = False
            if time.monotonic() - begin >= STEADY_SECONDS:
                delay = FIRST_DELAY
            report(log, events.WORKER_RESTARTED, status=status, seconds=delay)
            self._note_restart()
            self._stopping.wait(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    def _run_worker(self) -> int:
        """Run one worker process to its end and return its status."""
        pipes = {source: pass_on(passphrase) for source, passphrase in self._passphrases.items()}
        moved = [f"--moved={source}=fd:{pipe}" for source, pipe in pipes.items()]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "cema.cloud.worker.process", "--config", str(self._path), *moved],
                stdin=subprocess.PIPE,
                # Its output is a log; standard output belongs to the server's own messages.
                stdout=2,
                # A signal to the server's terminal must not end the worker in the middle of a step.
                start_new_session=True,
                env=worker_environment(os.environ),
                pass_fds=tuple(pipes.values()),
            )
        finally:
            for pipe in pipes.values():
                os.close(pipe)
        self._process = process
        while process.poll() is None:
            if self._stopping.wait(0.1):
                return _end(process)
        assert process.stdin is not None  # noqa: S101 - it was asked for above
        process.stdin.close()
        return process.returncode

    def _note_restart(self) -> None:
        try:
            for cohort in self._config.cohort:
                self._store.put_report(cohort.name, {"ready": False}, now=time.time())
                self._store.count(cohort.name, {"worker.restarts": 1})
        except StoreError as error:
            # Locked for too long, or the disk fails: the worker is restarted all the same.
            report(log, events.RESTART_NOT_NOTED, error=str(error))


def _open_cohort(store: Store, path: Path, name: str, bundle: Bundle) -> None:
    """Make a cohort known, or say in which line of the file another bundle is named than its devices are to have."""
    try:
        store.open_cohort(name, base=bundle.manifest.base)
    except OtherBase as error:
        line = bundle_line(path, name)
        raise OtherBase(f"{path}{f', line {line}' if line else ''}: {error}") from error


def _check_files(config: CloudConfig) -> dict[str, Bundle]:
    """Check bundles and weights, as far as it goes without torch; return the bundles by cohort.

    The worker checks the models themselves when it starts. What can be told at once is told before the port opens.
    """
    bundles = {}
    for cohort in config.cohort:
        bundle = Bundle.load(Path(cohort.bundle))
        bundles[cohort.name] = bundle
        for setting in ("model_weights", "foundation_weights"):
            path = getattr(cohort, setting)
            if path and not Path(path).is_file():
                raise ConfigError(
                    f"cohort {cohort.name!r}: {setting}: there is no file {path}; correct the path"
                )
    return bundles


def _end(process: subprocess.Popen[bytes]) -> int:
    if process.stdin is not None:
        process.stdin.close()
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
