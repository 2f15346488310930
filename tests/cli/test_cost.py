"""`cema cost`: arithmetic, and sizes that are those of a real device."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import COHORT, Cloud, make_bundle, make_bundle_with_statistics, make_update, some_statistics
from typer.testing import CliRunner

from cema.cli.app import app
from cema.edge.agent import EdgeAgent
from cema.errors import CemaError, ConfigError
from cema.formats.bundle import Bundle
from cema.ondevice.drift import statistics_size

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", KEY)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    cloud = Cloud()
    yield cloud
    cloud.close()


def cost(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["cost", *map(str, arguments)], env={"COLUMNS": "120"})
    if isinstance(done.exception, CemaError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_numbers_are_multiplied_for_people() -> None:
    printed = cost(
        *("--rate", 2, "--share", 0.05, "--sample-bytes", 13000, "--devices", 500, "--price", 0.09),
        *("--update-bytes", 80000, "--random-share", 0),
    )
    assert "8,640 of 172,800 images a day, 13,000 bytes each (as given)" in printed
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:-1] for line in printed.splitlines() if "│ " in line
    }
    assert [cell.strip() for cell in rows["a device, a day"]] == ["112.3 MB", "1.9 MB", "0.0103"]
    assert [cell.strip() for cell in rows["500 devices, a month"]] == ["1.7 TB", "28.8 GB", "154.22"]


def test_numbers_are_multiplied_for_machines() -> None:
    found = json.loads(
        cost(
            *("--per-day", 1000, "--share", 0.1, "--sample-bytes", 500, "--devices", 3, "--json"),
            *("--random-share", 0),
        )
    )
    assert found["device"]["day"] == {"up": 50_000.0, "down": 0.0, "price": None}
    assert found["fleet"]["month"] == {"up": 4_500_000.0, "down": 0.0, "price": None}
    assert (found["samples_per_day"], found["devices"], found["price_per_gb"]) == (100.0, 3, None)


def test_what_is_drawn_at_random_counts_and_what_is_selected_too_counts_once(
    tmp_path: Path, bundle: Bundle
) -> None:
    images = ("--per-day", 1000, "--share", 0.1, "--json")

    def samples(*more: object) -> tuple[float, float]:
        found = json.loads(cost(*images, *more))
        assert found["device"]["day"]["up"] == pytest.approx(found["samples_per_day"] * found["sample_bytes"])
        return found["random_share"], found["samples_per_day"]

    assert samples("--sample-bytes", 500) == (0.01, pytest.approx(109))
    config = tmp_path / "edge.toml"
    config.write_text('bundle = "bundle"\nstate = "state"\n[upload]\nrandom_share = 0.5\n')
    assert samples("--config", config) == (0.5, pytest.approx(550))
    assert samples("--config", config, "--random-share", 1) == (1.0, pytest.approx(1000))


@pytest.mark.parametrize("upload", ["", 'codec = "png"', 'codec = "jpeg"\nquality = 30\nmax_side = 8'])
def test_a_sample_is_as_large_as_the_device_sends_it(
    tmp_path: Path, bundle: Bundle, cloud: Cloud, upload: str
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(
        f'bundle = "bundle"\nstate = "state"\n[selection]\ne_min = 0.0\ne_max = 1.0\n[upload]\n{upload}\n'
        f'[cloud]\nurl = "{cloud.url}"\ncohort = "{COHORT}"\ntoken = "{cloud.token}"\n'
    )
    measured = json.loads(cost("--rate", 1, "--config", config, "--json"))
    with EdgeAgent.from_config(config) as agent:
        assert agent.predict(bundle.golden_images).selected.all()
        assert agent.flush(10)
    (body,) = (int(headers["Content-Length"]) for command, _, headers in cloud.requests if command == "POST")
    assert measured["sample_bytes"] == body / len(bundle.golden_images)
    assert measured["measured_on"] == len(bundle.golden_images)
    if not upload:
        assert json.loads(cost("--rate", 1, "--bundle", bundle.path, "--json")) == measured


def test_an_update_is_as_large_as_one_with_its_domain(bundle: Bundle) -> None:
    measured = json.loads(cost("--rate", 1, "--bundle", bundle.path, "--json"))["update_bytes"]
    update = make_update(bundle, KEY, 1000)
    inputs = bundle.manifest.preprocessing
    size = statistics_size(inputs.channels, inputs.height, inputs.width)
    without = len(update.payload) + len(update.envelope)
    assert (
        4 * (size + size**2) < measured - without < 4 * (size + size**2) + 300
    )  # and its names in the header


def test_statistics_are_part_of_an_update(bundle: Bundle, tmp_path: Path) -> None:
    other = make_bundle_with_statistics(tmp_path / "other", KEY)
    sizes = [
        json.loads(cost("--rate", 1, "--bundle", b.path, "--json"))["update_bytes"] for b in (bundle, other)
    ]
    assert sizes[1] - sizes[0] >= 2 * np.size(some_statistics())  # in float16 at least
    assert (
        json.loads(cost("--rate", 1, "--bundle", other.path, "--update-bytes", 7, "--json"))["update_bytes"]
        == 7
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "exactly one of --rate and --per-day"),
        (("--rate", 1, "--per-day", 5), "exactly one of --rate and --per-day"),
        (("--rate", 1), "exactly one of --sample-bytes, --bundle and --config"),
        (("--rate", 1, "--sample-bytes", 5, "--bundle", "b"), "exactly one of --sample-bytes"),
        (("--rate", "inf", "--sample-bytes", 5), "expected finite numbers, got inf"),
        (("--rate", 1, "--sample-bytes", 5, "--price", "inf"), "expected finite numbers, got inf"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cost(*arguments)


def test_no_torch_is_loaded(bundle: Bundle) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from cema.cli.app import app; "
        f"done = CliRunner().invoke(app, ['cost', '--rate', '1', '--bundle', {str(bundle.path)!r}]); "
        "print(done.exit_code, [m for m in ('torch', 'onnxruntime', 'httpx2', 'fastapi') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 []\n"
