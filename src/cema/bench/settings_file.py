"""Settings of methods as a TOML file, which ``--config`` reads back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w

__all__ = ["settings_toml"]


def settings_toml(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Write settings as the tables of a TOML file for ``--config``; what is not set is left out.

    Parameters
    ----------
    settings : mapping of str to mapping
        By method, its settings; None stands for one that is not set, which TOML cannot say.

    Returns
    -------
    str
        Without a line break at its end.

    Examples
    --------
    >>> print(settings_toml({"tent": {"lr": 0.001, "betas": None}}))
    [settings.tent]
    lr = 0.001
    """
    return tomli_w.dumps({"settings": _without_none(settings)}).rstrip("\n")


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in table.items()
        if value is not None
    }
