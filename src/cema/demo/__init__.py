"""The demonstration: one cloud process and several edge processes on a stream that drifts."""

from __future__ import annotations

from cema.demo.run import run_demo
from cema.demo.settings import DemoSettings

__all__ = ["DemoSettings", "run_demo"]
