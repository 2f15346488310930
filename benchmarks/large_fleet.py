"""A real cloud with many devices and a month behind it, for what measures the page: made in seconds, not lived."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from cema.adapt.algorithms import make_learner
from cema.adapt.base import Learner
from cema.cloud.config import CloudConfig
from cema.cloud.store.activity import Poll
from cema.cloud.store.agreements import AgreementCount
from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.devices import new_token
from cema.cloud.store.fleet import NewDevice
from cema.cloud.store.history import LEVELS, DomainChange, HistoryNote
from cema.cloud.store.reports import Reported
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.worker.checkpoint import Progress, dump_checkpoint
from cema.formats.bundle import Bundle
from cema.formats.payload import encode_payload
from cema.formats.report import DeviceReport, Refused, Served
from cema.models.registry import resolve

__all__ = ["COHORT", "large_fleet", "numbers_kept"]

COHORT = "north"
VERSIONS = 60
SEED = 0
DAY = 86_400.0
_MEASURES = (
    *(f"agreement.{model}" for model in ("device", "running", "adapted", "source")),
    *(f"random.{model}" for model in ("device", "running", "adapted", "source")),
    *("entropy", "samples", "bytes.up", "bytes.down", "threshold.low", "threshold.high"),
    *("selection.selected", "selection.below", "selection.above"),
    *("loss.foundation_loss", "loss.distillation_loss", "loss.kl", "loss.ce", "loss.entropy"),
)


@contextmanager
def large_fleet(folder: Path, devices: int) -> Iterator[tuple[str, str]]:
    """Make the cloud in an empty folder, serve it, and yield its address and an admin's token.

    Parameters
    ----------
    folder : Path
        Gets a folder ``fleet``.
    devices : int
        How many there are; one in forty is in trouble.
    """
    fleet = folder / "fleet"
    cema = [sys.executable, "-m", "cema"]
    subprocess.run(
        [*cema, "init", str(fleet), "--yes", "--cohort", COHORT], check=True, stdout=subprocess.DEVNULL
    )
    config = fleet / "cloud.toml"
    with closing(CloudConfig.load(config).open_store()) as store:
        assert isinstance(store, SqliteStore)
        token = _devices(store, devices)
        _versions(store, Bundle.load(fleet / "bundle"), _checkpoint(CloudConfig.load(config)))
        _history(store)
    command = [*cema, "cloud", "serve", "--config", str(config), "--stop-on-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            url = str(json.loads(server.stdout.readline())["url"])
            with _going_on(config):
                yield url, token
        finally:
            server.stdin.close()
            server.wait()


@contextmanager
def _going_on(config: Path) -> Iterator[None]:
    """Let something happen every second, so that the page is told of it."""
    ended = threading.Event()

    def go_on() -> None:
        rng = np.random.default_rng(SEED)
        with closing(CloudConfig.load(config).open_store()) as store:
            assert isinstance(store, SqliteStore)
            while not ended.wait(1.0):
                now = time.time()
                store.note_history([HistoryNote(COHORT, now, _measures(now, rng))])
                store.count(COHORT, {"samples.stored": 1})
                name = f"camera-{int(rng.integers(1000)):05d}"
                store.note_polls([Poll(COHORT, name, now, int(rng.integers(VERSIONS)))])

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def numbers_kept() -> int:
    """Return how many numbers the history of the cohort has."""
    return sum(level.bins for level in LEVELS) * len(_MEASURES)


def _devices(store: SqliteStore, count: int) -> str:
    register = store.devices([COHORT])
    names = [f"camera-{number:05d}" for number in range(count)]
    register.add_all([NewDevice(name, COHORT, "device", new_token()) for name in names])
    now = time.time()
    store.note_polls(
        [
            Poll(COHORT, name, now - (7200.0 if k % 40 == 7 else k % 60), VERSIONS)
            for k, name in enumerate(names)
        ]
    )
    reports = [Reported(COHORT, name, now - k % 60, _report(k, now)) for k, name in enumerate(names)]
    store.note_reports(reports)
    return register.add("ann", cohort=COHORT, role="admin")


def _report(number: int, now: float) -> DeviceReport:
    refused = Refused(version=VERSIONS, reason="golden_mismatch") if number % 40 == 23 else None
    return DeviceReport(
        boot=f"{number:016x}",
        number=1,
        serving=Served(
            version=VERSIONS - 1 if refused else VERSIONS, predicted=5000, guarded=number % 50, entropy=0.4
        ),
        before=Served(version=VERSIONS - 2, predicted=90_000, entropy=0.5),
        refused=refused,
        counts={
            "predicted": 95_000,
            "selected": 9000,
            "uploaded": 8900,
            "dropped": 10,
            "guarded": 140,
            "swaps": 12,
        },
        problem="the disk is nearly full" if number % 40 == 31 else None,
        sent_at=now - number % 60,
    )


def _checkpoint(config: CloudConfig) -> bytes:
    """Return what the worker of the cohort commits before it has learned anything."""
    cohort = config.cohort[0]
    models = resolve(cohort.model), resolve(cohort.foundation)
    learner: Learner[int] = make_learner(
        *models,
        cohort.adapt,
        device="cpu",
        dtype="float32",
        recall=lambda items: [None] * len(items),
        seed=SEED,
    )
    return dump_checkpoint(Progress(), learner)


def _versions(store: SqliteStore, bundle: Bundle, checkpoint: bytes) -> None:
    """Publish versions that differ a little, as a worker would have done over a month."""
    rng = np.random.default_rng(SEED)
    source = bundle.norm_state()
    store.open_cohort(COHORT, base=bundle.manifest.base)
    epoch = store.claim(COHORT).epoch
    for version in range(1, VERSIONS + 1):
        state = {name: value * rng.normal(1, 0.05, value.shape) for name, value in source.items()}
        payload = encode_payload(state, bundle.golden_logits)
        at = time.time() - 31 * DAY * (1 - version / VERSIONS) - 60
        update = PublishedUpdate(
            version, hashlib.sha256(payload).hexdigest(), b'{"manifest": "e30=", "signatures": []}', payload, at,
            at + 60 * DAY, {"kind": "learned", "published_at": at, "domain": rng.normal(0, 1, 8).tolist()},
        )  # fmt: skip
        measured = [AgreementCount(version, "running", 400, 350), AgreementCount(version, "source", 400, 200)]
        store.commit_step(COHORT, 0, checkpoint, update, epoch=epoch, now=at, measured=measured)


def _history(store: SqliteStore) -> None:
    """Fill every level of the history: seconds, minutes and quarters of an hour."""
    rng = np.random.default_rng(SEED)
    now, until = time.time(), 0.0
    for level in LEVELS:
        moments = [now - until - level.seconds * (k + 1) for k in range(level.bins)]
        notes = [HistoryNote(COHORT, at, _measures(at, rng)) for at in moments]
        store.note_history(notes, [DomainChange(COHORT, moments[-1], 12.0)])
        until = min(level.age, level.seconds * level.bins)


def _measures(at: float, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    daily = 0.5 + 0.5 * math.sin(2 * math.pi * at / DAY)
    count = float(50 + int(100 * daily))
    return {name: (count, count * (0.4 + 0.4 * daily + 0.05 * float(rng.random()))) for name in _MEASURES}
