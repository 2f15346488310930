"""What every model must do, whichever way it comes in: one image to one row of logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from cema._util.names import first_line, own_frames
from cema.errors import ModelError
from cema.models.probabilities import returns_probabilities

if TYPE_CHECKING:
    from cema.ondevice.preprocess import Preprocessing

__all__ = ["check_module", "varied_inputs"]

_COUNT = 4
_ONLY_LOGITS = "wrap the model in a module that returns only the logits"
_WRONG_INPUT = "check that its preprocessing gives the size and channels it was made for"
_FIXED_BATCH = (
    "it takes one image, so its batch size is fixed: replace the number in forward by x.shape[0] or -1"
)
_BOXES = frozenset({"boxes", "pred_boxes"})


@torch.no_grad()
def check_module(
    name: str, module: nn.Module, preprocessing: Preprocessing, *, classes: int | None = None
) -> int:
    """Run a module on some images and check what it returns.

    Parameters
    ----------
    name : str
        The model, for messages.
    module : torch.nn.Module
        In evaluation mode, float32, on the CPU.
    preprocessing : Preprocessing
        Says the size of the input that the module is tried with.
    classes : int, optional
        How many logits there must be; without it, as many as come.

    Returns
    -------
    int
        The number of logits.

    Raises
    ------
    ModelError
        When the module does not map (N, C, H, W) to finite logits (N, classes), or returns probabilities.
    """
    _check_initialised(name, module)
    p = preprocessing
    shape = (1, p.channels, p.height, p.width)
    got = _run(name, module, torch.zeros(shape), _WRONG_INPUT)
    _check_rows(name, got, 1)
    if classes is not None and got.shape[1] != classes:
        raise ModelError(
            f"{name}: expected {classes} classes, the model has {got.shape[1]} logits; "
            "leave classes out, or give the weights of a model with as many classes"
        )
    inputs = varied_inputs(preprocessing, _COUNT)
    logits = _run(name, module, inputs, _FIXED_BATCH)
    _check_rows(name, logits, _COUNT)
    if not torch.isfinite(logits).all():
        raise ModelError(f"{name}: expected finite logits, got NaN or infinity; check the model's weights")
    if returns_probabilities(module, inputs, logits):
        raise ModelError(
            f"{name}: returns probabilities; return the logits: on {_COUNT} different images no output is negative and "
            "they sum to the same number or lie within 0..1, so leave out the softmax or sigmoid at the model's end"
        )
    return int(got.shape[1])


def varied_inputs(preprocessing: Preprocessing, count: int) -> torch.Tensor:
    """Return inputs (count, C, H, W) of images with coarse and fine structure, the same at each call.

    Parameters
    ----------
    preprocessing : Preprocessing
        Whose mean and deviation the pixels are normalised with.
    count : int
        How many.
    """
    p = preprocessing
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((count, p.channels, 8, 8), generator=generator) * 255
    pixels = nn.functional.interpolate(coarse, size=(p.height, p.width))
    pixels = (pixels + 20 * torch.randn(pixels.shape, generator=generator)).clamp_(0, 255)
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (p.mean, p.std))
    return (pixels - mean) / std


def _run(name: str, module: nn.Module, inputs: torch.Tensor, advice: str) -> Any:
    try:
        return module(inputs.clone())  # a copy, because a forward may change its input in place
    except Exception as error:
        raise ModelError(
            f"{name}: fails on {_images(len(inputs))} of shape {tuple(inputs.shape)}, float32: "
            f"{first_line(error)}; {advice}{own_frames(error)}"
        ) from error


def _images(count: int) -> str:
    return "one input" if count == 1 else f"{count} inputs"


def _check_initialised(name: str, module: nn.Module) -> None:
    for key, value in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(value):
            layer = key.rpartition(".")[0]
            kind = type(module.get_submodule(layer)).__name__
            raise ModelError(
                f"{name}: {key} of {kind} has no values yet; pass an image through the model once, and train it or "
                "load its weights, before it is given here"
            )


def _check_rows(name: str, got: Any, count: int) -> None:
    if isinstance(got, torch.Tensor) and got.ndim == 2 and len(got) == count and got.dtype.is_floating_point:
        return
    if isinstance(got, torch.Tensor):
        what = f"{tuple(got.shape)}" + ("" if got.dtype.is_floating_point else f" of {got.dtype}")
    else:
        what = type(got).__name__
    expected = f"({count}, classes) for {'one image' if count == 1 else f'{count} images'}"
    raise ModelError(f"{name}: expected logits of shape {expected}, got {what}; {_advice(got)}")


def _advice(got: Any) -> str:
    """Say what outputs seem to be, and what to do."""
    if isinstance(got, torch.Tensor):
        return _advice_on_tensor(got)
    if isinstance(got, Mapping):
        return _advice_on_mapping(got)
    if isinstance(got, Sequence) and got:
        if isinstance(got[0], Mapping) and _BOXES & set(got[0]):
            return _unsupported("detection")
        if _is_map(got[0]):
            return _unsupported("segmentation or detection")
        if isinstance(got[0], torch.Tensor) and got[0].ndim > 2:
            return _advice_on_tensor(got[0])
    return _ONLY_LOGITS


def _advice_on_mapping(got: Mapping[Any, Any]) -> str:
    if _BOXES & set(got):
        return _unsupported("detection")
    # Classifiers may return maps of features beside their logits.
    main = [got[key] for key in ("logits", "out") if key in got] or got.values()
    if any(map(_is_map, main)):
        return _unsupported("segmentation")
    return f"it has the keys {', '.join(map(str, got))}: {_ONLY_LOGITS}"


def _advice_on_tensor(got: torch.Tensor) -> str:
    if _is_map(got):
        return _unsupported("segmentation")
    if got.ndim > 2 and got.shape[2:].numel() == 1:
        return "flatten the logits: return y.flatten(1)"
    if got.ndim > 2:
        return (
            "one row of logits per image is needed, and this is a row per token or box: average them, or take that of "
            "the class token (segmentation and detection are not supported)"
        )
    if got.ndim == 2:
        return "return one row of floating-point logits for each image of the batch"
    return "return the logits, not the chosen class, with the batch as first dimension"


def _is_map(got: Any) -> bool:
    """Tell whether these are maps (N, classes, H, W), or volumes."""
    return isinstance(got, torch.Tensor) and got.ndim >= 4 and got.shape[2:].numel() > 1


def _unsupported(task: str) -> str:
    return f"one row of logits per image is needed; this looks like {task}, which is not supported"
