"""Running the exported model: one ONNX Runtime session per version of the norm state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cema.edge.session import open_session, releasing_options
from cema.edge.system import return_free_memory, run_behind
from cema.errors import CemaError, FormatError, LogitsError
from cema.formats.bundle import Bundle, check_golden
from cema.formats.payload import NormState, Payload
from cema.formats.update import UpdateManifest
from cema.ondevice.drift import Domain, statistics_size
from cema.ondevice.folding import fold

__all__ = ["Active", "Check", "PackedPayload", "Runtime", "build_active", "build_runtime", "pack_payload"]


class Runtime:
    """A session over ``model.onnx`` with one norm state in place of the bundle's ``norm.bin``.

    The file of norm parameters is replaced in memory, before the graph is optimised: a session's weights
    cannot be exchanged afterwards, because ONNX Runtime has folded them into others by then.

    Parameters
    ----------
    bundle : Bundle
    norm : bytes, optional
        A norm state as `Bundle.pack_norm` lays it out: that refuses NaN and infinity, which ONNX Runtime would accept
        without a word. The bundle's own when left out.
    threads : int, default 1
        Threads one operator may use.

    Raises
    ------
    FormatError
        When ONNX Runtime cannot load the model.
    """

    def __init__(self, bundle: Bundle, norm: bytes | None = None, *, threads: int = 1) -> None:
        manifest = bundle.manifest
        norm = bundle.pack_norm(bundle.norm_state()) if norm is None else norm
        self._session = open_session(bundle.model_path, {manifest.norm_file: norm}, threads=threads)
        self._input, self._output = manifest.input_name, manifest.output_name
        self._classes = manifest.classes
        inputs = manifest.preprocessing
        self._shape = (1, inputs.channels, inputs.height, inputs.width)
        self._releasing = releasing_options()
        self._holds = False

    def run(self, batch: npt.NDArray[np.float32], *, release: bool = False) -> npt.NDArray[np.float32]:
        """Return the logits of a preprocessed batch. Any number of threads may call this at once.

        Parameters
        ----------
        batch : ndarray of float32 (N, channels, height, width)
        release : bool, default False
            Give back, at the end, the memory of intermediate results, which the session else keeps for the next call.

        Returns
        -------
        ndarray of float32 (N, classes)

        Raises
        ------
        LogitsError
            When the model gives another shape.
        """
        self._holds = not release
        options = self._releasing if release else None
        (logits,) = self._session.run([self._output], {self._input: batch}, options)
        if logits.shape != (len(batch), self._classes):
            raise LogitsError(
                f"expected logits of shape {(len(batch), self._classes)}, the model gave {logits.shape}; "
                "export it again"
            )
        return np.asarray(logits, np.float32)

    def release(self) -> None:
        """Give back the memory of intermediate results, if there is any: this model is not to be run for a while."""
        if self._holds:
            self.run(np.zeros(self._shape, np.float32), release=True)


def build_runtime(
    bundle: Bundle,
    norm: bytes | None = None,
    golden_logits: npt.NDArray[np.float32] | None = None,
    *,
    threads: int = 1,
) -> Runtime:
    """Build a runtime and let it serve only if it predicts the golden batch as it should.

    Parameters
    ----------
    bundle : Bundle
    norm : bytes, optional
        A norm state as `Bundle.pack_norm` lays it out; the bundle's own when left out.
    golden_logits : ndarray of float32 (G, classes), optional
        What the bundle's golden images must give; the bundle's own when left out.
    threads : int, default 1

    Returns
    -------
    Runtime

    Raises
    ------
    FormatError
        When the model cannot be loaded.
    LogitsError
        When the golden batch comes out wrong.
    """
    runtime = Runtime(bundle, norm, threads=threads)
    expected = bundle.golden_logits if golden_logits is None else golden_logits
    check_golden(_on_golden_images(runtime, bundle), expected, bundle.manifest.tolerance)
    return_free_memory()
    return runtime


def _on_golden_images(runtime: Runtime, bundle: Bundle) -> npt.NDArray[np.float32]:
    prepare, images = bundle.manifest.preprocessing, bundle.golden_images
    # One by one: the session keeps, for as long as it lives, the memory that the largest batch so far has taken.
    return np.concatenate([runtime.run(prepare(images[i : i + 1]), release=True) for i in range(len(images))])


Check: TypeAlias = Callable[[NormState, npt.NDArray[np.float32]], None]
"""Tries weights and biases on the golden batch: given them and its logits; LogitsError when others come out."""


@dataclass(frozen=True)
class Active:
    """The model that serves: replaced as a whole, by one assignment.

    Attributes
    ----------
    runtime : Runtime or None
        None where the device folds statistics of its own into `affine` (`cema.edge.own_model`).
    version : int
        0 is the norm state the device was provisioned with.
    digest : str or None
        SHA-256 of the update's payload.
    domain : Domain or None
        What the inputs looked like that it was made from.
    affine : dict of str to ndarray of float32 (size,), or None
        Its weights and biases apart from statistics; None for an update that has statistics folded into them.
    statistics : ndarray of float32 (2, K) or None
        Those that `affine` was learned with, where the update tells.
    """

    runtime: Runtime | None
    version: int = 0
    digest: str | None = None
    domain: Domain | None = None
    affine: NormState | None = field(default=None, compare=False)
    statistics: npt.NDArray[np.float32] | None = field(default=None, compare=False)

    @property
    def model(self) -> Runtime:
        """What runs; for one that was built."""
        if self.runtime is None:
            raise CemaError(f"version {self.version} has no session of its own; run it with own statistics")
        return self.runtime


class PackedPayload(NamedTuple):
    """A payload's norm state as the runtime takes it.

    Attributes
    ----------
    golden : bytes
        That with which the payload's golden logits hold.
    serving : bytes
        That which is to serve: the same, or with the payload's own statistics in place of the bundle's.
    """

    golden: bytes
    serving: bytes


def pack_payload(bundle: Bundle, payload: Payload) -> PackedPayload:
    """Lay out a payload's norm state for the runtime.

    A payload in which weights and biases are apart from statistics is folded: with the bundle's statistics for the
    golden batch, and to serve with its own, if it has any.

    Parameters
    ----------
    bundle : Bundle
    payload : Payload

    Returns
    -------
    PackedPayload

    Raises
    ------
    FormatError
        When it does not fit the bundle, or a parameter is not finite once it is folded.
    """
    _check_domain(bundle, payload.domain)
    if not payload.unfolded:
        norm = bundle.pack_norm(payload.norm_state)
        return PackedPayload(norm, norm)
    source, layers = bundle.statistics(), bundle.manifest.statistics
    if source is None:
        raise FormatError(
            "expected an update with statistics folded into it, got one with weights and biases apart, and this "
            f"device's bundle {bundle.path} has no statistics to fold: export the bundle again, and provision the "
            "device and its cohort with it"
        )
    norm = bundle.pack_norm(fold(payload.norm_state, source, layers))
    if payload.statistics is None:
        return PackedPayload(norm, norm)
    return PackedPayload(norm, bundle.pack_norm(fold(payload.norm_state, payload.statistics, layers)))


def _check_domain(bundle: Bundle, domain: Domain | None) -> None:
    inputs = bundle.manifest.preprocessing
    size = statistics_size(inputs.channels, inputs.height, inputs.width)
    if domain is not None and domain.mean.size != size:
        raise FormatError(
            f"expected an environment of {size} statistics, got {domain.mean.size}: the cloud and this device "
            "describe inputs differently; bring both to one version of CEMA"
        )


def build_active(
    bundle: Bundle,
    manifest: UpdateManifest,
    payload: Payload,
    norm: PackedPayload,
    *,
    threads: int = 1,
    behind: bool = True,
    check: Check | None = None,
) -> Active:
    """Build what a verified update describes; `norm` comes from `pack_payload`.

    Parameters
    ----------
    bundle : Bundle
    manifest : UpdateManifest
    payload : Payload
    norm : PackedPayload
    threads : int, default 1
    behind : bool, default True
        Leave the processor to predictions meanwhile (`cema.edge.system.run_behind`). With more than one thread the
        build takes its share all the same: the session's own threads would stay slow.
    check : callable, optional
        Tries weights and biases on the golden batch, where the device folds statistics of its own into them: then no
        session is built for an update that has them apart.

    Returns
    -------
    Active

    Raises
    ------
    FormatError
        When ONNX Runtime cannot load the model.
    LogitsError
        When the golden batch comes out wrong, or with the payload's statistics not finite.
    """

    def build() -> Runtime:
        runtime = build_runtime(bundle, norm.golden, payload.golden_logits, threads=threads)
        if norm.serving == norm.golden:
            return runtime
        # One at a time: a device may not have the memory for both.
        del runtime
        return _build_unchecked(bundle, norm.serving, threads)

    runtime: Runtime | None = None
    if check is not None and payload.unfolded:
        check(payload.norm_state, payload.golden_logits)
    else:
        runtime = run_behind(build) if behind and threads == 1 else build()
    affine = payload.norm_state if payload.unfolded else None
    return Active(
        runtime, manifest.version, manifest.payload, payload.domain, affine, statistics=payload.statistics
    )


def _build_unchecked(bundle: Bundle, norm: bytes, threads: int) -> Runtime:
    """Build a runtime for which there are no golden logits; of those it gives one can only ask that they be finite."""
    runtime = Runtime(bundle, norm, threads=threads)
    if not np.isfinite(_on_golden_images(runtime, bundle)).all():
        raise LogitsError(
            "expected finite logits on the golden images with the update's statistics, got NaN or infinity"
        )
    return_free_memory()
    return runtime
