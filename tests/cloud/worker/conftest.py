from __future__ import annotations

from worker_cloud import cloud, plain_cloud

__all__ = ["cloud", "plain_cloud"]
