"""A cloud that has published some versions, and a device that predicts throughout."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from cloud_process import PATIENCE, Server, cema
from cloud_support import samples_of
from cloud_tiny_models import quadrants

from cema.cloud.config import CloudConfig
from cema.edge.agent import EdgeAgent
from cema.edge.config import CloudLink, EdgeConfig, UpdateConfig
from cema.formats.bundle import Bundle

__all__ = ["Fleet"]


class Fleet:
    """A cloud that has published some versions, and a device that predicts throughout."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "cloud.toml"
        # Every step makes a version: how good it is makes no difference here.
        self.config.write_text(
            self.config.read_text().replace("every_steps = 2", "every_steps = 1\ngate = 1.0")
        )
        with closing(CloudConfig.load(self.config).open_store()) as store:
            self.token = store.devices(["north"]).add("cam", cohort="north")
        self.server = Server(self.config, self.token)
        self.sent = 0
        self.bundle = Bundle.load(folder / "bundle")
        self.agent = EdgeAgent(
            EdgeConfig(
                bundle=str(folder / "bundle"),
                state=str(folder / "state"),
                cloud=CloudLink(url=self.server.url, cohort="north", token=self.token),
                update=UpdateConfig(poll_seconds=0.2),
            )
        )
        self._end = threading.Event()
        self.predicted = 0
        self.failures: list[Exception] = []
        self._thread = threading.Thread(target=self._predict)
        self._thread.start()

    def _predict(self) -> None:
        images, _ = quadrants(4, 7, drift=False)
        while not self._end.is_set():
            try:
                assert np.isfinite(self.agent.predict(images).logits).all()
                self.predicted += 1
            except Exception as error:
                self.failures.append(error)
                return

    def send(self, count: int) -> None:
        images, _ = quadrants(count, 100 + self.sent, drift=True)
        self.sent += count
        self.server.send(samples_of(images))

    def versions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = cema(self.config, "versions")["versions"]
        return found

    def close(self) -> None:
        self._end.set()
        self._thread.join(PATIENCE)
        self.agent.close()
        self.server.close()
