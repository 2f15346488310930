"""The folders of an earlier version, for examples that need a device and a cloud."""

from __future__ import annotations

from recorded_folders import recorded

__all__ = ["recorded"]
