"""A device's updater over real parts, one step at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edge_support import COHORT, Cloud, FakeTime, images, norm_state, reference

from cema.edge.client import CloudClient
from cema.edge.reports import Reporter
from cema.edge.retry import Backoff
from cema.edge.runtime import Active, build_runtime
from cema.edge.serving import Facts, ServingLog
from cema.edge.spool import Spool
from cema.edge.state import StateFolder
from cema.edge.updater import Updater
from cema.formats.bundle import Bundle
from cema.formats.payload import round_norm_state


class _Link(CloudClient):
    """The real link; something may happen while a payload comes down."""

    meanwhile: Callable[[str], None]

    def artifact(self, digest: str, max_bytes: int) -> bytes:
        payload = super().artifact(digest, max_bytes)
        self.meanwhile("payload")
        return payload


class _State(StateFolder):
    """The real folder; something may happen before it is written."""

    meanwhile: Callable[[str], None]

    def load_payload(self, digest: str) -> bytes | None:
        self.meanwhile("payload")
        return super().load_payload(digest)

    def save_update(self, *args: Any, **named: Any) -> None:
        self.meanwhile("save")
        super().save_update(*args, **named)


@dataclass
class Device:
    """An updater without its thread, over real parts."""

    bundle: Bundle
    cloud: Cloud
    folder: Path
    time: FakeTime
    cohort: str = COHORT
    poll_seconds: float = 10.0
    report_seconds: float = 60.0
    meanwhile: Callable[[str], None] = lambda _: None  # called with what the device is about to do

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        clock = self.time.clock
        self.link = _Link(self.cloud.url, self.cohort, lambda: self.cloud.token, 5.0, clock)
        self.link.meanwhile = self._happens
        self.spool = Spool(self.folder / "spool.db", max_bytes=4 << 20)
        state = _State(self.folder)
        state.meanwhile = self._happens
        self.resumed = state.load_update(self.bundle, cohort=self.cohort)
        self.active = self.resumed.active or Active(build_runtime(self.bundle))
        self.serving = ServingLog(self.active.version)
        self.reports = Reporter(self.link, self._facts, seconds=self.report_seconds, clock=clock)
        self.updater = Updater(
            self.link,
            self.bundle,
            self.cohort,
            state=state,
            resumed=self.resumed,
            activate=self._activate,
            source=lambda: Active(build_runtime(self.bundle)),
            counters=self.spool,
            reports=self.reports,
            poll_seconds=self.poll_seconds,
            threads=1,
            clock=clock,
            backoff=Backoff(random=random.Random(0)),
            on_change=lambda: None,
        )

    def _activate(self, active: Active) -> None:
        self.serving.installed(active.version)
        self.active = active

    def _facts(self) -> Facts:
        return Facts(*self.serving.read(), {}, None)

    def _happens(self, at: str) -> None:
        self.meanwhile(at)  # a test may exchange it at any time

    def stop(self) -> None:
        self.link.close()
        self.link.release()
        self.spool.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def poll(self, n: int = 1) -> float:
        for _ in range(n):
            pause = self.updater.guarded_step()
        assert pause.seconds is not None
        return pause.seconds

    def serves(self, version: int) -> bool:
        """Whether the model of that version answers, judged by its logits."""
        state = round_norm_state(norm_state(version)) if version else norm_state()
        batch = images(6, 5)
        got = self.active.runtime.run(self.bundle.manifest.preprocessing(batch))
        return self.active.version == version and np.allclose(
            got, reference(state, batch), rtol=1e-3, atol=1e-3
        )

    @property
    def rejected(self) -> dict[str, int]:
        return self.spool.grouped("rejected_update.")
