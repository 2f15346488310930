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

__all__ = ["StatisticsRuntime", "UnfoldedModel"]

_NORM, _KNOWN, _RATE, _OBSERVED = "norm", "known", "rate", "observed"

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

    def observe(self, batch: Float32, norm: Float32, known: Float32, rate: float) -> tuple[Float32, Float32]:
        """As `UnfoldedModel.observe`, of parameters (F,) that lie as in ``norm.bin``."""
        if len(batch) == 0:
            raise ValueError(
                "expected at least 1 image to observe, got none; an empty batch has no statistics"
            )
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate: expected a number from 0 to 1, got {rate}; correct it")
        known = check_statistics(known, self._layers)
        feeds = {self._input: batch, _NORM: norm, _KNOWN: known, _RATE: np.array(rate, np.float32)}
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
        return self.observe(batch, statistics, 0.0)[0]

    def observe(self, batch: Float32, known: Float32, rate: float) -> tuple[Float32, Float32]:
        """Predict a batch with blended statistics, and tell what each layer observed.

        A layer that is given n values per channel, of mean m and unbiased variance v, normalises with

            r        = rate * min(n - 1, 1)
            mean     = (1 - r) * known mean + r * m
            variance = (1 - r) * known variance + r * v + r * (1 - r) * (m - known mean)^2

        The memory of intermediate results is given back at the end.

        Parameters
        ----------
        batch : ndarray of float32 (N, channels, height, width)
            Preprocessed images, at least 1.
        known : ndarray of float32 (2, K)
            Means and variances of all channels of the manifest's `statistics`, in their order.
        rate : float
            The share of the batch in the blend, from 0 to 1.

        Returns
        -------
        logits : ndarray of float32 (N, classes)
        observed : ndarray of float32 (2, K)
            Each layer's m and v, not blended; what was known where a layer was given one value per channel.

        Raises
        ------
        ValueError
            When the batch is empty or the rate is not from 0 to 1.
        FormatError
            When `known` has another shape, is not finite, or has a negative variance.
        LogitsError
            When the model gives other shapes, or anything that is not finite.
        """
        return self._runtime.observe(batch, self._norm, known, rate)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise FormatError(f"{path}: cannot be read: {error}; provision it again") from error
    with mapped:
        yield mapped
