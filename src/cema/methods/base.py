"""The one protocol of every method of the benchmark: predict a batch, then learn from it.

An adapter begins as the source model. There is no way to reset one, and none is needed: make a new one.

Which uploads a method is charged for: methods that run on the device, none. Methods that learn from every image
(PL, Tent, CoTTA), every image. Methods with a filter (ETA, EATA, SAR), what it lets through to learning. CEMA, what
its edge selects. Only CEMA learns from what the cloud decodes; the others learn in the very pass that predicts, so
from the pixels as they were before encoding, which favours them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from cema._util.names import merged
from cema.errors import ConfigError, ModelError
from cema.formats.image import CodecConfig, decode_image, encode_image

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import numpy as np

    from cema.models.spec import Model

__all__ = [
    "REGISTERED",
    "Adapter",
    "AdapterFactory",
    "Method",
    "MethodContext",
    "NotApplicable",
    "Rates",
    "StepResult",
    "Uplink",
    "method",
]


class NotApplicable(ModelError):  # noqa: N818 - a finding about a method and a model, not a fault
    """A method cannot work with a model or a data set; the message says why and what to use instead."""


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step predicted, and what it cost.

    Attributes
    ----------
    logits : ndarray of float32 (N, C)
        What the device predicts for this batch.
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


class AdapterFactory(Protocol):
    """The constructor that every method has."""

    def __call__(self, edge: Model, config: Any = None, *, context: MethodContext) -> Adapter:
        """Make an adapter that begins as the model `edge`."""
        ...


Rates: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Settings by family of data (``"cifar"``), or by family and architecture (``"cifar/layernorm"``)."""
A = TypeVar("A")


@dataclass(frozen=True, eq=False)
class Method:
    """One row of the benchmark.

    Attributes
    ----------
    name : str
        The row's name.
    adapter : callable
        The class.
    config : type
        The structure of its settings.
    defaults : callable
        Makes the settings of an adapter that is given none.
    cost : float
        How long it takes, in passes of the source model: an estimate, until one was measured.
    colour : str or None
        In plots; None for one that follows from the name.
    papers : mapping of str to mapping
        What differs from the defaults by data, as papers have it, for streams of 10,000 images and more. Keys are
        families of data (``"cifar"``), or a family and an architecture (``"cifar/layernorm"``), which goes over it.
    short : mapping of str to mapping
        What goes over `papers` on streams of some thousand images (``--rates short``).
    """

    name: str
    adapter: AdapterFactory
    config: type[msgspec.Struct]
    defaults: Callable[[], msgspec.Struct]
    cost: float = 3.0
    colour: str | None = None
    papers: Rates = field(default_factory=dict)
    short: Rates = field(default_factory=dict)

    def rates(self, family: str, architecture: str, *, short: bool = False) -> dict[str, Any]:
        """Return what differs from the defaults for a family of data and an architecture."""
        found: dict[str, Any] = {}
        for table in (self.papers, self.short) if short else (self.papers,):
            for key in (family, f"{family}/{architecture}"):
                found = merged(found, table.get(key, {}))
        return found


REGISTERED: dict[str, Method] = {}
"""Every method whose file was imported, by name; `cema.methods.registry.METHODS` imports them."""


def method(
    name: str,
    *,
    config: type[msgspec.Struct],
    defaults: Callable[[], msgspec.Struct] | None = None,
    cost: float = 3.0,
    colour: str | None = None,
    papers: Rates | None = None,
    short: Rates | None = None,
) -> Callable[[type[A]], type[A]]:
    """Make a class a row of the benchmark: a decorator. One class may be several rows with other defaults.

    Parameters
    ----------
    name, config, cost, colour, papers, short
        See `Method`.
    defaults : callable, optional
        By default `config` without arguments.

    Raises
    ------
    ConfigError
        When another class has that name.

    Examples
    --------
    See ``examples/own_method.py``.
    """

    def register(adapter: type[A]) -> type[A]:
        known = REGISTERED.get(name)
        if known is not None and _place(known.adapter) != _place(adapter):
            raise ConfigError(
                f"expected a name of its own for the method {_place(adapter)}, got {name!r}, which is that of "
                f"{_place(known.adapter)}; choose another"
            )
        REGISTERED[name] = Method(
            name=name,
            adapter=adapter,  # type: ignore[arg-type]
            config=config,
            defaults=defaults or config,
            cost=cost,
            colour=colour,
            papers=papers or {},
            short=short or {},
        )
        return adapter

    return register


def _place(adapter: Any) -> str:
    return f"{adapter.__module__}:{adapter.__qualname__}"


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
