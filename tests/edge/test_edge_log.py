"""What `cema edge run` logs, and how."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import COHORT, Answer, Cloud, images, make_update

from cema.edge.config import EdgeConfig
from cema.errors import ConfigError
from cema.formats.bundle import Bundle

TOKEN = "a-token-that-nobody-may-see"


@pytest.fixture
def cloud() -> Any:
    cloud = Cloud(TOKEN)
    yield cloud
    cloud.close()


def run_until_swap(
    folder: Path, cloud: Cloud, bundle: Bundle, log: str, *, password: str = ""
) -> tuple[list[str], str]:
    """Run until an update serves; return the lines of the log, and the output."""
    source, config = folder / "many.npy", folder / "edge.toml"
    np.save(source, images(3000))
    address = cloud.url.replace("//", f"//{password}")
    config.write_text(
        f'bundle = "{bundle.path}"\nstate = "state"\n{log}\n[update]\npoll_seconds = 0.05\n'
        f"[upload]\nlinger_seconds = 0.0\n[selection]\ne_min = 0.0\ne_max = 1.0\n"
        f'[cloud]\nurl = "{address}"\ncohort = "{COHORT}"\ntoken = "{TOKEN}"\n'
    )
    command = ["-m", "cema", "edge", "run", "--config", str(config), "--source", str(source), "--rate", "50"]
    output = ""
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            output += line
            if json.loads(line)["event"] == "swap":
                process.send_signal(signal.SIGTERM)
        logged = process.stderr.read()
        assert process.wait(30) == 0
    return logged.splitlines(), output


@pytest.mark.parametrize("level", ["info", "debug"])
def test_lines_for_programs_tell_of_versions_and_failures_and_no_secret(
    tmp_path: Path, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, level: str
) -> None:
    cloud.publish(make_update(bundle, key, 3))
    cloud.script.extend([Answer(status=500), Answer(status=502), Answer(status=503)])
    log, output = run_until_swap(
        tmp_path, cloud, bundle, f'[log]\nformat = "json"\nlevel = "{level}"', password="someone:hidden@"
    )
    lines = [json.loads(line) for line in log]
    assert {(line["process"], line["event"]) for line in lines} == {("edge", "other")}
    assert {line["logger"].partition(".")[0] for line in lines} == {"cema"}, "no library's details"
    messages = " ".join(line["message"] for line in lines)
    assert "version 3 serves" in messages
    assert "the cloud answered 500" in messages
    for secret in (TOKEN, "hidden"):
        assert secret not in "".join(log)
        assert secret not in output


def test_by_default_people_get_warnings_alone(
    tmp_path: Path, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    cloud.publish(make_update(bundle, key, 3))
    cloud.script.append(Answer(status=500))
    log, _ = run_until_swap(tmp_path, cloud, bundle, "")
    assert log
    assert all(" edge WARNING " in line for line in log)
    assert any("the cloud answered 500" in line for line in log)


def test_a_level_that_there_is_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text('bundle = "b"\nstate = "s"\n[log]\nlevel = "loud"\n')
    with pytest.raises(ConfigError, match="loud"):
        EdgeConfig.load(path)
