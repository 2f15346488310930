"""What all sources of models share: importing packages, reading weights, checking that it works."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import load_file

from cema._util.names import first_line, own_frames
from cema.errors import ModelError
from cema.models.spec import Model

if TYPE_CHECKING:
    from torch import nn

    from cema.ondevice.preprocess import Preprocessing

__all__ = ["finish", "import_package", "load_weights", "read_weights"]


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
    the module's own dtype.

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
    tensors = read_weights(path, name=name)
    wanted = module.state_dict()
    problems = _differences(wanted, tensors)
    if problems:
        raise ModelError(
            f"{name}: {path} does not fit this architecture: {'; '.join(problems)}. "
            "Use the weights of exactly this model, or the model these weights are of"
        )
    module.load_state_dict({key: value for key, value in tensors.items() if key in wanted}, strict=False)


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
        Changed in place: evaluation mode, float32, CPU.
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
        When the weights do not fit, or the module does not map (1, C, H, W) to (1, classes).
    """
    if weights is not None:
        load_weights(module, weights, name=name)
    module.to("cpu", torch.float32).eval()
    shape = (1, preprocessing.channels, preprocessing.height, preprocessing.width)
    try:
        with torch.inference_mode():
            logits = module(torch.zeros(shape))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"{name}: fails on one input of shape {shape}, float32: {first_line(error)}; "
            "check that its preprocessing gives the size and channels it was made for" + own_frames(error)
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 1:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(
            f"{name}: expected logits of shape (1, classes) for one image, got {got}; "
            "wrap the model in a module that returns only the logits"
        )
    if classes is not None and logits.shape[1] != classes:
        raise ModelError(
            f"{name}: expected {classes} classes, the model has {logits.shape[1]} logits; "
            "leave classes out, or give the weights of a model with as many classes"
        )
    return Model(name, module, preprocessing, int(logits.shape[1]), labels)


def _differences(wanted: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> list[str]:
    def relevant(keys: set[str]) -> list[str]:
        return sorted(key for key in keys if not key.endswith("num_batches_tracked"))

    shapes = [
        f"{key} is {tuple(tensors[key].shape)} and should be {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    found = {
        "missing": relevant(wanted.keys() - tensors.keys()),
        "unexpected": relevant(tensors.keys() - wanted.keys()),
        "of another shape": shapes,
    }
    return [
        f"{len(items)} {what}: {', '.join(items[:5])}{', …' if len(items) > 5 else ''}"
        for what, items in found.items()
        if items
    ]
