"""What a device answers to labelled images with one version installed: the agent itself, without a cloud."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from cema.edge.agent import EdgeAgent
from cema.edge.budget_config import BudgetConfig
from cema.edge.config import EdgeConfig
from cema.edge.state import StateFolder
from cema.errors import CemaError
from cema.formats.bundle import Bundle
from cema.formats.keyring import Keyring
from cema.formats.update import verify_update

__all__ = ["Answered", "InstalledVersion", "answers"]


@dataclass(frozen=True, eq=False)
class InstalledVersion:
    """A version as a device gets it.

    Attributes
    ----------
    version : int
        Its number.
    envelope, payload : bytes
        What the cloud offers.
    keyring : Keyring
        The keys that devices of its cohort trust.
    """

    version: int
    envelope: bytes
    payload: bytes
    keyring: Keyring


@dataclass(frozen=True, eq=False)
class Answered:
    """What a device answered.

    Attributes
    ----------
    logits : ndarray of float32 (N, C)
    guarded : int
        For how many images its guard let the source model answer.
    """

    logits: npt.NDArray[np.float32]
    guarded: int


def answers(
    config: EdgeConfig,
    images: Sequence[npt.NDArray[np.uint8]],
    *,
    installed: InstalledVersion | None = None,
    batch: int = 64,
    progress: Callable[[int], object] = lambda _: None,
) -> Answered:
    """Return what a new device with these settings answers, image after image.

    It has statistics of its own, views and a guard as its settings say, begins with no image seen, and sends nothing.

    Parameters
    ----------
    config : EdgeConfig
        Its settings; those of its state folder and its cloud have no effect.
    images : sequence of ndarray of uint8 (H, W, C)
        In the order in which it sees them.
    installed : InstalledVersion, optional
        The version that it runs; the source model when left out.
    batch : int
        Images that it is given at a time.
    progress : callable
        Called with the images done after each batch.

    Raises
    ------
    CemaError
        The version cannot be installed; or as `EdgeAgent`.
    """
    with tempfile.TemporaryDirectory(prefix="cema-check-") as folder:
        alone = msgspec.structs.replace(config, state=folder, cloud=None, budget=BudgetConfig())
        if installed is not None:
            _install(Bundle.load(Path(config.bundle)), Path(folder), installed)
        with EdgeAgent(alone) as agent:
            _check_version(agent, installed)
            logits = []
            for begin in range(0, len(images), batch):
                logits.append(
                    agent.predict([images[i] for i in range(begin, min(begin + batch, len(images)))]).logits
                )
                progress(min(begin + batch, len(images)))
            guarded = agent.status().guarded
    empty = np.empty((0, agent.bundle.manifest.classes), np.float32)
    return Answered(np.concatenate([empty, *logits]), guarded)


def _install(bundle: Bundle, folder: Path, installed: InstalledVersion) -> None:
    """Put a version into a state folder as an updater leaves it; it may have expired since."""
    keyring = installed.keyring
    manifest = verify_update(
        installed.envelope,
        public_keys=keyring.known,
        revoked=keyring.revoked_ids,
        cohort=keyring.cohort,
        base=bundle.manifest.base,
        running_version=0,
        now=-np.inf,
    )
    state = StateFolder(folder)
    state.save_keyring(keyring)
    state.save_update(installed.envelope, manifest, installed.payload, float(manifest.created))


def _check_version(agent: EdgeAgent, installed: InstalledVersion | None) -> None:
    status = agent.status()
    expected = 0 if installed is None else installed.version
    if status.version != expected:
        raise CemaError(
            f"expected a device that runs version {expected}, got {status.version}: {status.last_error}; see that the "
            "bundle is the one that the cohort's devices have"
        )
