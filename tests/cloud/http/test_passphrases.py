"""A server process whose signing key is encrypted, and its worker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
from cloud_support import samples_of
from cloud_tiny_models import quadrants
from cryptography.hazmat.primitives import serialization

from cema.cloud.config import CloudConfig
from cema.cloud.signing.passphrase import pass_on
from cema.formats.keys import load_private_key
from cema.formats.sample import CONTENT_TYPE, encode_samples

PATIENCE = 120.0
SECRET = b"correct horse battery staple"


@pytest.fixture
def folder(factory: Path, tmp_path: Path) -> Path:
    """A cloud's folder whose signing key is encrypted with `SECRET`."""
    folder = tmp_path / "f"
    shutil.copytree(factory, folder)
    key = load_private_key(folder / "signing.key")
    encryption = serialization.BestAvailableEncryption(SECRET)
    (folder / "signing.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return folder


def configure(folder: Path, source: str) -> Path:
    config = folder / "cloud.toml"
    before = 'signing_key = "signing.key"'
    config.write_text(config.read_text().replace(before, f'{before}\nsigning_passphrase = "{source}"'))
    return config


@contextmanager
def serving(config: Path, *descriptors: int, **variables: str) -> Iterator[tuple[psutil.Process, str]]:
    """Start a server; yields its process and address, and ends it."""
    with (config.parent / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cema", "cloud", "serve", "--config", str(config)],
            stdout=subprocess.PIPE, stderr=log, text=True, pass_fds=descriptors, env=os.environ | variables,
        )  # fmt: skip
        for descriptor in descriptors:
            os.close(descriptor)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (config.parent / "server.log").read_text()
            yield psutil.Process(process.pid), json.loads(line)["url"]
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)


def eventually(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker(server: psutil.Process) -> psutil.Process | None:
    children = server.children()
    return next((child for child in children if "cema.cloud.worker.process" in child.cmdline()), None)


def send(url: str, token: str, seed: int) -> None:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": CONTENT_TYPE}
    body = encode_samples(samples_of(quadrants(32, seed, drift=True)[0]))
    assert httpx2.post(f"{url}/v1/cohorts/north/samples", content=body, headers=headers).status_code == 200


def version(url: str, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return int(httpx2.get(f"{url}/v1/cohorts/north/status", headers=headers).json()["version"])


def token_of(config: Path) -> str:
    with closing(CloudConfig.load(config).open_store()) as store:
        return store.devices(["north"]).add("camera", cohort="north")


def test_a_passphrase_from_a_descriptor_outlives_the_worker(folder: Path) -> None:
    descriptor = pass_on(SECRET)
    config = configure(folder, f"fd:{descriptor}")
    token = token_of(config)
    with serving(config, descriptor) as (server, url):
        send(url, token, 1)
        eventually(lambda: version(url, token) >= 1)
        first = worker(server)
        assert first is not None
        # Nowhere where others could read it.
        for process in (server, first):
            assert SECRET.decode() not in " ".join([*process.cmdline(), *process.environ().values()])
        before = version(url, token)
        first.kill()
        send(url, token, 2)
        eventually(lambda: version(url, token) > before)
        again = worker(server)
        assert again is not None
        assert again.pid != first.pid
    assert SECRET not in (folder / "server.log").read_bytes()


@pytest.mark.parametrize("kind", ["file", "env"])
def test_a_passphrase_from_a_file_or_a_variable(folder: Path, kind: str) -> None:
    (folder / "passphrase").write_bytes(SECRET + b"\n")
    config = configure(folder, {"file": "file:passphrase", "env": "env:CEMA_TEST_SECRET"}[kind])
    token = token_of(config)
    variables = {"CEMA_TEST_SECRET": SECRET.decode()} if kind == "env" else {}
    with serving(config, **variables) as (_, url):
        send(url, token, 1)
        eventually(lambda: version(url, token) >= 1)
    assert SECRET not in (folder / "server.log").read_bytes()


@pytest.mark.parametrize(
    ("passphrase", "told"),
    [(b"a wrong one", "check the passphrase"), (None, "the passphrase cannot be read")],
)
def test_a_passphrase_that_opens_nothing_ends_the_server(
    folder: Path, passphrase: bytes | None, told: str
) -> None:
    if passphrase is not None:
        (folder / "passphrase").write_bytes(passphrase)
    config = configure(folder, "file:passphrase")
    ran = subprocess.run(
        [sys.executable, "-m", "cema", "cloud", "serve", "--config", str(config)],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert told in ran.stderr
    assert "a wrong one" not in ran.stderr
