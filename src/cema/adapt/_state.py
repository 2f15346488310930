"""An adapter's state as tensors and JSON: nothing that has to be executed to be read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cema.errors import FormatError, ModelError

if TYPE_CHECKING:
    from cema.adapt._adapted import AdaptedModel
    from cema.adapt.cema import CemaAdapter
    from cema.models.spec import Model

__all__ = ["FORMAT", "AdapterState", "check_pair", "collect", "decode", "encode", "restore"]

FORMAT = "cema.adapter/1"


class AdapterState(NamedTuple):
    """Everything an exact continuation needs.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
        Contiguous, on the CPU.
    values : dict
        What JSON can hold.
    """

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


def check_pair(edge: Model, foundation: Model) -> None:
    """Refuse two models that do not speak of the same classes."""
    if edge.classes != foundation.classes:
        raise ModelError(
            f"expected both models to have the same classes, got {edge.classes} of {edge.name} and "
            f"{foundation.classes} of {foundation.name}; distillation compares class by class"
        )
    if edge.labels and foundation.labels and edge.labels != foundation.labels:
        raise ModelError(
            f"expected {edge.name} and {foundation.name} to name the same classes in the same order; reorder "
            "the foundation model's logits, or leave its labels out if only the wording differs"
        )


def collect(adapter: CemaAdapter[Any]) -> AdapterState:
    """Read an adapter's state; tensors are copies."""
    tensors: dict[str, torch.Tensor] = {}
    models: dict[str, Any] = {}
    for side, model in _sides(adapter).items():
        tensors.update({f"{side}.{key}": value for key, value in _model_tensors(model).items()})
        window, progress = model.statistics.state()
        tensors.update({f"{side}.{key}": value for key, value in window.items()})
        models[side] = {"name": model.name, "source": model.source_digest, **progress}
    inputs, surroundings = adapter.surroundings.state()
    tensors.update(inputs)
    values = {
        "format": FORMAT,
        "models": models,
        "counters": dict(adapter.counters),
        "since_change": adapter.since_change,
        "surroundings": surroundings,
        "rng": adapter._rng.bit_generator.state,
        "replay": [_plain(item) for item in adapter.replay.items()],
    }
    return AdapterState(tensors, values)


def restore(adapter: CemaAdapter[Any], state: AdapterState) -> None:
    """Check a state against an adapter, then put it in."""
    tensors, values = state
    _check_values(adapter, values)
    expected: dict[str, torch.Size] = {}
    for side, model in _sides(adapter).items():
        expected.update(_expected_shapes(side, model, values["models"][side], tensors))
    for i, shape in enumerate(values["surroundings"]["shapes"]):
        expected[f"inputs.{i}"] = torch.Size(shape)
    _check_tensors(expected, tensors)
    for side, model in _sides(adapter).items():
        own = {key.removeprefix(f"{side}."): t for key, t in tensors.items() if key.startswith(f"{side}.")}
        progress = values["models"][side]
        _load_model(model, own)
        model.statistics.load(own, progress)
    adapter.counters.update(values["counters"])
    adapter._rng.bit_generator.state = values["rng"]
    adapter.since_change = values["since_change"]
    adapter.surroundings.load(tensors, values["surroundings"])
    adapter.replay.load(values["replay"])


def encode(state: AdapterState) -> bytes:
    """Write a state as one safetensors file with the JSON part in its metadata."""
    text = json.dumps(state.values, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return save_tensors(state.tensors, metadata={"cema": text})


def decode(data: bytes) -> AdapterState:
    """Read what `encode` wrote."""
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        return AdapterState(load_tensors(data), json.loads(metadata["cema"]))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"expected an adapter state in safetensors, got {len(data)} bytes that are none ({error}); "
            "use an earlier state or start anew"
        ) from error


def _sides(adapter: CemaAdapter[Any]) -> dict[str, AdaptedModel]:
    return {"edge": adapter.edge, "foundation": adapter.foundation}


def _plain(item: object) -> object:
    if item is None or isinstance(item, str | int | float):
        return item
    raise TypeError(
        f"expected replayed items that JSON can hold (ids such as strings), got {type(item).__name__}; give "
        "the adapter ids and a decode function to save its state"
    )


def _model_tensors(model: AdaptedModel) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.parameters.items():
        found[f"parameter.{name}"] = parameter
        momentum = model.optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            found[f"momentum.{name}"] = momentum
    for name, layer in model.layers.items():
        found[f"running_mean.{name}"] = layer.running_mean
        found[f"running_var.{name}"] = layer.running_var
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in found.items()}


def _load_model(model: AdaptedModel, own: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.parameters.items():
            parameter.copy_(own[f"parameter.{name}"])
            momentum = own.get(f"momentum.{name}")
            model.optimizer.state.pop(parameter, None)
            if momentum is not None:
                model.optimizer.state[parameter] = {
                    "momentum_buffer": momentum.to(parameter.device, copy=True)
                }
        for name, layer in model.layers.items():
            layer.running_mean.copy_(own[f"running_mean.{name}"])
            layer.running_var.copy_(own[f"running_var.{name}"])


def _expected_shapes(
    side: str, model: AdaptedModel, progress: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Size]:
    shapes = {f"{side}.{key}": value.shape for key, value in _model_tensors(model).items()}
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith(f"{side}.momentum.")}
    for name, parameter in model.parameters.items():
        # Before its first step an optimiser has no momentum.
        if f"{side}.momentum.{name}" in tensors:
            shapes[f"{side}.momentum.{name}"] = parameter.shape
    total = sum(layer.running_mean.numel() for layer in model.layers.values())
    for i in range(len(progress["counts"])):
        shapes[f"{side}.window.{i}"] = torch.Size((2, total))
    return shapes


def _check_values(adapter: CemaAdapter[Any], values: dict[str, Any]) -> None:
    if values.get("format") != FORMAT:
        raise FormatError(
            f"expected an adapter state of format {FORMAT}, got {values.get('format')!r}; start anew"
        )
    try:
        needed = ("counters", "since_change", "surroundings", "rng", "replay")
        complete = (
            all(key in values for key in needed)
            and {"changes", "mixed", "shapes"} <= values["surroundings"].keys()
            and all(
                {"name", "source", "started", "counts"} <= values["models"][side].keys()
                for side in _sides(adapter)
            )
        )
    except (KeyError, AttributeError, TypeError):
        complete = False
    if not complete:
        raise FormatError(
            "the adapter state lacks one of models, counters, surroundings, rng and replay; use another or start anew"
        )
    for side, model in _sides(adapter).items():
        told = values["models"][side]
        if told["source"] != model.source_digest:
            raise FormatError(
                f"the adapter state began from another {side} model ({told['name']}, "
                f"{told['source'][:12]}), and this one is {model.name}, {model.source_digest[:12]}; use the "
                "model it began from, or start anew"
            )


def _check_tensors(expected: dict[str, torch.Size], tensors: dict[str, torch.Tensor]) -> None:
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise FormatError(
            f"the adapter state does not fit the models: missing {missing[:3]} ({len(missing)} in all), "
            f"unknown {unknown[:3]} ({len(unknown)} in all); use the models it was made with"
        )
    for key, shape in expected.items():
        got = tensors[key]
        if got.shape != shape or not torch.isfinite(got).all():
            raise FormatError(
                f"{key}: expected finite values of shape {tuple(shape)}, got shape {tuple(got.shape)}; use "
                "another state or start anew"
            )
