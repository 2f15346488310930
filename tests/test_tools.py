"""A test whose program is absent is skipped, and fails where all programs are required."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest
from tools import PACKAGES, tool


def test_a_program_that_is_there_is_found() -> None:
    path = tool("sh")
    assert Path(path).name == "sh"
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("name", [*PACKAGES, "no-such-program"])
def test_an_absent_program_skips_the_test(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.delenv("CEMA_TOOLS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"no program {name} on the PATH") as skipped:
        tool(name)
    assert name not in PACKAGES or str(skipped.value).endswith(f"install {PACKAGES[name]}")


def test_an_absent_program_fails_the_test_where_tools_are_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CEMA_TOOLS", "required")
    with pytest.raises(pytest.fail.Exception, match=r"no program caddy on the PATH.*may not be skipped"):
        tool("caddy")
