"""Fixtures every part of the suite shares."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

# The suites that the package ships are tests too.
pytest.register_assert_rewrite("cema.testing")

SUPPORT = Path(__file__).parent / "support"
# Helpers that several folders of tests share; child processes find the models in it by `package.module:function`.
sys.path.insert(0, str(SUPPORT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SUPPORT), os.environ.get("PYTHONPATH"))))

# Before numpy or torch start their threads, and for every process that the suite starts: with one thread sums come
# out in the same order each time, which tests of exact resumption rely on, and processes do not fight for cores.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# A shell starts what it puts in the background with interrupts ignored, and so would every process of the suite.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with the real images and weights, or skip the test when it is absent."""
    root = Path(os.environ.get("CEMA_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real images and weights not found at {root}; set CEMA_SHARED_DATA to their folder")
    return root
