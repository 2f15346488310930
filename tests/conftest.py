"""Fixtures every part of the suite shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with the real images and weights, or skip the test when it is absent."""
    root = Path(os.environ.get("CEMA_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real images and weights not found at {root}; set CEMA_SHARED_DATA to their folder")
    return root
