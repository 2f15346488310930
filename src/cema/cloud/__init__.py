"""The cloud: stores samples durably, adapts the models, signs and serves updates.

Importing this package starts nothing and loads no torch: only :mod:`cema.cloud.worker` and
:mod:`cema.cloud.publisher` need it, and they run in a process of their own. Names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cema.cloud.app import create_app
    from cema.cloud.config import CloudConfig, CohortConfig
    from cema.cloud.devices import Devices
    from cema.cloud.engine import Engine, LocalEngine
    from cema.cloud.server import serve
    from cema.cloud.store import Store

__all__ = [
    "CloudConfig",
    "CohortConfig",
    "Devices",
    "Engine",
    "LocalEngine",
    "Store",
    "create_app",
    "serve",
]

_HOMES = {
    "CloudConfig": "config",
    "CohortConfig": "config",
    "Devices": "devices",
    "Engine": "engine",
    "LocalEngine": "engine",
    "Store": "store",
    "create_app": "app",
    "serve": "server",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
