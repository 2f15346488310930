"""What the tests of the benchmark share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

Cema = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def bench_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of corrupted images that the tests share, so that they leave the user's alone."""
    return tmp_path_factory.mktemp("corrupted")


@pytest.fixture(scope="session")
def cema_bench(bench_cache: Path) -> Cema:
    """Run ``cema bench`` on a few digits, as a person types it."""

    def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(bench_cache, *arguments),
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=300,
            check=False,
        )

    return run


def command(cache: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "cema", "bench", "--cache", str(cache), *arguments]


@pytest.fixture
def bench_command(bench_cache: Path) -> Callable[..., list[str]]:
    """Return the command line that `cema_bench` runs."""
    return lambda *arguments: command(bench_cache, *arguments)


def make_cell(**changes: Any) -> dict[str, Any]:
    """Return a cell with some fields changed."""
    cell = {
        "method": "source",
        "model": "m",
        "foundation": "f",
        "dataset": "d",
        "protocol": "reset",
        "seed": 0,
        "corruption": "fog",
        "severity": 3,
        "samples": 100,
        "correct": 50,
        "accuracy": 50.0,
        "uploads": 0,
        "bytes_up": 0,
        "forwards": 100,
        "backwards": 0,
        "seconds": 1.0,
        "curve": [[50, 40.0], [100, 60.0]],
        "run": "k",
    }
    return cell | changes


@pytest.fixture
def cell() -> Callable[..., dict[str, Any]]:
    """Return `make_cell`."""
    return make_cell


@pytest.fixture
def grid(cell: Callable[..., dict[str, Any]]) -> Callable[[Sequence[float]], list[dict[str, Any]]]:
    """Make cells of one method on fog, snow, frost, ... with these accuracies."""
    names = ("fog", "snow", "frost", "contrast")
    return lambda accuracies: [
        cell(corruption=n, accuracy=a) for n, a in zip(names, accuracies, strict=False)
    ]
