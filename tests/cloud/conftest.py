"""Fixtures of the cloud's tests."""

from __future__ import annotations

from cloud_factory import factory
from newer_bundle import newer

__all__ = ["factory", "newer"]
