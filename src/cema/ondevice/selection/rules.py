"""Which rule selects: a built-in one, or a class that a stranger names."""

from __future__ import annotations

from typing import Any

from cema._util.names import did_you_mean, is_object_name, load_object
from cema.errors import ConfigError
from cema.ondevice.selection.base import Selector
from cema.ondevice.selection.budget import Budget
from cema.ondevice.selection.budget_options import budget_options
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.entropy_band import EntropyBand

__all__ = ["RULES", "make_selector"]

RULES = ("entropy-band", "budget")
"""The built-in rules."""


def make_selector(config: SelectionConfig, classes: int) -> Selector:
    """Make one device's selector.

    Parameters
    ----------
    config : SelectionConfig
        ``rule`` and its settings.
    classes : int
        Of the model; at least 2.

    Raises
    ------
    ConfigError
        When there is no such rule, or it refuses its options.
    """
    if config.rule == "entropy-band":
        return EntropyBand(classes, config)
    if config.rule == "budget":
        return Budget(classes, budget_options(config.options))
    if not is_object_name(config.rule):
        raise ConfigError(
            f"selection.rule: expected {', '.join(RULES)} or package.module:Class, got {config.rule!r}"
            f"{did_you_mean(config.rule, RULES)}"
        )
    rule: Any = load_object(config.rule)
    try:
        selector: Selector = rule(classes, **config.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"selection.rule: {config.rule} refuses its options {config.options}: {error}; correct "
            "[selection.options]"
        ) from error
    return selector
