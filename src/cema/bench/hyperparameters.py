"""The settings of every method for some data and some network.

A method's own defaults (``cema.methods.registry.default_settings``) are those for ImageNet-C and a network with
BatchNorm, but CoTTA's, which are for CIFAR-10-C. What differs from them by family of data and by architecture stands
with each method (`cema.methods.base.Method`): ``papers``, as the papers or their programs have it, and ``short``, which
goes over it when asked (``--rates short``), what this project measured on streams of some thousand images. ``--set``
and a TOML file go over all; ``cema bench --show-settings`` prints the result.

No paper has digits: they take CIFAR-10's values, but nothing mirrors them. A network with GroupNorm takes the values of
one with BatchNorm, and on small images one with LayerNorm takes ViT's rates and CIFAR-10's margin and weight.

The short rates were measured with ``benchmarks/tune.py``:

* ``cifar/batchnorm``: ``tune.py cifar --data DATA --samples 2000`` (CoTTA: 1000). PL, Tent, ETA, SAR and CEMA may
  fail late in a longer stream, so they were tuned once more on 5,000 images, around what was best. There CEMA and PL
  want less than on 2,000, where a foundation rate of 0.025 did best, and SAR half of 0.05. So were DeYO, Tent and EATA
  with COME, ROID and CMF: DeYO wants half of 0.01, EATA with COME less than half of 0.025.
* ``digits/batchnorm``: ``tune.py digits --samples 1000``. Entropy gains nothing over BN on 16 batches at any rate and
  loses least at the smallest. CEMA's edge wants a larger one than on long streams.
* ``digits/layernorm``: ``tune.py digits-vit --samples 1000``.
* BN's prior on ``imagenet/batchnorm``: 16 and 150 images, on 500 photographs.
* The row ``cema``, everywhere, and ``imagenet/batchnorm`` with it: not by a grid, but one setting after another, on
  corruptions outside the fifteen; docs/results.md names them and has the tables.

Where no rate was better than the papers' by more than 2 of 4,000 predictions, DeYO, the rows with COME, ROID, CMF and
RoTTA keep the papers': RoTTA everywhere, EATA with COME on ``digits/batchnorm``, ROID and CMF on ``digits/layernorm``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cema._util.names import merged
from cema.bench.config import Rates, check_names
from cema.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Architecture",
    "architecture",
    "check_methods",
    "method_settings",
    "table_settings",
]

Architecture = Literal["batchnorm", "groupnorm", "layernorm"]


def architecture(module: nn.Module) -> Architecture:
    """Return which column of the tables a network belongs to.

    That of BatchNorm where it has one; that of GroupNorm where it has one and no LayerNorm; else LayerNorm's.
    """
    from torch.nn import GroupNorm, LayerNorm  # noqa: PLC0415 - the tables alone need no torch
    from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC0415

    def has(kind: type[nn.Module]) -> bool:
        return any(isinstance(layer, kind) for layer in module.modules())

    if has(_BatchNorm):
        return "batchnorm"
    return "groupnorm" if has(GroupNorm) and not has(LayerNorm) else "layernorm"


def check_methods(names: Sequence[str]) -> None:
    """Refuse a method that does not exist, with those that do.

    Raises
    ------
    ConfigError
        At the first such name.
    """
    from cema.methods.registry import METHODS  # noqa: PLC0415 - loads torch

    check_names("method", [name for name in names if name not in METHODS], list(METHODS))


def table_settings(method: str, family: str, kind: Architecture, rates: Rates = "papers") -> dict[str, Any]:
    """Return what differs from a method's defaults; see `cema.methods.base.Method.rates`."""
    from cema.methods.registry import find_method  # noqa: PLC0415 - loads torch

    return find_method(method).rates(family, kind, short=rates == "short")


def method_settings(
    method: str,
    family: str,
    kind: Architecture,
    *,
    rates: Rates = "papers",
    given: Mapping[str, Mapping[str, Any]] | None = None,
    delay: int | None = None,
) -> dict[str, Any]:
    """Return all settings of a method: its defaults, the tables' over them, and what was asked for over both.

    Parameters
    ----------
    method : str
        A name out of `cema.methods.registry.METHODS`.
    family, kind : str
        Of the data and of the network.
    rates : {"papers", "short"}
        Whether the rates for short streams go over the papers'.
    given : mapping
        By method, settings that replace others.
    delay : int, optional
        ``delay`` of a method that has it.

    Returns
    -------
    dict of str to object
        Fit for JSON.

    Raises
    ------
    ConfigError
        If the method or a setting is unknown, or a value is refused.
    """
    from cema.methods.registry import default_settings, find_method  # noqa: PLC0415 - loads torch

    check_methods([method, *(given or {})])
    settings = merged(default_settings(method), table_settings(method, family, kind, rates))
    if delay is not None and "delay" in settings:
        settings["delay"] = delay
    asked = (given or {}).get(method, {})
    _check_settings(method, asked, settings)
    settings = merged(settings, asked)
    try:
        checked = msgspec.convert(settings, find_method(method).config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"settings of {method}: {error}; correct --set or the file") from error
    full: dict[str, Any] = msgspec.to_builtins(checked)
    return full


def _check_settings(
    where: str, asked: Mapping[str, Any], known: Mapping[str, Any], what: str = "setting of"
) -> None:
    check_names(f"{what} {where}", list(asked), list(known))
    for name, value in asked.items():
        # An empty table is one whose keys belong to somebody else: `options`.
        if isinstance(value, dict) and isinstance(known[name], dict) and known[name]:
            _check_settings(f"{where}.{name}", value, known[name], what)
