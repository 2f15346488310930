"""What every model of this package is, wherever it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cema.errors import ModelError
from cema.models.wrappers import unwrapped

if TYPE_CHECKING:
    from torch import nn

    from cema.ondevice.preprocess import Preprocessing

__all__ = ["Model"]


@dataclass(frozen=True)
class Model:
    """A classifier and what has to be known to feed it.

    Attributes
    ----------
    name : str
        How the model was asked for, such as ``"digits-cnn"`` or ``"timm:resnet18"``.
    module : torch.nn.Module
        In evaluation mode, float32, on the CPU. Maps float32 images (N, channels, height, width) to float32
        logits (N, classes). A wrapper (``DataParallel``, ``DistributedDataParallel``, ``torch.compile``) is removed.
    preprocessing : cema.ondevice.preprocess.Preprocessing
        From uint8 images to the module's input.
    classes : int
        The number of logits, at least 2.
    labels : tuple of str, optional
        The names of the classes in the order of the logits.

    Raises
    ------
    ModelError
        When there are fewer than two classes, or as many labels as classes is not what there are.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    classes: int
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", unwrapped(self.module))
        if self.classes < 2:
            raise ModelError(
                f"{self.name}: a classifier has at least 2 classes, got {self.classes}; entropy needs two"
            )
        if self.labels is not None and len(self.labels) != self.classes:
            raise ModelError(
                f"{self.name}: expected one label for each of {self.classes} classes, got "
                f"{len(self.labels)}; pass as many labels as the model has logits, in their order, or none"
            )
