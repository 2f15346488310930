from __future__ import annotations

from cloud_client import cloud

__all__ = ["cloud"]
