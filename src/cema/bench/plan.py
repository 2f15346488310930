"""From a configuration to runs: one run is one adapter over one stream."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from cema.bench.code_digest import code_digest
from cema.bench.config import BenchConfig, ModelPair
from cema.bench.hyperparameters import Family, architecture, method_settings
from cema.bench.protocols import Condition, streams
from cema.errors import ConfigError
from cema.models.registry import resolve

if TYPE_CHECKING:
    from cema.models.spec import Model

__all__ = [
    "Pair",
    "Run",
    "check_classes",
    "describe_pair",
    "identities",
    "load_pair",
    "make_runs",
    "model_digest",
]


@dataclass(frozen=True)
class Pair:
    """A pair of models as results name it.

    Attributes
    ----------
    models : ModelPair
        How it was asked for, models in a local folder by the folder's own name.
    model, foundation : str
        Hex SHA-256 of their tensors.
    settings : dict
        By method, all of its settings for this pair and the data.
    classes : int
        Logits of the edge model.
    """

    models: ModelPair
    model: str
    foundation: str
    settings: dict[str, dict[str, Any]]
    classes: int


@dataclass(frozen=True)
class Run:
    """One adapter over one stream.

    Attributes
    ----------
    key : str
        Hex SHA-256 of `facts`.
    facts : dict
        Everything that determines the numbers, fit for JSON.
    method : str
        Its name.
    pair : int
        Index of the pair of models.
    stretches : tuple of Condition
        What the stream visits.
    seed : int
        Of the order and of the method.
    settings : dict
        All settings of the method.
    """

    key: str
    facts: dict[str, Any]
    method: str
    pair: int
    stretches: tuple[Condition, ...]
    seed: int
    settings: dict[str, Any]


def load_pair(pair: ModelPair, *, cropped: bool) -> tuple[Model, Model]:
    """Return the edge and the foundation model of a pair.

    Parameters
    ----------
    pair : ModelPair
        Which.
    cropped : bool
        Whether the images are cut out already: then the models' own preprocessing only resizes them.

    Raises
    ------
    ModelError
        As `cema.models.registry.resolve`.
    """
    edge, foundation = (
        replace(model, name=_without_path(model.name))
        for model in (
            resolve(pair.model, weights=pair.weights),
            resolve(pair.foundation, weights=pair.foundation_weights),
        )
    )
    if not cropped:
        return edge, foundation
    return _uncropped(edge), _uncropped(foundation)


def _uncropped(model: Model) -> Model:
    return replace(model, preprocessing=msgspec.structs.replace(model.preprocessing, crop=1.0))


def describe_pair(pair: ModelPair, config: BenchConfig, family: Family, methods: Sequence[str]) -> Pair:
    """Load a pair of models and work out its settings.

    Raises
    ------
    ModelError
        If a model cannot be loaded.
    ConfigError
        If a method or a setting is unknown.
    """
    edge, foundation = load_pair(pair, cropped=False)
    kind = architecture(edge.module)
    settings = {
        method: method_settings(
            method, family, kind, rates=config.rates, given=config.settings, delay=config.delay
        )
        for method in methods
    }
    named = msgspec.structs.replace(pair, model=edge.name, foundation=foundation.name)
    return Pair(named, model_digest(edge.module), model_digest(foundation.module), settings, edge.classes)


def _without_path(name: str) -> str:
    """Return a model's name for results, which say nothing about where folders lie on this machine."""
    source, colon, where = name.partition(":")
    local = source == "hf" and Path(where).is_dir()
    return f"hf:{Path(where).resolve().name}" if local else source + colon + where


def model_digest(module: torch.nn.Module) -> str:
    """Return the hex SHA-256 of a network's tensors, with their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_runs(
    config: BenchConfig,
    pairs: Sequence[Pair],
    dataset: str,
    data_digest: str,
    source_digest: str | None = None,
) -> list[Run]:
    """Return every run of a benchmark, in the order of its tables.

    Parameters
    ----------
    config : BenchConfig
        With its corruptions named.
    pairs : sequence of Pair
        The models.
    dataset, data_digest : str
        Name and digest of the data.
    source_digest : str, optional
        Digest of the clean images that were named beside them.

    Returns
    -------
    list of Run
        One for each pair, stream, method and seed.
    """
    runs = []
    for index, pair in enumerate(pairs):
        for stretches, (method, settings), seed in itertools.product(
            streams(config.protocol, config.corruptions, config.severities),
            pair.settings.items(),
            config.seeds,
        ):
            facts = {
                "method": method,
                "settings": settings,
                "model": pair.models.model,
                "model_digest": pair.model,
                "foundation": pair.models.foundation,
                "foundation_digest": pair.foundation,
                "dataset": dataset,
                "data_digest": data_digest,
                "source_digest": source_digest,
                "side": config.side,
                "constants": config.constants,
                "protocol": config.protocol,
                "stretches": [[stretch.corruption, stretch.severity] for stretch in stretches],
                "seed": seed,
                "samples": config.samples,
                "batch_size": config.batch_size,
                "edges": config.edges,
                "concentration": config.concentration if config.protocol == "correlated" else None,
                "codec": msgspec.to_builtins(config.codec),
                "device": config.device,
                "dtype": config.dtype,
                "code": code_digest(method),
            }
            runs.append(Run(_key(facts), facts, method, index, stretches, seed, settings))
    return runs


def _key(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def identities(facts: dict[str, Any]) -> set[tuple[object, ...]]:
    """Return which cells of the tables a run fills; two runs that fill the same one exclude each other."""
    common = [facts[name] for name in ("method", "model", "foundation", "dataset", "protocol", "seed")]
    return {(*common, corruption, severity) for corruption, severity in facts["stretches"]}


def check_classes(pair: Pair, classes: int) -> None:
    """Refuse data whose classes a model does not know.

    Raises
    ------
    ConfigError
        If the model has fewer logits than the data have classes.
    """
    if pair.classes < classes:
        raise ConfigError(
            f"{pair.models.model} has {pair.classes} classes and the data have {classes}; "
            "choose a model that was trained for them"
        )
