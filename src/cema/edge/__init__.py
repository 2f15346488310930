"""The edge: predict, select, spool, upload, and swap in what the cloud sends back. Loads no torch."""

from cema.edge.agent import EdgeAgent
from cema.edge.config import CloudLink, EdgeConfig, SelectionConfig, UpdateConfig, UploadConfig
from cema.edge.report import EdgeStatus, Prediction
from cema.edge.runtime import Runtime, build_runtime
from cema.edge.spool import Spool

__all__ = [
    "CloudLink",
    "EdgeAgent",
    "EdgeConfig",
    "EdgeStatus",
    "Prediction",
    "Runtime",
    "SelectionConfig",
    "Spool",
    "UpdateConfig",
    "UploadConfig",
    "build_runtime",
]
