"""Observing statistics of a device's own inputs: one ONNX Runtime session for all versions of affine parameters."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cema.edge.session import open_session, releasing_options
from cema.errors import FormatError, LogitsError
from cema.formats.bundle import Bundle
from cema.formats.payload import NormState
from cema.ondevice.folding import check_statistics
from cema.ondevice.window import Blend

__all__ = ["StatisticsRuntime", "UnfoldedModel"]

_NORM, _KNOWN, _RATE, _OBSERVED = "norm", "known", "rate", "observed"
_SOURCE, _SHARE = "source_statistics", "source_share"

Float32 = npt.NDArray[np.float32]


class StatisticsRuntime:
    """A session over ``statistics.onnx``, the graph in which every BatchNorm blends known statistics with its input's.

    Parameters are an input of that graph, so the session serves every update. Any number of threads may use it at once.

    Parameters
    ----------
    bundle : Bundle
        One whose manifest lists layers with statistics.
    threads : int, default 1
        Threads one operator may use.

    Raises
    ------
    FormatError
        When the bundle has no such graph, or ONNX Runtime cannot load it.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        manifest = bundle.manifest
        if not manifest.statistics:
            raise FormatError(
                f"{bundle.path}: expected a bundle with statistics, got one without; export it again"
            )
        # Its weights lie in the file of the model, which is mapped for the moment and not read as a whole.
        with _mapped(bundle.model_path) as model:
            files: dict[str, bytes | mmap.mmap] = {bundle.model_path.name: model}
            self._session = open_session(bundle.statistics_path, files, threads=threads)
        # It has a default for devices from before there was one.
        self._mixes_source = _SHARE in {v.name for v in self._session.get_overridable_initializers()}
        self._bundle = bundle
        self._layers = manifest.statistics
        self._input, self._outputs = manifest.input_name, [manifest.output_name, _OBSERVED]
        self._classes = manifest.classes
        self._options = releasing_options()

    def under(self, affine: NormState) -> UnfoldedModel:
        """Return the model with affine parameters: for the layers with statistics weight and bias, not folded.

        Raises
        ------
        FormatError
            When they do not fit the model.
        """
        return UnfoldedModel(self, np.frombuffer(self._bundle.pack_norm(affine), "<f4").astype(np.float32))

    def check_share(self, share: float) -> None:
        """Raise FormatError when such a share of the source model's statistics cannot be mixed in: bundles of old."""
        if share and not self._mixes_source:
            raise FormatError(
                f"{self._bundle.path}: source_share = {share:g} needs a graph that mixes the source model's statistics "
                "in, and this bundle is from before there was one; export it again, or set source_share = 0"
            )

    def observe(self, batch: Float32, norm: Float32, blend: Blend) -> tuple[Float32, Float32]:
        """As `UnfoldedModel.observe`, of parameters (F,) that lie as in ``norm.bin``."""
        if len(batch) == 0:
            raise ValueError(
                "expected at least 1 image to observe, got none; an empty batch has no statistics"
            )
        for name, value in (("rate", blend.rate), ("share", blend.share)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {value}; correct it")
        known = check_statistics(blend.known, self._layers)
        feeds = {self._input: batch, _NORM: norm, _KNOWN: known, _RATE: np.array(blend.rate, np.float32)}
        self.check_share(blend.share)
        if self._mixes_source:
            source = known if blend.source is None else check_statistics(blend.source, self._layers)
            feeds |= {_SOURCE: source, _SHARE: np.array(blend.share, np.float32)}
        logits, observed = self._session.run(self._outputs, feeds, self._options)
        if logits.shape != (len(batch), self._classes) or observed.shape != known.shape:
            raise LogitsError(
                f"expected logits of shape {(len(batch), self._classes)} and statistics of shape {known.shape}, the "
                f"model gave {logits.shape} and {observed.shape}; export it again"
            )
        if not (np.isfinite(logits).all() and np.isfinite(observed).all()):
            raise LogitsError(
                "expected finite logits and statistics, got NaN or infinity; these statistics or parameters do not go "
                "with these images"
            )
        return np.asarray(logits, np.float32), np.asarray(observed, np.float32)


class UnfoldedModel:
    """The model with some affine parameters, and any statistics.

    Parameters
    ----------
    runtime : StatisticsRuntime
        Shared with other parameters.
    norm : ndarray of float32 (F,)
        They lie as in ``norm.bin``.
    """

    def __init__(self, runtime: StatisticsRuntime, norm: Float32) -> None:
        self._runtime, self._norm = runtime, norm

    def run(self, batch: Float32, statistics: Float32) -> Float32:
        """Return the logits (N, classes) of a preprocessed batch under statistics (2, K); raises as `observe`."""
        return self.observe(batch, Blend(statistics, 0.0))[0]

    def observe(self, batch: Float32, blend: Blend) -> tuple[Float32, Float32]:
        """Predict a batch with blended statistics, and tell what each layer observed.

        A layer that is given n values per channel normalises with the blend of their mean and unbiased variance, at the
        blend's rate; where n is 1, at a rate of 0. The memory of intermediate results is given back at the end.

        Parameters
        ----------
        batch : ndarray of float32 (N, channels, height, width)
            Preprocessed images, at least 1.
        blend : Blend
            Its arrays have the channels of the manifest's `statistics`, in their order.

        Returns
        -------
        logits : ndarray of float32 (N, classes)
        observed : ndarray of float32 (2, K)
            Each layer's mean and variance, not blended; what was known where it was given one value per channel.

        Raises
        ------
        ValueError
            When the batch is empty, or rate or share is not from 0 to 1.
        FormatError
            When statistics have another shape, are not finite, or have a negative variance; or as `check_share` does of
            the runtime.
        LogitsError
            When the model gives other shapes, or anything that is not finite.
        """
        return self._runtime.observe(batch, self._norm, blend)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise FormatError(f"{path}: cannot be read: {error}; provision it again") from error
    with mapped:
        yield mapped
