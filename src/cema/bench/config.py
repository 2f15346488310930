"""What a benchmark is asked to measure: from a preset, a TOML file and the command line, the later over the earlier."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from cema._util.toml import load_toml, resolve_path
from cema.bench.protocols import CLEAN, PROTOCOLS
from cema.data.corruptions import CORRUPTIONS, VALIDATION_CORRUPTIONS
from cema.errors import ConfigError
from cema.formats.image import CodecConfig

__all__ = [
    "DIGITS_PAIR",
    "QUICK_CORRUPTIONS",
    "QUICK_SAMPLES",
    "BenchConfig",
    "BenchFile",
    "ModelPair",
    "Rates",
    "check_names",
    "merge_settings",
    "parse_setting",
]

#: Whose hyperparameters: the papers', or over them those that this project tuned on short streams.
Rates = Literal["papers", "short"]

#: What ``--quick`` measures: enough to see that every row runs, too little to rank methods by.
QUICK_SAMPLES = 300
QUICK_CORRUPTIONS = ("gaussian_noise", "snow", "contrast")


class ModelPair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An edge model and the foundation model that teaches it.

    Attributes
    ----------
    model, foundation : str
        Names that `cema.models.registry.resolve` understands.
    weights, foundation_weights : str, optional
        Local safetensors files.
    """

    model: str
    foundation: str
    weights: str | None = None
    foundation_weights: str | None = None


#: What `BenchConfig.make` takes for the embedded digits when no models are named.
DIGITS_PAIR = ModelPair(model="digits-cnn", foundation="digits-cnn-foundation")


class BenchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides a benchmark's numbers, but for code, data and weights themselves.

    Attributes
    ----------
    data : str
        What `cema.data.dataset.open_dataset` opens: ``digits``, ``fashion-mnist`` or a path.
    pair : tuple of ModelPair
        The models; each pair gets tables of its own.
    methods : tuple of str
        Rows of the tables; none for all.
    corruptions : tuple of str
        Columns of the tables; none for the fifteen, or what a published data set has.
    severities : tuple of int
        1 to 5.
    protocol : str
        One of `cema.bench.protocols.PROTOCOLS`.
    samples : int, optional
        Images per corruption; None for all there are.
    batch_size, edges : int
        Images in a batch, and devices that share the stream.
    concentration : float
        Of the ``correlated`` protocol.
    delay : int, optional
        Batches after which an update of CEMA reaches the edge; None leaves the methods' own settings.
    seeds : tuple of int
        Of the order of samples and of everything random in a method. Which images there are, and what a corruption
        makes of each, is the same for all seeds.
    device, dtype : str
        Where and how precisely the networks are computed.
    codec : CodecConfig
        How uploads are encoded.
    source_data : str, optional
        Clean, unlabelled images for methods that want some of the kind the model was trained on (EATA), where `data`
        has none: a published set of corrupted images. Opened as `data` is.
    wnids : str, optional
        A file with the classes of image folders in the order of the model's logits, one a line.
    side : int, optional
        What photographs in folders are cut to, in pixels; None for ImageNet-C's 224, 0 to leave them.
    constants : {"cifar", "imagenet"}, optional
        Whose severities are meant where corruptions are made; None for CIFAR's for colour images of 32 pixels, else
        ImageNet's.
    rates : {"papers", "short"}
        Which tables of `cema.bench.hyperparameters`: the papers' alone, or over them what this project tuned on streams
        of some thousand images, each begun by the source model.
    settings : dict of str to dict
        By method, what replaces its settings in `cema.bench.hyperparameters`.
    """

    data: str
    pair: tuple[ModelPair, ...]
    methods: tuple[str, ...] = ()
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = (3, 5)
    protocol: str = "reset"
    samples: int | None = None
    batch_size: int = 64
    edges: int = 1
    concentration: float = 0.1
    delay: int | None = None
    seeds: tuple[int, ...] = (0,)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    codec: CodecConfig = CodecConfig()
    source_data: str | None = None
    wnids: str | None = None
    side: int | None = None
    constants: Literal["cifar", "imagenet"] | None = None
    rates: Rates = "papers"
    settings: dict[str, dict[str, Any]] = {}

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check_names("protocol", [self.protocol], PROTOCOLS)
        check_names("rates", [self.rates], get_args(Rates))
        _require(bool(self.pair), "pair", "at least one pair of models", self.pair)
        for name in ("methods", "corruptions", "severities", "seeds"):
            values = getattr(self, name)
            _require(len(set(values)) == len(values), name, "each value once", values)
        for name in ("batch_size", "edges"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _require(self.samples is None or self.samples >= 1, "samples", "at least 1", self.samples)
        _require(self.side is None or self.side >= 0, "side", "at least 0", self.side)
        known = (None, "cifar", "imagenet")
        _require(self.constants in known, "constants", "cifar or imagenet", self.constants)
        _require(self.delay is None or self.delay >= 0, "delay", "at least 0", self.delay)
        _require(self.concentration > 0, "concentration", "a number above 0", self.concentration)
        _require(
            bool(self.seeds) and min(self.seeds) >= 0, "seeds", "whole numbers of at least 0", self.seeds
        )
        natural = self.corruptions == (CLEAN,)
        fine = bool(self.severities) and all(0 <= s <= 5 and (s or natural) for s in self.severities)
        _require(fine, "severities", "whole numbers from 1 to 5", self.severities)

    @classmethod
    def make(cls, *parts: BenchFile) -> BenchConfig:
        """Lay parts over one another, the later over the earlier.

        Raises
        ------
        ConfigError
            If nothing says which data or models, or a value is out of range.
        """
        merged: dict[str, Any] = {}
        for part in parts:
            given = msgspec.structs.asdict(part)
            settings = given.pop("settings")
            merged |= {name: value for name, value in given.items() if value is not msgspec.UNSET}
            if settings is not msgspec.UNSET:
                merged["settings"] = merge_settings(merged.get("settings", {}), settings)
        if "data" not in merged:
            raise ConfigError("which data? give --data digits, fashion-mnist or a path, or a --preset")
        if merged["data"] == "digits":
            merged.setdefault("pair", (DIGITS_PAIR,))
        if "pair" not in merged:
            raise ConfigError("which models? give --model and --foundation, or a --preset")
        return cls(**merged)

    def settled(self, offered: Sequence[str] | None, *, quick: bool = False) -> BenchConfig:
        """Return this with its corruptions named: those asked for, else what there is.

        Parameters
        ----------
        offered : sequence of str, optional
            Corruptions that the data set has; None when they are made on the fly, so all.
        quick : bool
            Where none were asked for, take three.

        Raises
        ------
        ConfigError
            If one that was asked for is not there.
        """
        known = (*CORRUPTIONS, *VALIDATION_CORRUPTIONS) if offered is None else tuple(offered)
        chosen = self.corruptions
        check_names("corruption", chosen, (*known, CLEAN))
        if not chosen:
            usual = [name for name in CORRUPTIONS if name in known] or [*known]
            few = [name for name in QUICK_CORRUPTIONS if name in usual] or usual[:3]
            chosen = tuple(few if quick else usual) or (CLEAN,)
        severities = (0,) if chosen == (CLEAN,) else self.severities
        return msgspec.structs.replace(self, corruptions=chosen, severities=severities)


class BenchFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a `BenchConfig`: what a TOML file says, or the command line."""

    data: str | msgspec.UnsetType = msgspec.UNSET
    pair: tuple[ModelPair, ...] | msgspec.UnsetType = msgspec.UNSET
    methods: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    corruptions: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    severities: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    protocol: str | msgspec.UnsetType = msgspec.UNSET
    samples: int | msgspec.UnsetType = msgspec.UNSET
    batch_size: int | msgspec.UnsetType = msgspec.UNSET
    edges: int | msgspec.UnsetType = msgspec.UNSET
    concentration: float | msgspec.UnsetType = msgspec.UNSET
    delay: int | msgspec.UnsetType = msgspec.UNSET
    seeds: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    device: str | msgspec.UnsetType = msgspec.UNSET
    dtype: Literal["float32", "bfloat16"] | msgspec.UnsetType = msgspec.UNSET
    codec: CodecConfig | msgspec.UnsetType = msgspec.UNSET
    source_data: str | msgspec.UnsetType = msgspec.UNSET
    wnids: str | msgspec.UnsetType = msgspec.UNSET
    side: int | msgspec.UnsetType = msgspec.UNSET
    constants: Literal["cifar", "imagenet"] | msgspec.UnsetType = msgspec.UNSET
    rates: Rates | msgspec.UnsetType = msgspec.UNSET
    settings: dict[str, dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def load(cls, path: Path) -> BenchFile:
        """Read a TOML file; weights, and data where they exist there, are relative to its folder.

        Raises
        ------
        ConfigError
            As `cema._util.toml.load_toml`.
        """
        file = load_toml(path, cls)
        changes: dict[str, Any] = {}
        for name in ("data", "source_data"):
            value = getattr(file, name)
            if value is not msgspec.UNSET and resolve_path(path, value).exists():
                changes[name] = str(resolve_path(path, value))
        if file.wnids is not msgspec.UNSET:
            changes["wnids"] = str(resolve_path(path, file.wnids))
        if file.pair is not msgspec.UNSET:
            changes["pair"] = tuple(_with_weights_beside(path, pair) for pair in file.pair)
        return msgspec.structs.replace(file, **changes)


def parse_setting(text: str) -> dict[str, dict[str, Any]]:
    """Read ``METHOD.SETTING=VALUE``; a setting within a setting has another dot.

    Raises
    ------
    ConfigError
        If it does not look so.

    Examples
    --------
    >>> parse_setting("cema.adapt.edge_lr=1e-3")
    {'cema': {'adapt': {'edge_lr': 0.001}}}
    """
    name, equals, value = text.partition("=")
    # The dots before a colon are those of a package or file that a method stands in.
    where, colon, rest = name.rpartition(":")
    method, *steps = rest.split(".")
    path = [f"{where}{colon}{method}".strip(), *(step.strip() for step in steps)]
    if not equals or len(path) < 2 or not all(path):
        raise ConfigError(f"--set: expected METHOD.SETTING=VALUE such as tent.lr=0.001, got {text!r}")
    try:
        parsed: Any = json.loads(value)
    except json.JSONDecodeError:
        parsed = value
    for step in reversed(path):
        parsed = {step: parsed}
    settings: dict[str, dict[str, Any]] = parsed
    return settings


def merge_settings(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `under` with the values of `over` in their place, tables within tables too."""
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        nested = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[name] = merge_settings(below, value) if nested else value  # type: ignore[arg-type]
    return merged


def check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a name that is not known, with those that are.

    Raises
    ------
    ConfigError
        At the first such name.
    """
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"unknown {what} {name!r}; there are {', '.join(known)}{hint}")


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {got!r}; correct the setting")


def _with_weights_beside(path: Path, pair: ModelPair) -> ModelPair:
    changes = {
        name: str(resolve_path(path, value))
        for name in ("weights", "foundation_weights")
        if (value := getattr(pair, name)) is not None
    }
    return msgspec.structs.replace(pair, **changes)
