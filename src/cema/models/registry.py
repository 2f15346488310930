"""From a name to a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cema.errors import ModelError
from cema.models.loading import finish

if TYPE_CHECKING:
    from collections.abc import Callable

    from cema.models.spec import Model

__all__ = ["available", "resolve"]

_PREFIXES = ("timm:NAME", "torchvision:NAME", "hf:NAME_OR_FOLDER", "package.module:function")


def available() -> tuple[str, ...]:
    """List the built-in models.

    Returns
    -------
    tuple of str
        Sorted names for `resolve`.

    Examples
    --------
    >>> "digits-cnn" in available()
    True
    """
    return tuple(sorted(_BUILT_IN))


def resolve(name: str, *, weights: Path | str | None = None, classes: int | None = None) -> Model:
    """Find and load a model.

    Parameters
    ----------
    name : str
        A built-in name (see `available`), ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME_OR_FOLDER``, or
        ``package.module:function``: a function without arguments that returns a `Model`, or a
        ``torch.nn.Module`` with an attribute ``preprocessing``.
    weights : Path or str, optional
        A local safetensors file with exactly the keys of the model. Without it, the weights the source has;
        timm, torchvision and hf may download them.
    classes : int, optional
        How many classes there must be. Together with `weights`, a source that can builds the model with as
        many; without, a model with another number is refused, for its head would be random.

    Returns
    -------
    Model
        In evaluation mode, float32, on the CPU; tried on one input.

    Raises
    ------
    ModelError
        When the name is unknown, a package is missing or cannot be imported (the message names it), weights
        are needed and not given or do not fit, or the number of classes is another.

    Examples
    --------
    >>> resolve("digits-cnn-9000")
    Traceback (most recent call last):
    cema.errors.ModelError: unknown model 'digits-cnn-9000'; ...
    """
    path = None if weights is None else Path(weights)
    if name in _BUILT_IN:
        return _BUILT_IN[name](name, path, classes)
    prefix, colon, rest = name.partition(":")
    if colon and prefix and rest:
        from cema.models import external  # noqa: PLC0415 - built-in models need nothing of it
        from cema.models.hugging_face import hugging_face  # noqa: PLC0415

        sources = {"hf": hugging_face, "timm": external.timm, "torchvision": external.torchvision}
        return sources.get(prefix, external.function)(name, path, classes)
    raise ModelError(f"unknown model {name!r}; known are {', '.join(available())} and {', '.join(_PREFIXES)}")


def _digits(name: str, weights: Path | None, classes: int | None) -> Model:
    from cema.models.shipped import shipped_model  # noqa: PLC0415 - reads its weights only when asked for

    model = shipped_model(name)
    return finish(
        name, model.module, model.preprocessing, classes=classes, labels=model.labels, weights=weights
    )


def _cifar(name: str, weights: Path | None, classes: int | None) -> Model:
    from cema.models.cifar import cifar_resnet  # noqa: PLC0415

    if weights is None:
        raise ModelError(
            f"{name}: comes without weights; give a safetensors file with the keys conv1, bn1, "
            "layer1.0.conv1, …, linear as weights"
        )
    return cifar_resnet(name, weights=weights, classes=classes)


def _efficientnet(name: str, weights: Path | None, classes: int | None) -> Model:
    from cema.models.efficientnet import efficientnet_lite  # noqa: PLC0415

    return efficientnet_lite(name, weights=weights, classes=classes)


_BUILT_IN: dict[str, Callable[[str, Path | None, int | None], Model]] = {
    "cifar-resnet20": _cifar,
    "cifar-resnet56": _cifar,
    "digits-cnn": _digits,
    "digits-cnn-foundation": _digits,
    "digits-vit": _digits,
    "digits-vit-foundation": _digits,
    "efficientnet-lite0": _efficientnet,
    "efficientnet-lite1": _efficientnet,
    "efficientnet-lite2": _efficientnet,
}
