"""CEMA: cloud-edge elastic model adaptation."""

from cema._version import __version__

__all__ = ["__version__"]
