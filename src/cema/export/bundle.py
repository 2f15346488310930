"""From a torch model to a bundle that a device runs and can update.

The exported graph contains every normalisation layer folded to a scale and a shift (see `cema.models.norm_state`).
Their values lie in an external file of their own, and an update replaces that file in memory. Whether this works is
not taken on trust: the graph is compared with torch at the source norm state and at a perturbed one.

A second graph observes statistics of BatchNorm layers (see `cema.export.statistics_graph`). A model for which it cannot
be made is exported without.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from torch import nn

from cema._util.version import __version__
from cema.errors import CemaError, ExportError, LogitsError, ModelError
from cema.export.onnx_graph import (
    INPUT_NAME,
    OUTPUT_NAME,
    build_graph,
    move_norm_parameters,
)
from cema.export.session import open_session
from cema.export.statistics import make_statistics, source_statistics
from cema.formats.bundle import Bundle, BundleStatistics, check_golden, norm_layout, write_bundle
from cema.formats.bundle_manifest import NORM_FILE, pack_norm
from cema.formats.keys import load_public_key
from cema.models.checks import check_module, varied_inputs
from cema.models.copying import copy_module
from cema.models.left_out import found_no_norm_layer, left_out_layers
from cema.models.norm_kinds import affine_names
from cema.models.norm_state import (
    ensure_affine,
    folded_norm_state,
    load_folded,
    norm_layers,
    without_statistics,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from cema.formats.bundle_manifest import NormTensor
    from cema.models.spec import Model
    from cema.ondevice.preprocess import Preprocessing

__all__ = ["ExportReport", "export_bundle"]

# How far the check moves the norm state: much farther than an update does, near enough to stay finite.
_PERTURBATION = 0.1
# Clean images that go through the model at a time.
_CLEAN_BATCH = 16


@dataclass(frozen=True)
class ExportReport:
    """What an export made, and how well it agrees with torch.

    Attributes
    ----------
    bundle : Bundle
        As written.
    max_abs_difference : float
        The largest absolute difference between a logit of ONNX Runtime and of torch, over all checks.
    norm_layers : int
        How many normalisation layers an update changes.
    norm_bytes, model_bytes : int
        The sizes of ``norm.bin`` and ``model.onnx``.
    seconds : float
        How long it took.
    left_out : mapping of str to str
        Normalisation that no update changes, because it is of no kind that can be adapted: the class, or the function
        that a module calls, by module name.
    statistics_layers : int
        Of how many layers a device can observe statistics of its own.
    statistics_bytes : int
        The size of ``statistics.onnx``.
    statistics_note : str or None
        Why a device can observe none; None where it can.
    """

    bundle: Bundle
    max_abs_difference: float
    norm_layers: int
    norm_bytes: int
    model_bytes: int
    seconds: float
    left_out: Mapping[str, str] = field(default_factory=dict)
    statistics_layers: int = 0
    statistics_bytes: int = 0
    statistics_note: str | None = None


def export_bundle(
    model: Model,
    path: Path | str,
    *,
    public_keys: Sequence[Path | Ed25519PublicKey],
    labels: Sequence[str] | None = None,
    upload_side: int | None = None,
    clean_images: Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8] | None = None,
    golden: int = 4,
    seed: int = 0,
    tolerance: float = 1e-3,
    overwrite: bool = False,
) -> ExportReport:
    """Export a model for devices.

    Parameters
    ----------
    model : Model
        Not changed.
    path : Path or str
        The folder to write.
    public_keys : sequence of Path or Ed25519PublicKey
        Whose updates the device accepts.
    labels : sequence of str, optional
        In place of the model's own.
    upload_side : int, optional
        The shorter side, in pixels, beyond which an uploaded image is of no further use.
    clean_images : sequence of ndarray of uint8 (H, W, C), or ndarray of uint8 (N, H, W, C), optional
        Images of the domain that the model was made for, read a few at a time. The bundle gets the mean of the model's
        logits over them, with which a device can centre the logits that it sees.
    golden : int, default 4
        How many golden images the bundle carries.
    seed : int, default 0
        Of the golden images and the checks.
    tolerance : float, default 1e-3
        The largest difference allowed between ONNX Runtime and torch, relative to the largest logit
        (`cema.formats.bundle.check_golden`). It becomes the bundle's.
    overwrite : bool, default False
        Replace a bundle that is there already.

    Returns
    -------
    ExportReport
        The bundle and the measured difference.

    Raises
    ------
    ExportError
        When the model does not return logits (`cema.models.checks.check_module`), has no norm layer that can be
        updated, cannot be copied or exported, or the exported graph differs from torch by more than `tolerance`; the
        message names the layer or operation and what to do. When there are no clean images, or the model's logits on
        them are not finite.
    ImageError
        When a clean image is none.
    """
    started = time.perf_counter()
    if golden < 1:
        raise ExportError(
            f"expected at least 1 golden image, got {golden}; a device checks updates with them"
        )
    rng = np.random.default_rng(seed)
    subject = _prepare(model, max(golden, 3), rng, clean_images)
    graph = _graph(subject, rng)
    difference = _check(subject, graph, tolerance, rng)
    statistics, note = _statistics(subject, graph, tolerance, rng)
    bundle = write_bundle(
        Path(path),
        model=model.name,
        model_bytes=graph,
        norm_state=subject.norm_state,
        norm=subject.layout,
        statistics=statistics,
        mean_logits=subject.mean_logits,
        golden_images=subject.images[:golden],
        golden_logits=subject.logits[:golden],
        preprocessing=model.preprocessing,
        classes=model.classes,
        labels=model.labels if labels is None else tuple(labels),
        input_name=INPUT_NAME,
        output_name=OUTPUT_NAME,
        upload_side=upload_side,
        tolerance=tolerance,
        created_by=f"cema {__version__}",
        public_keys=[load_public_key(key) if isinstance(key, (str, Path)) else key for key in public_keys],
        overwrite=overwrite,
    )
    return ExportReport(
        bundle=bundle,
        max_abs_difference=difference,
        norm_layers=len(norm_layers(subject.module)),
        norm_bytes=bundle.norm_path.stat().st_size,
        model_bytes=len(graph),
        seconds=time.perf_counter() - started,
        left_out=subject.left_out,
        statistics_layers=0 if statistics is None else len(statistics.layers),
        statistics_bytes=0 if statistics is None else len(statistics.graph),
        statistics_note=note,
    )


@dataclass(frozen=True)
class _Subject:
    """A copy of the model, its norm state, and what torch makes of some images before anything is changed."""

    name: str
    module: nn.Module
    norm_state: dict[str, np.ndarray]
    layout: tuple[NormTensor, ...]
    images: np.ndarray
    inputs: np.ndarray
    logits: np.ndarray
    left_out: dict[str, str]
    source: dict[str, np.ndarray]
    mean_logits: list[float] | None


def _prepare(
    model: Model,
    count: int,
    rng: np.random.Generator,
    clean: Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8] | None,
) -> _Subject:
    module = _checked_copy(model)
    norm_state = folded_norm_state(module)
    images = _random_images(model.preprocessing, count, rng)
    inputs = model.preprocessing(images)
    _keep_inputs(module, inputs)
    logits = _torch_logits(module, inputs)
    left_out = left_out_layers(module, torch.from_numpy(inputs[:1]))
    return _Subject(
        name=model.name,
        module=module,
        norm_state=norm_state,
        layout=norm_layout(norm_state),
        images=images,
        inputs=inputs,
        logits=logits,
        left_out=left_out,
        source=source_statistics(module),
        mean_logits=None if clean is None else _mean_logits(model, module, clean),
    )


def _checked_copy(model: Model) -> nn.Module:
    if isinstance(model.module, torch.jit.ScriptModule):
        raise ExportError(
            f"{model.name}: is a TorchScript module, which cannot be exported; give the torch.nn.Module that it was "
            "made from"
        )
    try:
        module = copy_module(model).to("cpu", torch.float32)
        check_module(model.name, module, model.preprocessing, classes=model.classes)
    except ModelError as error:
        raise ExportError(str(error)) from error
    module.requires_grad_(False)
    layers = norm_layers(module)
    if not layers:
        left_out = left_out_layers(module, varied_inputs(model.preprocessing, 1))
        raise ExportError(f"{model.name}: {found_no_norm_layer(left_out)}")
    lacking = without_statistics(layers)
    if lacking is not None:
        raise ExportError(
            f"{model.name}: {lacking} is a BatchNorm without running statistics, which makes an image's "
            "answer depend on its batch; train it with track_running_stats=True, or use GroupNorm"
        )
    ensure_affine(module)
    return module


def _mean_logits(
    model: Model, module: nn.Module, images: Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8]
) -> list[float]:
    if len(images) == 0:
        raise ExportError(f"{model.name}: expected at least 1 clean image, got none; leave clean_images out")
    total = np.zeros(model.classes)
    for start in range(0, len(images), _CLEAN_BATCH):
        logits = _torch_logits(module, model.preprocessing(images[start : start + _CLEAN_BATCH]))
        total += logits.sum(axis=0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise ExportError(f"{model.name}: its logits on the clean images are not finite; check its weights")
    mean: list[float] = (total / len(images)).tolist()
    return mean


def _statistics(
    subject: _Subject, graph: bytes, tolerance: float, rng: np.random.Generator
) -> tuple[BundleStatistics | None, str | None]:
    """Return what lets devices observe statistics, or None and why there is nothing."""
    try:
        made = make_statistics(
            subject.module,
            graph,
            layout=subject.layout,
            norm_state=subject.norm_state,
            source=subject.source,
            inputs=subject.inputs,
            logits=subject.logits,
            tolerance=tolerance,
            change=lambda state: _perturb(state, rng),
        )
    except CemaError as error:
        return None, str(error)
    except Exception as error:  # whatever the model's own code does with layers of another class
        return None, f"{type(error).__name__}: {error}"
    return made, None


def _keep_inputs(module: nn.Module, inputs: np.ndarray) -> None:
    """Give a forward that changes its input a copy, in the graph too, whose input would else be an output."""
    given = torch.from_numpy(inputs.copy())
    with torch.inference_mode():
        module(given)
    if not np.array_equal(given.numpy(), inputs):
        module.register_forward_pre_hook(lambda _, args: (args[0].clone(), *args[1:]))


def _graph(subject: _Subject, rng: np.random.Generator) -> bytes:
    """Export the folded module with its norm parameters outside."""
    load_folded(subject.module, subject.norm_state)
    proto = build_graph(subject.module, torch.from_numpy(subject.inputs[:2]))
    names = _parameter_names(subject.module)
    absent = move_norm_parameters(proto, subject.layout, names, NORM_FILE)
    _check_unused(subject, absent, names, rng)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _parameter_names(module: nn.Module) -> dict[str, list[str]]:
    """Return all names of each norm parameter: a layer that is registered twice has two, and the graph one of them."""
    names: dict[int, list[str]] = {}
    for kind in (module.named_parameters, module.named_buffers):
        for name, tensor in kind(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(name)
    return {
        f"{layer_name}.{kind}": names[id(getattr(layer, key))]
        for layer_name, layer in norm_layers(module).items()
        for kind, key in affine_names(layer).items()
    }


def _check_unused(
    subject: _Subject, absent: Sequence[str], names: Mapping[str, Sequence[str]], rng: np.random.Generator
) -> None:
    """A parameter that is not in the graph may only be one that torch does not use either."""
    module, norm_state = subject.module, subject.norm_state
    before = _torch_logits(module, subject.inputs) if absent else subject.logits
    for key in absent:
        load_folded(module, norm_state | _perturb({key: norm_state[key]}, rng))
        changed = not np.array_equal(before, _torch_logits(module, subject.inputs))
        load_folded(module, norm_state)
        if changed:
            name = key.rpartition(".")[0]
            raise ExportError(
                f"{name}: the exported graph has no parameter {' or '.join(names[key])}, so updates could not "
                f"change this {type(norm_layers(module)[name]).__name__}; let forward call the layer as it is"
            )


def _check(subject: _Subject, graph: bytes, tolerance: float, rng: np.random.Generator) -> float:
    """Compare the graph with torch at the source norm state and at another one."""
    perturbed = _perturb(subject.norm_state, rng)
    load_folded(subject.module, perturbed)
    changed = _torch_logits(subject.module, subject.inputs)
    if np.array_equal(subject.logits, changed):
        raise ExportError(
            f"{subject.name}: its logits do not depend on its norm layers, so there is nothing to adapt; "
            "check that forward uses them"
        )
    largest = 0.0
    for norm_state, expected, where in (
        (subject.norm_state, subject.logits, "at its own norm state"),
        (perturbed, changed, "after a change of the norm state, as an update makes it"),
    ):
        session = open_session(graph, {NORM_FILE: pack_norm(subject.layout, norm_state)})
        # One image alone and then the others together, which also tries the dynamic batch.
        parts = (subject.inputs[:1], subject.inputs[1:])
        got = np.concatenate([session.run([OUTPUT_NAME], {INPUT_NAME: part})[0] for part in parts])
        try:
            check_golden(got, expected, tolerance)
        except LogitsError as error:
            raise ExportError(
                f"{subject.name}: the exported model differs from torch {where}: {error}. A forward that "
                "leaves torch, or stores tensors made from norm parameters, does this; so does a tolerance "
                "below what float32 holds"
            ) from error
        largest = max(largest, float(np.abs(got - expected).max()))
    return largest


def _perturb(norm_state: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    changed = {}
    for key, value in norm_state.items():
        size = max(float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))), 0.1)
        noise = rng.standard_normal(value.shape) * _PERTURBATION
        changed[key] = (value + noise * size).astype(np.float32)
    return changed


def _random_images(preprocessing: Preprocessing, count: int, rng: np.random.Generator) -> np.ndarray:
    """Make images with coarse and fine structure, in the size that no resizing changes."""
    height, width = (round(side / preprocessing.crop) for side in (preprocessing.height, preprocessing.width))
    shape = (count, height, width, preprocessing.channels)
    coarse = rng.uniform(0, 255, (count, 8, 8, preprocessing.channels))
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    images = coarse[:, rows[:, None], columns] + rng.normal(0, 20, shape)
    return np.asarray(np.clip(np.round(images), 0, 255), np.uint8)


def _torch_logits(module: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = module(torch.from_numpy(inputs.copy())).numpy()
    return logits
