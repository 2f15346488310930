"""What the worker process does: open every cohort, then work on them in turn."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import torch

from cema._util.events import report
from cema.cloud import events
from cema.cloud.config import CloudConfig, CohortConfig, WorkerConfig
from cema.cloud.signing.signers import open_signers
from cema.cloud.signing.trust import check_signers
from cema.cloud.store.base import OtherBase, Store
from cema.cloud.worker.bases import reread_cohort
from cema.cloud.worker.cohort import CohortWorker
from cema.cloud.worker.publisher import Publisher
from cema.cloud.worker.turn import Turn
from cema.errors import CemaError, ConfigError, StoreUnavailable
from cema.formats.bundle import Bundle
from cema.formats.keys import Signer
from cema.models.checks import varied_inputs
from cema.models.device import why_unusable
from cema.models.left_out import left_out_layers, left_out_text
from cema.models.norm_state import restrict_to
from cema.models.registry import resolve
from cema.models.spec import Model

__all__ = ["Opener", "load_models", "open_cohort", "run", "usable_device"]

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0


def open_cohort(
    store: Store, config: CloudConfig, cohort: CohortConfig, signers: Sequence[Signer] | None = None
) -> CohortWorker:
    """Load a cohort's bundle and models, check them against each other, and take the cohort over.

    Parameters
    ----------
    store
        Where samples come from.
    config, cohort
        The cloud's configuration, and one of its cohorts.
    signers
        What signs; opened as configured when left out.

    Raises
    ------
    CemaError
        Something that the configuration names is missing or does not fit.
    """
    worker = msgspec.structs.replace(config.worker, device=usable_device(config.worker))
    bundle = Bundle.load(Path(cohort.bundle))
    # Before the models are loaded: a cohort of another base is tried again and again.
    store.open_cohort(cohort.name, base=bundle.manifest.base)
    edge, foundation = load_models(cohort, bundle)
    for side, model in (("edge", edge), ("foundation", foundation)):
        if left_out := left_out_layers(model.module, varied_inputs(model.preprocessing, 1)):
            layers = left_out_text(left_out)
            report(log, events.LAYERS_LEFT_OUT, cohort=cohort.name, side=side, layers=layers)
    if signers is None:
        signers = open_signers(config.signers)
    check_signers(store, cohort.name, bundle, [signer.public_key() for signer in signers])
    publisher = Publisher(
        edge,
        bundle,
        cohort.name,
        signers,
        cohort.publish,
        device=worker.device,
    )
    return CohortWorker(store, cohort, edge=edge, foundation=foundation, publisher=publisher, config=worker)


def load_models(cohort: CohortConfig, bundle: Bundle) -> tuple[Model, Model]:
    """Load the edge model of a bundle, with the layers that updates change, and the foundation model.

    Raises
    ------
    ModelError
        A model cannot be loaded, or the edge model has not the bundle's layers.
    """
    edge = resolve(cohort.model, weights=_path(cohort.model_weights))
    foundation = resolve(cohort.foundation, weights=_path(cohort.foundation_weights))
    restrict_to(edge.module, bundle.norm_state())
    return edge, foundation


class Opener:
    """Opens one cohort; where its base model is another than it was configured with, as the file says by then.

    Parameters
    ----------
    store, config, cohort, signers
        As for `open_cohort`.
    reread
        Reads the configuration again.
    """

    def __init__(
        self,
        store: Store,
        config: CloudConfig,
        cohort: CohortConfig,
        signers: Sequence[Signer],
        reread: Callable[[], CloudConfig] | None,
    ) -> None:
        self._store, self._signers, self._reread = store, signers, reread
        self._config, self._cohort = config, cohort
        self._refused: tuple[OtherBase, str] | None = None  # why, and the base that the store had

    def __call__(self) -> CohortWorker:
        """Return the cohort's worker; raises as `open_cohort`."""
        if self._refused is not None:
            error, base = self._refused
            found = reread_cohort(self._reread, self._cohort)
            if found is None and self._store.status(self._cohort.name)["base"] == base:
                raise error  # nothing has changed, and to read a bundle takes long
            self._config, self._cohort = found or (self._config, self._cohort)
        try:
            worker = open_cohort(self._store, self._config, self._cohort, self._signers)
        except OtherBase as error:
            self._refused = error, str(self._store.status(self._cohort.name)["base"])
            raise
        self._refused = None
        return worker


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None


def usable_device(config: WorkerConfig) -> str:
    """Return the torch device that a worker uses; ``auto`` is a GPU where there is one.

    Raises
    ------
    ConfigError
        torch cannot use it.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if reason := why_unusable(device):
        raise ConfigError(f"worker.device: torch cannot use {device!r} ({reason}); choose 'auto' or 'cpu'")
    return device


def run(
    config: CloudConfig,
    stop: threading.Event,
    working: threading.Event,
    *,
    moved: Mapping[str, str] | None = None,
    reread: Callable[[], CloudConfig] | None = None,
) -> None:
    """Work on every cohort in turn until told to stop.

    Parameters
    ----------
    config
        The cloud's configuration.
    stop
        Set to end the loop after the present step.
    working
        Set here once steps begin: from then on a stop is worth waiting for.
    moved
        See `cema.cloud.signing.signers.open_signers`.
    reread
        Reads the configuration again, for cohorts whose base model is another one than it was configured with.

    Raises
    ------
    ConfigError
        A cohort cannot be opened: the configuration, or a file that it names, has to change first.
    CemaError
        Another worker has taken a cohort over (`Fenced`), or no cohort can go on in this process (`WorkerFailed`).
    """
    if config.worker.threads:
        torch.set_num_threads(config.worker.threads)
    signers = open_signers(config.signers, moved=moved)
    store = config.open_store()
    turns: list[Turn] = []
    try:
        turns += [_turn(store, config, cohort, signers, reread) for cohort in config.cohort]
        working.set()
        seen = time.monotonic()
        while not stop.is_set():
            # Every cohort gets a turn each round: one with a backlog does not starve the others.
            busy = [turn.once() for turn in turns if not stop.is_set()]
            failures = [turn.failure for turn in turns if turn.failure is not None]
            if len(failures) == len(turns):
                raise failures[0]  # the fault is in none of them: a new process may do better
            if any(busy):
                continue
            if time.monotonic() - seen >= HEARTBEAT_SECONDS:
                seen = time.monotonic()
                for turn in turns:
                    turn.report()
            stop.wait(config.worker.poll_seconds)
    finally:
        for turn in turns:
            turn.finish()
        store.close()


def _turn(
    store: Store,
    config: CloudConfig,
    cohort: CohortConfig,
    signers: Sequence[Signer],
    reread: Callable[[], CloudConfig] | None,
) -> Turn:
    try:
        return Turn(store, cohort.name, Opener(store, config, cohort, signers, reread))
    except StoreUnavailable:
        raise  # no fault of the configuration: another start may well succeed
    except (CemaError, ValueError, OSError) as error:
        raise ConfigError(f"cohort {cohort.name!r} cannot be opened: {error}") from error
