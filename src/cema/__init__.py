"""CEMA: cloud-edge elastic model adaptation.

What users import is listed here, and loaded when it is first used: a device never loads torch by it. Type checkers read
``__init__.pyi``.
"""

from importlib import import_module
from typing import Any

from cema._util.version import __version__ as __version__

_PLACES = {
    "DatasetReader": "data.base",
    "EdgeAgent": "edge.agent",
    "EdgeConfig": "edge.config",
    "EdgeStatus": "edge.status",
    "Learner": "adapt.base",
    "Model": "models.spec",
    "Prediction": "edge.status",
    "Preprocessing": "ondevice.preprocess",
    "Selector": "ondevice.selection.base",
    "Store": "cloud.store.base",
    "export_bundle": "export.bundle",
    "method": "methods.base",
    "__version__": "_util.version",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Load a name at its first use."""
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{place}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the names, loaded or not."""
    return sorted(__all__)
