"""The models whose weights ship with the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn

from cema.errors import ModelError
from cema.models.digits import DIGITS_LABELS, DIGITS_PREPROCESSING, digits_net
from cema.models.digits_vit import digits_vit_net
from cema.models.spec import Model

__all__ = ["SHIPPED", "shipped_model", "shipped_record"]

#: What builds the architecture of each, by name.
SHIPPED: dict[str, Callable[[str], nn.Module]] = {
    "digits-cnn": digits_net,
    "digits-cnn-foundation": digits_net,
    "digits-vit": digits_vit_net,
    "digits-vit-foundation": digits_vit_net,
}


def shipped_model(name: str) -> Model:
    """Return a model of digits with the weights that ship with the package.

    Parameters
    ----------
    name : str
        One of `SHIPPED`; the edge models are small and lightly augmented, so that they degrade as deployed models
        do, and the foundation models have some 250,000 (CNN) and 800,000 parameters and strong augmentation.

    Returns
    -------
    Model
        In evaluation mode.

    Raises
    ------
    ModelError
        If the files are missing or damaged, or are of another architecture.
    """
    net = SHIPPED[name](name)
    content = _read(f"{name}.safetensors")
    expected = shipped_record(name).get("sha256")
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ModelError(
            f"the shipped weights of {name} have sha256 {digest}, but their record says {expected}; "
            "reinstall cema"
        )
    try:
        net.load_state_dict(load_safetensors(content), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the shipped weights of {name} do not fit the model: {error}; reinstall cema"
        ) from error
    net.eval()
    return Model(
        name=name,
        module=net,
        preprocessing=DIGITS_PREPROCESSING,
        classes=len(DIGITS_LABELS),
        labels=DIGITS_LABELS,
    )


def shipped_record(name: str) -> dict[str, Any]:
    """Return how the shipped weights of a model came about: seed, split, recipe, accuracy, digest.

    Parameters
    ----------
    name : str
        Such as ``"digits-cnn"``.

    Returns
    -------
    dict
        What `cema.recipes.digits.train_digits` recorded.

    Raises
    ------
    ModelError
        If there is no record under that name.
    """
    try:
        record: dict[str, Any] = json.loads(_read(f"{name}.json"))
    except ValueError as error:
        raise ModelError(f"the shipped record of {name} is damaged ({error}); reinstall cema") from error
    return record


def _read(file: str) -> bytes:
    try:
        return (files("cema.models") / "weights" / file).read_bytes()
    except OSError as error:
        raise ModelError(f"the shipped file {file} cannot be read ({error}); reinstall cema") from error
