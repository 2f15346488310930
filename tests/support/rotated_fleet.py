"""A cloud whose keys are exchanged, and devices of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
from cloud_process import PATIENCE, eventually
from cloud_support import samples_of
from cloud_tiny_models import quadrants

from cema.cloud.config import CloudConfig
from cema.edge.agent import EdgeAgent
from cema.edge.config import CloudLink, EdgeConfig, GuardConfig, UpdateConfig
from cema.formats.keys import key_id, load_public_key
from cema.formats.sample import CONTENT_TYPE, encode_samples

__all__ = ["Fleet"]


class Fleet:
    """A folder with a cloud and a device of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "cloud.toml"
        self.text = self.config.read_text()
        self.seed = 0
        with closing(CloudConfig.load(self.config).open_store()) as store:
            self.token = store.devices(["north"]).add("camera", cohort="north")

    def sign_with(self, *names: str) -> None:
        tables = "".join(f'\n[[signing_keys]]\nkey = "{name}.key"' for name in names)
        self.config.write_text(self.text.replace('signing_key = "signing.key"', "") + tables)

    def cema(self, *arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "cema", *arguments], cwd=self.folder, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def name(self, key: str) -> str:
        return key_id(load_public_key(self.folder / f"{key}.pub"))

    @contextmanager
    def serving(self) -> Iterator[str]:
        with (self.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cema", "cloud", "serve", "--config", str(self.config)],
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, (self.folder / "server.log").read_text()
                yield json.loads(line)["url"]
            finally:
                process.terminate()
                process.communicate(timeout=PATIENCE)

    @contextmanager
    def device(self, url: str, state: str = "device") -> Iterator[EdgeAgent]:
        """Run a device; each name of a folder for its state is another one."""
        config = EdgeConfig(
            bundle=str(self.folder / "bundle"), state=str(self.folder / state),
            update=UpdateConfig(poll_seconds=0.05), guard=GuardConfig(limit=0.0),
            cloud=CloudLink(url=url, cohort="north", token=self.token),
        )  # fmt: skip
        with EdgeAgent(config) as agent:
            yield agent

    def learn(self, url: str) -> int:
        """Send samples until there is a newer version; return it."""
        headers = {"Authorization": f"Bearer {self.token}"}

        def version() -> int:
            return int(httpx2.get(f"{url}/v1/cohorts/north/status", headers=headers).json()["version"])

        before = version()
        for _ in range(8):
            self.seed += 1
            body = encode_samples(samples_of(quadrants(32, self.seed, drift=True)[0]))
            sent = httpx2.post(
                f"{url}/v1/cohorts/north/samples",
                content=body,
                headers=headers | {"Content-Type": CONTENT_TYPE},
            )
            assert sent.status_code == 200
        eventually(lambda: version() > before)
        return version()

    def signers(self, url: str) -> list[str]:
        headers = {"Authorization": f"Bearer {self.token}"}
        envelope = httpx2.get(f"{url}/v1/cohorts/north/updates/latest", headers=headers).json()
        return [item["key"] for item in envelope["signatures"]]
