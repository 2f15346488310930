"""Image classifiers in the format of transformers: a folder with config, safetensors and preprocessor."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from cema._util.names import first_line
from cema.errors import ModelError
from cema.models.loading import finish, import_package, read_weights, without_prefix
from cema.ondevice.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

    from cema.models.spec import Model

__all__ = ["LogitsOnly", "hugging_face", "read_preprocessor"]

_PREPROCESSOR = "preprocessor_config.json"


class LogitsOnly(nn.Module):
    """A transformers classifier that returns its logits and nothing else.

    Parameters
    ----------
    model : torch.nn.Module
        Called with ``pixel_values``, returns something with ``logits``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, height, width) to logits (N, classes)."""
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


def hugging_face(name: str, weights: Path | None, classes: int | None) -> Model:
    """Load an image classifier with transformers.

    Only safetensors are read, never pickled weights, and no code of the model's repository is run.

    Parameters
    ----------
    name : str
        ``hf:FOLDER`` or ``hf:NAME``, which transformers may download.
    weights : Path, optional
        A safetensors file in place of the source's own, with the keys that
        save_pretrained writes.
    classes : int, optional
        See `cema.models.registry.resolve`.

    Returns
    -------
    Model
        With the labels of its configuration, unless they are only numbered.

    Raises
    ------
    ModelError
        When transformers cannot be imported, the source is missing or incomplete, or weights do not fit.
    """
    transformers = import_package("transformers", name=name, install="transformers")
    where = name.partition(":")[2]
    try:
        config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
        auto = transformers.AutoModelForImageClassification
        with _no_progress_bars(transformers) if Path(where).is_dir() else contextlib.nullcontext():
            if weights is None:
                model, report = auto.from_pretrained(
                    where, use_safetensors=True, trust_remote_code=False, output_loading_info=True
                )
            else:
                if classes is not None:
                    config.num_labels = classes
                # transformers translates the keys that its save_pretrained writes, so it is given the tensors.
                untrained = auto.from_config(config)
                state = without_prefix(read_weights(weights, name=name), untrained.state_dict())
                model, report = type(untrained).from_pretrained(
                    None, config=config, state_dict=state, output_loading_info=True
                )
        settings = json.loads(_preprocessor_path(where).read_text("utf-8"))
    except ModelError:
        raise
    except Exception as error:  # whatever transformers or its downloader raises
        raise ModelError(_unloadable(name, error)) from error
    kinds = ("missing_keys", "mismatched_keys", *(("unexpected_keys",) if weights is not None else ()))
    wrong = sorted(str(key) for kind in kinds for key in report.get(kind, ()))
    if wrong:
        raise ModelError(
            f"{name}: its weights do not fit, {len(wrong)} keys are missing, unexpected or of another shape: "
            f"{', '.join(wrong[:5])}; use a model fine-tuned for classification, and exactly its weights"
        )
    preprocessing = read_preprocessor(settings, name=name, channels=int(getattr(config, "num_channels", 3)))
    labels = _labels(model.config.id2label)
    return finish(name, LogitsOnly(model), preprocessing, classes=classes, labels=labels)


@contextlib.contextmanager
def _no_progress_bars(transformers: Any) -> Iterator[None]:
    """Keep transformers from drawing over the progress of whoever loads a local model; a download keeps its bars."""
    log = transformers.utils.logging
    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()


def read_preprocessor(settings: dict[str, Any], *, name: str, channels: int = 3) -> Preprocessing:
    """Translate a ``preprocessor_config.json``.

    An image that the original would squeeze to a square is resized to cover it and cropped at its centre: the
    same for square images, and undistorted for others.

    Parameters
    ----------
    settings : dict
        The file's content.
    name : str
        The model, for messages.
    channels : int, default 3
        The model's input channels.

    Returns
    -------
    Preprocessing
        Mean and standard deviation in pixel units.

    Raises
    ------
    ModelError
        When there is no size, or a value is out of range.
    """
    try:
        height, width, crop = _geometry(settings)
        scale = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
        offset = 1.0 if settings.get("rescale_offset") else 0.0
        normalise = settings.get("do_normalize", True)
        mean = _per_channel(settings["image_mean"] if normalise else 0.0, channels)
        std = _per_channel(settings["image_std"] if normalise else 1.0, channels)
        if settings.get("include_top"):  # EfficientNet divides by its standard deviation a second time
            std = tuple(value * value for value in _per_channel(settings["image_std"], channels))
        return Preprocessing(
            height=height,
            width=width,
            channels=channels,
            mean=tuple((value + offset) / scale for value in mean),
            std=tuple(value / scale for value in std),
            crop=crop,
            interpolation="bilinear" if settings.get("resample") == 2 else "bicubic",
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"{name}: its {_PREPROCESSOR} is not understood ({first_line(error)}); expected size, image_mean "
            "and image_std. Wrap the model in a function of your own (package.module:function) that says them"
        ) from error


def _unloadable(name: str, error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if "torchvision::" in str(cause):  # transformers uses torchvision wherever it is installed
            return (
                f"{name}: transformers cannot be used beside a torchvision that does not match torch "
                f"({cause}); uninstall torchvision, which is not needed here, or install the build that "
                "matches torch"
            )
        cause = cause.__cause__ or cause.__context__
    return (
        f"{name}: cannot be loaded: {first_line(error)}; expected a folder (or a model's name) with "
        f"config.json, {_PREPROCESSOR} and model.safetensors of an image classifier. Weights in another "
        "format become safetensors with save_pretrained"
    )


def _geometry(settings: dict[str, Any]) -> tuple[int, int, float]:
    size = settings["size"]
    if isinstance(size, dict) and "shortest_edge" in size:
        edge = int(size["shortest_edge"])
        if "crop_pct" in settings and not settings.get("do_center_crop"):  # ConvNeXT
            return edge, edge, float(settings["crop_pct"] or 224 / 256) if edge < 384 else 1.0
        height = width = edge
    else:
        height, width = _sides(size)
    if settings.get("do_center_crop"):
        rows, columns = _sides(settings["crop_size"])
        return rows, columns, min(1.0, max(rows / height, columns / width))
    return height, width, 1.0


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    return int(size), int(size)


def _per_channel(value: Any, channels: int) -> tuple[float, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(float(item) for item in value)
    return (float(value),) * channels


def _preprocessor_path(where: str) -> Path:
    if Path(where).is_dir():
        return Path(where) / _PREPROCESSOR
    hub = import_package("huggingface_hub", name=f"hf:{where}", install="transformers")
    return Path(hub.hf_hub_download(where, _PREPROCESSOR))


def _labels(id2label: dict[int, str]) -> tuple[str, ...] | None:
    labels = tuple(str(id2label[index]) for index in sorted(id2label))
    return None if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else labels
