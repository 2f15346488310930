"""The one protocol of every method of the benchmark: predict a batch, then learn from it.

An adapter begins as the source model. There is no way to reset one, and none is needed: make a new one.

Which uploads a method is charged for: methods that run on the device, none. Methods that learn from every image
(PL, Tent, CoTTA), every image. Methods with a filter (ETA, EATA, SAR), what it lets through to learning. CEMA, what
its edge selects. Only CEMA learns from what the cloud decodes; the others learn in the very pass that predicts, so
from the pixels as they were before encoding, which favours them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from cema.errors import ModelError
from cema.formats.image import CodecConfig, decode_image, encode_image

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import numpy as np

    from cema.models.spec import Model

__all__ = ["Adapter", "MethodContext", "NotApplicable", "StepResult", "Uplink"]


class NotApplicable(ModelError):  # noqa: N818 - a finding about a method and a model, not a fault
    """A method cannot work with a model or a data set; the message says why and what to use instead."""


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step answered, and what it cost.

    Attributes
    ----------
    logits : ndarray of float32 (N, C)
        What the device answers to this batch.
    uploads : int
        Samples of this batch that had to reach the cloud.
    bytes_up : int
        Their encoded bytes.
    forwards : int
        Samples passed forward through any network; an augmented view counts as one.
    backwards : int
        Samples passed backward: those that the loss is made of.
    """

    logits: np.ndarray
    uploads: int
    bytes_up: int
    forwards: int
    backwards: int


class Adapter(Protocol):
    """An algorithm over a stream."""

    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch, then learn from it.

        Parameters
        ----------
        images : sequence of ndarray of uint8 (H, W, C)
            At least one image, of any sizes; C is 1 or 3.
        edge : int, default 0
            Which device of several saw the batch. Methods without a cloud have one model for all.

        Returns
        -------
        StepResult
            Logits in the order of the images, and the costs.
        """
        ...


@dataclass(frozen=True, eq=False)
class MethodContext:
    """What adapters are given beside the edge model and their own settings.

    Attributes
    ----------
    foundation : Model, optional
        The stronger model; CEMA needs it.
    source_images : sequence of ndarray of uint8 (H, W, C)
        Clean and unlabelled, from where the model was trained; EATA's Fisher information is taken on them.
    device : str
        A torch device.
    dtype : {"float32", "bfloat16"}
        Precision inside the networks.
    seed : int
        Of everything random. On a CPU the same seed gives the same numbers.
    batch : int
        Images in a batch of the stream.
    codec : CodecConfig, optional
        How images are encoded on their way up; None for its defaults.
    edges : int
        Devices that share what is learned.
    memo : dict
        What adapters worked out about `source_images` once, for the next ones made with this context (or with a copy
        by `dataclasses.replace`): the benchmark makes one adapter per corruption, and Fisher information is dear.
    """

    foundation: Model | None = None
    source_images: Sequence[np.ndarray] = ()
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    batch: int = 64
    codec: CodecConfig | None = None
    edges: int = 1
    memo: dict[Hashable, object] = field(default_factory=dict, repr=False)


class Uplink:
    """What goes over the link: images as a device encodes them, counted.

    Parameters
    ----------
    codec : CodecConfig, optional
        How images are encoded; None for its defaults.

    Attributes
    ----------
    samples, bytes : int
        Images counted so far, and their encoded bytes.
    """

    def __init__(self, codec: CodecConfig | None = None) -> None:
        self._codec = codec or CodecConfig()
        self.samples = 0
        self.bytes = 0

    def send(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encode images, count them, and return what the cloud decodes.

        Parameters
        ----------
        images : sequence of ndarray of uint8 (H, W, C)
            May be empty.

        Returns
        -------
        list of ndarray of uint8 (H, W, C)
            The same images, changed as far as the codec loses something.
        """
        return [decode_image(data) for data in self._encode(images)]

    def count(self, images: Sequence[np.ndarray]) -> int:
        """Encode images and count them only.

        Parameters
        ----------
        images : sequence of ndarray of uint8 (H, W, C)
            May be empty.

        Returns
        -------
        int
            The encoded bytes of these images.
        """
        return sum(map(len, self._encode(images)))

    def _encode(self, images: Sequence[np.ndarray]) -> list[bytes]:
        encoded = [encode_image(image, self._codec) for image in images]
        self.samples += len(encoded)
        self.bytes += sum(map(len, encoded))
        return encoded
