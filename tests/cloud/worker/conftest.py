from __future__ import annotations

from worker_cloud import cloud

__all__ = ["cloud"]
