"""Models from timm, from torchvision, and from functions of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from cema._util.names import first_line, load_object, own_frames
from cema.errors import CemaError, ConfigError, ModelError
from cema.models.loading import finish, import_package
from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["function", "timm", "torchvision"]


def timm(name: str, weights: Path | None, classes: int | None) -> Model:
    """Load a model of timm, with the preprocessing of its pretrained weights.

    Parameters
    ----------
    name : str
        ``timm:NAME``.
    weights : Path, optional
        A safetensors file; without it, timm's pretrained weights, which it may download.
    classes : int, optional
        See `cema.models.registry.resolve`.

    Returns
    -------
    Model
        Without labels.

    Raises
    ------
    ModelError
        When timm cannot be imported, does not know the name, or the weights do not fit.
    """
    package = import_package("timm", name=name, install="timm")
    data = import_package("timm.data", name=name, install="timm")
    options = {"num_classes": classes} if weights is not None and classes is not None else {}
    try:
        module = package.create_model(name.partition(":")[2], pretrained=weights is None, **options)
        settings = data.resolve_model_data_config(module)
    except Exception as error:  # whatever it or its downloader raises
        raise _refused(name, "timm", error) from error
    channels, height, width = settings["input_size"]
    preprocessing = _pixels(
        name,
        (height, width),
        (settings["mean"], settings["std"]),
        crop=float(settings["crop_pct"]),
        interpolation=settings["interpolation"],
    )
    if channels != preprocessing.channels:
        raise ModelError(f"{name}: expected one mean for each of {channels} channels, got {settings['mean']}")
    return finish(name, module, preprocessing, classes=classes, weights=weights)


def torchvision(name: str, weights: Path | None, classes: int | None) -> Model:
    """Load a classifier of torchvision, with the preprocessing of its default weights.

    Parameters
    ----------
    name : str
        ``torchvision:NAME``.
    weights : Path, optional
        A safetensors file; without it, torchvision's default weights, which it may download.
    classes : int, optional
        See `cema.models.registry.resolve`.

    Returns
    -------
    Model
        With the labels of the default weights, unless `weights` were given.

    Raises
    ------
    ModelError
        When torchvision cannot be imported, does not know the name, or the weights do not fit.
    """
    models = import_package("torchvision.models", name=name, install="torchvision")
    short = name.partition(":")[2]
    if short in {"googlenet", "inception_v3"}:
        # With pretrained weights torchvision normalises inside these two, without saying so in `transforms`.
        raise ModelError(f"{name}: is not supported, for it normalises twice; use timm:{short} instead")
    if short not in models.list_models(module=models):
        raise ModelError(f"{name}: torchvision has no classifier of that name; see torchvision.models")
    try:
        default = models.get_model_weights(short).DEFAULT
        labels = tuple(default.meta["categories"])
        count = len(labels) if weights is None or classes is None else classes
        module = models.get_model(short, weights=None, num_classes=count)
        if weights is None:
            module.load_state_dict(default.get_state_dict(progress=False, weights_only=True))
        transform = default.transforms()
    except Exception as error:  # whatever it or its downloader raises
        raise _refused(name, "torchvision", error) from error
    size = int(transform.crop_size[0])
    preprocessing = _pixels(
        name,
        (size, size),
        (transform.mean, transform.std),
        crop=size / int(transform.resize_size[0]),
        interpolation=transform.interpolation.value,
    )
    return finish(
        name,
        module,
        preprocessing,
        classes=classes,
        labels=labels if weights is None else None,
        weights=weights,
    )


def function(name: str, weights: Path | None, classes: int | None) -> Model:
    """Call a function of one's own.

    Parameters
    ----------
    name : str
        ``package.module:function`` or ``path/to/file.py:function``. The function takes no arguments and returns a
        `Model`, or a ``torch.nn.Module`` with an attribute ``preprocessing``
        (`cema.ondevice.preprocess.Preprocessing`) and, if it likes, ``labels`` (a sequence of str).
    weights : Path, optional
        A safetensors file to load over what the function returned.
    classes : int, optional
        How many classes there must be.

    Returns
    -------
    Model
        In evaluation mode, float32, on the CPU.

    Raises
    ------
    ModelError
        When there is no such module or function, it fails, or returns something else.
    """
    try:
        make = load_object(name, "function")
    except ConfigError as error:
        raise ModelError(str(error)) from error
    if not callable(make):
        where, _, attribute = name.rpartition(":")
        raise ModelError(f"{name}: {where} has no function {attribute!r}; check the name after the colon")
    try:
        made = make()
    except CemaError as error:  # says itself what to do
        raise ModelError(f"{name}: the function failed: {error}") from error
    except Exception as error:  # foreign code
        takes_some = "; it is called without arguments" if isinstance(error, TypeError) else ""
        raise ModelError(
            f"{name}: the function failed: {first_line(error)}{takes_some}{own_frames(error)}"
        ) from error
    if isinstance(made, Model):
        return finish(
            name,
            made.module,
            made.preprocessing,
            classes=made.classes if classes is None else classes,
            labels=made.labels,
            weights=weights,
        )
    preprocessing = getattr(made, "preprocessing", None)
    if not isinstance(made, nn.Module) or not isinstance(preprocessing, Preprocessing):
        raise ModelError(
            f"{name}: expected a cema.models.spec.Model, or a torch.nn.Module with an attribute preprocessing "
            f"(cema.ondevice.preprocess.Preprocessing), got {type(made).__name__} with preprocessing "
            f"{type(preprocessing).__name__}; return one of these"
        )
    labels = getattr(made, "labels", None)
    return finish(
        name,
        made,
        preprocessing,
        classes=classes,
        labels=None if labels is None else tuple(map(str, labels)),
        weights=weights,
    )


def _pixels(
    name: str, size: tuple[int, int], statistics: tuple[Any, Any], *, crop: float, interpolation: str
) -> Preprocessing:
    """Build a Preprocessing from statistics of images in 0..1."""
    mean, std = (tuple(255.0 * float(value) for value in values) for values in statistics)
    try:
        return Preprocessing(
            height=int(size[0]),
            width=int(size[1]),
            channels=len(mean),
            mean=mean,
            std=std,
            crop=crop,
            # Only these two are the same on every device; the others are nearest to bicubic.
            interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        )
    except ValueError as error:
        raise ModelError(f"{name}: its preprocessing is not supported: {error}") from error


def _refused(name: str, package: str, error: Exception) -> ModelError:
    return ModelError(
        f"{name}: {package} refused: {first_line(error)}; check the name, and the network if the weights "
        "have yet to be downloaded, or give a local safetensors file as weights"
    )
