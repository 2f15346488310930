"""What all sources of models share: importing packages, reading weights, checking that it works."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import load_file
from torch.nn.parameter import is_lazy

from cema._util.names import first_line
from cema.errors import ModelError
from cema.models.checks import check_module
from cema.models.spec import Model
from cema.models.wrappers import unwrapped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from cema.ondevice.preprocess import Preprocessing

__all__ = ["finish", "import_package", "load_weights", "read_weights", "without_prefix"]


def import_package(module: str, *, name: str, install: str) -> Any:
    """Import an optional package, or say how to get it.

    Parameters
    ----------
    module : str
        What to import.
    name : str
        The model that needs it, for the message.
    install : str
        What to give to ``pip install``.

    Returns
    -------
    module
        As ``importlib.import_module`` returns it.

    Raises
    ------
    ModelError
        When the package is absent or cannot be imported beside the installed torch.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise ModelError(
                f"{name}: {package} is installed but needs {error.name}, which is not; "
                f"pip install {install!r}"
            ) from error
        raise ModelError(
            f"{name}: needs the package {package}, which is not installed; pip install {install!r}"
        ) from error
    # A torchvision built for another torch fails with RuntimeError ("operator torchvision::nms does not
    # exist"), a missing shared library with OSError or ImportError.
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"{name}: {package} is installed but cannot be imported beside torch {torch.__version__}: "
            f"{first_line(error)}. torch and torchvision must be builds of one release and one platform "
            "(both CPU or both the same CUDA): install both from the same index, or use a built-in or hf: "
            "model, which need no torchvision"
        ) from error


def load_weights(module: nn.Module, path: Path, *, name: str) -> None:
    """Load a safetensors file into a module, strictly.

    ``num_batches_tracked``, which only training reads, may be missing or left over. Half precision becomes
    the module's own dtype. A prefix of all keys, such as the ``module.`` of ``DataParallel``, is removed if just that
    makes them fit.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place, and only when everything fits.
    path : Path
        A safetensors file whose keys are the module's.
    name : str
        The model, for messages.

    Raises
    ------
    ModelError
        When the file is missing or no safetensors file, or keys or shapes differ; the message lists them.
    """
    wanted = module.state_dict()
    tensors = without_prefix(read_weights(path, name=name), wanted)
    problems = _differences(wanted, tensors)
    if problems:
        raise ModelError(
            f"{name}: {path} does not fit this architecture: {'; '.join(problems)}. "
            f"Use the weights of exactly this model, or the model these weights are of{_prefix_hint(wanted, tensors)}"
        )
    module.load_state_dict({key: value for key, value in tensors.items() if key in wanted}, strict=False)


def without_prefix(tensors: dict[str, torch.Tensor], wanted: Iterable[str]) -> dict[str, torch.Tensor]:
    """Remove what all keys begin with, such as ``module.``, if they are then the keys that are wanted.

    Parameters
    ----------
    tensors : dict of str to torch.Tensor
        By the keys of a file.
    wanted : iterable of str
        The keys of the model.

    Examples
    --------
    >>> list(without_prefix({"module.bias": torch.zeros(2)}, ["bias"]))
    ['bias']
    >>> list(without_prefix({"module.bias": torch.zeros(2)}, ["weight"]))
    ['module.bias']
    """
    keys, prefix = _relevant(wanted), ""
    shortest = min(tensors, key=len, default="")
    for part in shortest.split(".")[:-1]:
        prefix += f"{part}."
        shorter = {
            key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
        }
        if len(shorter) == len(tensors) and _relevant(shorter) == keys:
            return shorter
    return tensors


def read_weights(path: Path, *, name: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        The model, for messages.

    Returns
    -------
    dict of str to torch.Tensor
        On the CPU.

    Raises
    ------
    ModelError
        When the file is missing or no safetensors file.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"{name}: no weights file at {path}; check the path") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"{name}: {path} is not a readable safetensors file ({first_line(error)}); "
            "save the state dict with safetensors.torch.save_file (pickled files are not read)"
        ) from error


def finish(
    name: str,
    module: nn.Module,
    preprocessing: Preprocessing,
    *,
    classes: int | None = None,
    labels: tuple[str, ...] | None = None,
    weights: Path | None = None,
) -> Model:
    """Load weights if there are any, make the module an evaluation one, try it, and wrap it up.

    Parameters
    ----------
    name : str
        How the model was asked for.
    module : torch.nn.Module
        Changed in place: evaluation mode, float32, CPU. What ``DataParallel`` or ``torch.compile`` made of a model is
        unwrapped.
    preprocessing : Preprocessing
        Says the size of the input that the module is tried with.
    classes : int, optional
        How many logits there must be; without it, as many as come.
    labels : tuple of str, optional
        Names of the classes.
    weights : Path, optional
        See `load_weights`.

    Returns
    -------
    Model
        Ready for use.

    Raises
    ------
    ModelError
        When the weights do not fit, or as `cema.models.checks.check_module` says.
    """
    module = unwrapped(module)
    if weights is not None:
        load_weights(module, weights, name=name)
    module.to("cpu", torch.float32).eval()
    count = check_module(name, module, preprocessing, classes=classes)
    return Model(name, module, preprocessing, count, labels)


def _relevant(keys: Iterable[str]) -> set[str]:
    return {key for key in keys if not key.endswith("num_batches_tracked")}


def _prefix_hint(wanted: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> str:
    """Say it when the file has the keys of the model but for a prefix that the model's keys have."""
    if any(key in wanted for key in tensors):
        return ""
    inner = without_prefix(wanted, tensors)
    if inner is wanted:
        return ""
    prefix = next(iter(wanted)).removesuffix(next(iter(inner)))
    return f". The model's keys only begin with {prefix!r} more: rename the file's, or load them into the inner module"


def _differences(wanted: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> list[str]:
    shapes = [
        f"{key} is {tuple(tensors[key].shape)} and should be {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors
        and not is_lazy(value)  # a lazy layer takes any
        and tensors[key].shape != value.shape
    ]
    found = {
        "missing": sorted(_relevant(wanted.keys() - tensors.keys())),
        "unexpected": sorted(_relevant(tensors.keys() - wanted.keys())),
        "of another shape": shapes,
    }
    return [
        f"{len(items)} {what}: {', '.join(items[:5])}{', …' if len(items) > 5 else ''}"
        for what, items in found.items()
        if items
    ]
