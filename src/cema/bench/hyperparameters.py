"""The hyperparameters of every method, in two tables.

A method's own defaults (``cema.methods.registry.default_settings``) are those for ImageNet-C and a network with
BatchNorm, but CoTTA's, which are for CIFAR-10-C. `TABLE` holds what differs from them by family of data and by
architecture, as the papers or their programs have it; `SHORT`, which goes over it when asked (``--rates short``), what
this project measured on streams of some thousand images. ``--set`` and a TOML file go over all;
``cema bench --show-settings`` prints the result.

=========== ============================================================================================================
Tent        Wang et al., ICLR 2021: SGD, 2.5e-4 (ImageNet); Adam, 1e-3 (CIFAR). For ViT 1e-3, as Niu et al., ICLR 2023
PL          as Tent: its paper is older than these data
ETA, EATA   Niu et al., ICML 2022: 2.5e-4, margin 0.05, weight 2000 (ImageNet); 5e-3, margin 0.4, weight 1 (CIFAR-10).
            For ViT 1e-3, as Niu et al., ICLR 2023
CoTTA       Wang et al., CVPR 2022: Adam, 1e-3, confidence 0.92 (CIFAR-10) or 0.72 (CIFAR-100); SGD, 0.01, confidence
            0.1 (ImageNet)
SAR         Niu et al., ICLR 2023: 2.5e-4, with GroupNorm too; for ViT 1e-3. 1e-3 on small images is this project's
CEMA        Chen et al., ICLR 2024: edge 2.5e-3, foundation 2.5e-4, whatever the data; where their program filters as
            ETA does, with ETA's margin for the data
the others  their defaults, whatever the data
=========== ============================================================================================================

No paper has digits: they take CIFAR-10's values, but CoTTA mirrors none. A network with GroupNorm takes the values of
one with BatchNorm, and on small images one with LayerNorm takes ViT's rates and CIFAR-10's margin and weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cema._util.names import merged
from cema.bench.config import Rates, check_names
from cema.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "SHORT",
    "TABLE",
    "Architecture",
    "Family",
    "architecture",
    "method_settings",
    "table_settings",
]

Family = Literal["imagenet", "cifar", "cifar100", "digits"]
Architecture = Literal["batchnorm", "groupnorm", "layernorm"]
Settings = dict[str, dict[str, Any]]

_COTTA_IMAGENET = {"optimizer": "sgd", "lr": 0.01, "confidence": 0.1, "restore": 0.001, "symmetric": True}
_COTTA_CIFAR100 = {"confidence": 0.72}
# A mirrored digit is another one, or none.
_COTTA_DIGITS = {"flip": 0.0}

_CIFAR: Settings = {
    "pl": {"optimizer": "adam", "lr": 1e-3},
    "tent": {"optimizer": "adam", "lr": 1e-3},
    "eta": {"lr": 5e-3, "d_margin": 0.4},
    "eata": {"lr": 5e-3, "d_margin": 0.4, "fisher_alpha": 1.0},
    "sar": {"lr": 1e-3},
    "cema-reference": {"d_margin": 0.4},
}
_VIT: Settings = {method: {"lr": 1e-3} for method in ("pl", "tent", "eta", "eata", "sar")}
_CIFAR_VIT: Settings = _VIT | {
    "eta": {"lr": 1e-3, "d_margin": 0.4},
    "eata": {"lr": 1e-3, "d_margin": 0.4, "fisher_alpha": 1.0},
    "cema-reference": {"d_margin": 0.4},
}

#: What differs from the methods' own defaults, by data, architecture, method and setting: the papers' values, which are
#: for streams of 10,000 images and more.
TABLE: dict[Family, dict[Architecture, Settings]] = {
    "imagenet": {
        "batchnorm": {"cotta": _COTTA_IMAGENET},
        "groupnorm": {"cotta": _COTTA_IMAGENET},
        "layernorm": _VIT | {"cotta": _COTTA_IMAGENET},
    },
    "cifar": {"batchnorm": _CIFAR, "groupnorm": _CIFAR, "layernorm": _CIFAR_VIT},
    "cifar100": {
        "batchnorm": _CIFAR | {"cotta": _COTTA_CIFAR100},
        "groupnorm": _CIFAR | {"cotta": _COTTA_CIFAR100},
        "layernorm": _CIFAR_VIT | {"cotta": _COTTA_CIFAR100},
    },
    "digits": {
        "batchnorm": _CIFAR | {"cotta": _COTTA_DIGITS},
        "groupnorm": _CIFAR | {"cotta": _COTTA_DIGITS},
        "layernorm": _CIFAR_VIT | {"cotta": _COTTA_DIGITS},
    },
}

#: What goes over `TABLE` on streams of some thousand images, each begun by the source model; where nothing stands here,
#: nothing was measured. PL and Tent descend with SGD.
SHORT: dict[Family, dict[Architecture, Settings]] = {
    "cifar": {
        # Measured: `python benchmarks/tune.py cifar --data DATA`, all with --samples 2000 (CoTTA: 1000), and those that
        # may fall late in a longer stream once more on 5,000, around what was best: PL, Tent, ETA, SAR and CEMA. There
        # CEMA and PL want less than on 2,000, where a foundation rate of 0.025 did best, and SAR half of 0.05.
        "batchnorm": {
            "bn-prior": {"prior": 64.0},
            "onda": {"momentum": 0.05},
            "lame": {"neighbours": 1},
            "pl": {"optimizer": "sgd", "lr": 0.01},
            "tent": {"optimizer": "sgd", "lr": 0.025},
            "eta": {"lr": 0.025},
            "eata": {"lr": 0.025},
            "sar": {"lr": 0.025},
            "cema": {"adapt": {"edge_lr": 5e-4, "foundation_lr": 0.01}},
            "cema-reference": {"adapt": {"edge_lr": 5e-4, "foundation_lr": 0.025}},
        },
    },
    "digits": {
        # Measured: `python benchmarks/tune.py digits --samples 1000`. Entropy gains nothing over BN on 16 batches at
        # any rate and loses least at the smallest; CEMA's edge wants a larger one than on long streams.
        "batchnorm": {
            "lame": {"neighbours": 1},
            "pl": {"optimizer": "sgd", "lr": 2.5e-4},
            "tent": {"optimizer": "sgd", "lr": 2.5e-4},
            "eta": {"lr": 2.5e-4},
            "eata": {"lr": 2.5e-4},
            "sar": {"lr": 2.5e-4},
            "cema": {"adapt": {"edge_lr": 0.01}},
            "cema-reference": {"adapt": {"edge_lr": 0.01}},
        },
        # Measured: `python benchmarks/tune.py digits-vit --samples 1000`.
        "layernorm": {
            "lame": {"neighbours": 1},
            "pl": {"optimizer": "sgd", "lr": 2.5e-4},
            "tent": {"optimizer": "sgd", "lr": 2.5e-4},
            "cotta": {"lr": 1e-4},
            "eta": {"lr": 0.01},
            "eata": {"lr": 0.01},
            "sar": {"lr": 0.01},
            "cema": {"adapt": {"edge_lr": 5e-4}},
            "cema-reference": {"adapt": {"edge_lr": 2.5e-3}},
        },
    },
}


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


def table_settings(
    method: str, family: Family, kind: Architecture, rates: Rates = "papers"
) -> dict[str, Any]:
    """Return what the tables have for a method: `TABLE`'s values and, for short streams, `SHORT`'s over them."""
    settings = TABLE[family][kind].get(method, {})
    if rates == "short":
        settings = merged(settings, SHORT.get(family, {}).get(kind, {}).get(method, {}))
    return dict(settings)


def method_settings(
    method: str,
    family: Family,
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
        Row and column of the tables.
    rates : {"papers", "short"}
        Whether `SHORT` goes over `TABLE`.
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
    from cema.methods.registry import METHODS, default_settings  # noqa: PLC0415 - loads torch

    check_names("method", [method, *(given or {})], list(METHODS))
    settings = merged(default_settings(method), table_settings(method, family, kind, rates))
    if delay is not None and "delay" in settings:
        settings["delay"] = delay
    asked = (given or {}).get(method, {})
    _check_settings(method, asked, settings)
    settings = merged(settings, asked)
    try:
        checked = msgspec.convert(settings, METHODS[method].config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"settings of {method}: {error}; correct --set or the file") from error
    full: dict[str, Any] = msgspec.to_builtins(checked)
    return full


def _check_settings(
    where: str, asked: Mapping[str, Any], known: Mapping[str, Any], what: str = "setting of"
) -> None:
    check_names(f"{what} {where}", list(asked), list(known))
    for name, value in asked.items():
        if isinstance(value, dict) and isinstance(known[name], dict):
            _check_settings(f"{where}.{name}", value, known[name], what)
