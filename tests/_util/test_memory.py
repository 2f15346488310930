"""How a worker's process handles memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from cema._util.memory import HUGE_PAGES, worker_environment

PROGRAM = """
import resource, sys
import numpy as np
from cema._util.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory() is (sys.argv[2] == "works")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(2**23)  # 64 MiB: more than malloc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(*arguments: str, **environment: str) -> int:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    # Small pages everywhere, so that a fault is 4 KiB.
    inherited = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_was_freed_is_used_again_without_the_kernel() -> None:
    assert faults("not", "") > 5 * 2**26 // 4096 // 2
    assert faults("keep", "works") < 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_the_user_has_set_stays() -> None:
    assert faults("keep", "leaves it", MALLOC_MMAP_THRESHOLD_="65536") > 1000


def test_an_environment_keeps_what_it_has() -> None:
    assert worker_environment({"A": "b", "OMP_WAIT_POLICY": "ACTIVE"}) == {
        "A": "b",
        "OMP_WAIT_POLICY": "ACTIVE",
        "GLIBC_TUNABLES": HUGE_PAGES,
    }
