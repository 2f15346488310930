"""Which torch devices can be used here."""

from __future__ import annotations

import torch

__all__ = ["why_unusable"]


def why_unusable(device: str) -> str:
    """Return torch's reason why it cannot use a device; empty when it can.

    Parameters
    ----------
    device : str
        A torch device such as ``cpu`` or ``cuda:0``.

    Examples
    --------
    >>> why_unusable("cpu")
    ''
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        return str(error) or type(error).__name__
    return ""
