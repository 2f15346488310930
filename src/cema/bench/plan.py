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

from cema.bench.code_digest import code_digest
from cema.bench.config import BenchConfig, ModelPair
from cema.bench.hyperparameters import architecture, method_settings
from cema.bench.protocols import Condition, is_correlated, sequence, streams
from cema.data.class_order import class_columns
from cema.models.digest import model_digest
from cema.models.registry import resolve

if TYPE_CHECKING:
    from cema.data.base import Dataset
    from cema.models.spec import Model

__all__ = [
    "Pair",
    "Run",
    "describe_pair",
    "identities",
    "load_pair",
    "make_runs",
    "with_class_order",
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
    labels : tuple of str, optional
        The edge model's names of its classes.
    class_order : str, optional
        What identifies the logits that class folders are scored on; where there are none, labels are logits.
    """

    models: ModelPair
    model: str
    foundation: str
    settings: dict[str, dict[str, Any]]
    classes: int
    labels: tuple[str, ...] | None = None
    class_order: str | None = None


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
    segments : tuple of Condition
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
    segments: tuple[Condition, ...]
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


def describe_pair(pair: ModelPair, config: BenchConfig, family: str, methods: Sequence[str]) -> Pair:
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
    digests = model_digest(edge.module), model_digest(foundation.module)
    return Pair(named, *digests, settings, edge.classes, edge.labels)


def _without_path(name: str) -> str:
    """Return a model's name for results, which say nothing about where folders lie on this machine."""
    source, colon, where = name.partition(":")
    local = source == "hf" and Path(where).is_dir()
    return f"hf:{Path(where).resolve().name}" if local else source + colon + where


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
    shared = {
        "dataset": dataset,
        "data_digest": data_digest,
        "source_digest": source_digest,
        **_shared_facts(config),
    }
    for index, pair in enumerate(pairs):
        models = {
            "model": pair.models.model,
            "model_digest": pair.model,
            "foundation": pair.models.foundation,
            "foundation_digest": pair.foundation,
        }
        if pair.class_order is not None:
            models["class_order"] = pair.class_order
        for segments, (method, settings), seed in itertools.product(
            streams(config.protocol, config.corruptions, config.severities, visits=config.visits),
            pair.settings.items(),
            config.seeds,
        ):
            visited = [[segment.corruption, segment.severity] for segment in segments]
            own = {"method": method, "settings": settings, "code": code_digest(method)}
            facts = {**own, **models, **shared, "stretches": visited, "seed": seed}
            runs.append(Run(_key(facts), facts, method, index, segments, seed, settings))
    return runs


# What a run's other facts say of these settings: digests, names, and one value where the benchmark has several.
_SAID_OTHERWISE = frozenset(
    {
        "corruptions",
        "data",
        "delay",
        "methods",
        "pair",
        "rates",
        "seeds",
        "settings",
        "severities",
        "source_data",
        "wnids",
    }
)


def _shared_facts(config: BenchConfig) -> dict[str, Any]:
    """Return the settings that all runs have in common: a new one counts unless another fact says it."""
    told: dict[str, Any] = msgspec.to_builtins(config)
    facts = {name: value for name, value in told.items() if name not in _SAID_OTHERWISE}
    # What is without effect must not make a run another one. Runs of earlier versions know nothing of visits.
    if not is_correlated(config.protocol):
        facts["concentration"] = None
    if sequence(config.protocol) != "recurring":
        del facts["visits"]
    return facts


def _key(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def identities(facts: dict[str, Any]) -> set[tuple[object, ...]]:
    """Return which cells of the tables a run fills; two runs that fill the same one exclude each other."""
    common = [facts[name] for name in ("method", "model", "foundation", "dataset", "protocol", "seed")]
    return {(*common, corruption, severity) for corruption, severity in facts["stretches"]}


def with_class_order(pair: Pair, dataset: Dataset) -> tuple[Pair, str]:
    """Find out which logits of a pair's models the classes of the data are.

    Parameters
    ----------
    pair : Pair
        The models.
    dataset : Dataset
        The data.

    Returns
    -------
    pair : Pair
        With its `Pair.class_order`.
    said : str
        In words, as `cema.data.class_order.class_columns` has them.

    Raises
    ------
    ConfigError
        If the model has fewer logits than the data have classes, or nothing says which of them they are.
    """
    columns, said = class_columns(dataset, pair.classes, pair.labels, pair.models.model)
    if columns is None:
        return pair, said
    names = getattr(dataset, "folder_classes").names  # noqa: B009 - the protocol does not ask for it
    digest = hashlib.sha256(json.dumps([names, columns.tolist()]).encode()).hexdigest()
    return replace(pair, class_order=digest), said
