"""State and data folders that an earlier version left; see ``tests/recorded/README.md``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

RECORDED = Path(__file__).parents[1] / "recorded"


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a copy of what was recorded, with its models on the path."""
    copy = tmp_path / "recorded"
    shutil.copytree(RECORDED, copy)
    monkeypatch.syspath_prepend(str(copy))
    yield copy
    sys.modules.pop("recorded_models", None)
