"""What a benchmark is asked to measure: from a preset, a TOML file and the command line, the later over the earlier."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from cema._util.checks import require
from cema._util.names import did_you_mean, merged
from cema._util.toml import load_toml, resolve_path
from cema.bench.protocols import CLEAN, PROTOCOLS, VISITS
from cema.data.c_bar import C_BAR_CORRUPTIONS, LEVELS
from cema.data.corruptions import CORRUPTIONS, VALIDATION_CORRUPTIONS, Constants
from cema.errors import ConfigError
from cema.formats.image import CodecConfig

__all__ = [
    "CORRUPTION_SETS",
    "DIGITS_PAIR",
    "QUICK_CORRUPTIONS",
    "QUICK_SAMPLES",
    "BenchConfig",
    "BenchFile",
    "FilePath",
    "ModelPair",
    "Precision",
    "Rates",
    "check_names",
    "parse_setting",
]

#: Whose hyperparameters: the papers', or over them those that this project tuned on short streams.
Rates = Literal["papers", "short"]

#: Precision inside the networks.
Precision = Literal["float32", "bfloat16"]

#: A file's path; only the command line tells it from other text.
FilePath = Annotated[str, msgspec.Meta(extra={"path": True})]

#: What ``--quick`` measures: enough to see that every row runs, too little to rank methods by.
QUICK_SAMPLES = 300
QUICK_CORRUPTIONS = ("gaussian_noise", "snow", "contrast")


#: What may stand for several corruptions: of each set, those are meant that the data can be had with.
CORRUPTION_SETS: dict[str, tuple[str, ...]] = {
    "usual": CORRUPTIONS,
    "validation": VALIDATION_CORRUPTIONS,
    "c-bar": C_BAR_CORRUPTIONS,
}


class ModelPair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An edge model and the foundation model that teaches it.

    The first sentence of an attribute is also the help of its option.

    Attributes
    ----------
    model : str
        The edge model: any name that `cema export` takes; the preset's, or digits-cnn for digits, if unset. See
        `cema.models.registry.resolve`.
    foundation : str
        The foundation model; the preset's, or digits-cnn-foundation for digits, if unset.
    weights : str, optional
        Safetensors file of the edge model; what the model comes with if unset.
    foundation_weights : str, optional
        Safetensors file of the foundation model; what the model comes with if unset.
    """

    model: str
    foundation: str
    weights: FilePath | None = None
    foundation_weights: FilePath | None = None


#: What `BenchConfig.make` takes for the embedded digits when no models are named.
DIGITS_PAIR = ModelPair(model="digits-cnn", foundation="digits-cnn-foundation")


class BenchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides a benchmark's numbers, but for code, data and weights themselves.

    A setting is declared here alone: keys of a file (`BenchFile`) and options of ``cema bench`` follow from it. The
    first sentence of an attribute is also the help of its option.

    Attributes
    ----------
    data : str
        digits, fashion-mnist, a .npz with x and y, or a folder (ImageNet-C, CIFAR-10-C, ...); the preset's if unset.
        What `cema.data.dataset.open_dataset` opens.
    pair : tuple of ModelPair
        The models; each pair gets tables of its own.
    methods : tuple of str
        Rows, separated by commas; all if unset.
    corruptions : tuple of str
        Columns, or sets of them (usual, validation, c-bar), separated by commas; the usual fifteen if unset. The other
        two sets are to tune on. A published data set may have fewer.
    severities : tuple of int
        Separated by commas, 1 to 5.
    protocol : str
        reset, continual, gradual, mixed, recurring or correlated; also continual-, mixed- or recurring-correlated. See
        `cema.bench.protocols.PROTOCOLS`.
    visits : int
        Times that every corruption comes, for --protocol recurring.
    samples : int, optional
        Images per corruption, and per visit to it; all if unset.
    batch_size : int
        Images per prediction.
    edges : int
        Devices that share the stream.
    concentration : float
        Of the labels in time, for --protocol correlated and those that end so.
    delay : int, optional
        Batches after which an update of CEMA arrives; the methods' own settings if unset.
    seeds : tuple of int
        Separated by commas. Of the order of samples and of everything random in a method. Which images there are, and
        what a corruption makes of each, is the same for all seeds.
    device : str
        cpu, cuda, ... Where the networks are computed.
    dtype : {"float32", "bfloat16"}
        float32 or bfloat16: precision inside the networks.
    codec : CodecConfig
        How uploads are encoded.
    source_data : str, optional
        Clean images for EATA, where the data are corrupted ones only; none if unset. Unlabelled, of the kind the
        model was trained on; opened as `data` is.
    wnids : str, optional
        Class names of image folders in the order of the logits, one a line; imagenet_wnids.txt in or beside the folder
        if unset.
    side : int, optional
        What photographs in folders are cut to, in pixels; 224 if unset, as ImageNet-C's; 0: nothing.
    crops : int
        Images that each photograph in a folder gives: the usual one, and random squares of it. Only the photographs
        count as independent; see `cema.bench.standard_error`.
    constants : {"cifar", "imagenet"}, optional
        Severities of made corruptions: cifar or imagenet; by the images' size if unset. CIFAR's are for colour images
        of 32 pixels.
    rates : {"papers", "short"}
        papers, or short: tuned by this project on streams of some thousand images. Each stream is begun by the source
        model; see `cema.bench.hyperparameters`.
    settings : dict of str to dict
        By method, what replaces its settings in `cema.bench.hyperparameters`.
    """

    data: str
    pair: tuple[ModelPair, ...]
    methods: tuple[str, ...] = ()
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = (3, 5)
    protocol: str = "reset"
    visits: int = VISITS
    samples: int | None = None
    batch_size: int = 64
    edges: int = 1
    concentration: float = 0.1
    delay: int | None = None
    seeds: tuple[int, ...] = (0,)
    device: str = "cpu"
    dtype: Precision = "float32"
    codec: CodecConfig = CodecConfig()
    source_data: str | None = None
    wnids: FilePath | None = None
    side: int | None = None
    crops: int = 1
    constants: Literal["cifar", "imagenet"] | None = None
    rates: Rates = "papers"
    settings: dict[str, dict[str, Any]] = {}

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        check_names("protocol", [self.protocol], PROTOCOLS)
        check_names("rates", [self.rates], get_args(Rates))
        check_names("dtype", [self.dtype], get_args(Precision))
        self._require(bool(self.pair), "pair", "at least one pair of models")
        for name in ("methods", "corruptions", "severities", "seeds"):
            values = getattr(self, name)
            self._require(len(set(values)) == len(values), name, "each value once")
        self._require(self.batch_size >= 1, "batch_size", "at least 1")
        self._require(self.edges >= 1, "edges", "at least 1")
        self._require(self.visits >= 1, "visits", "at least 1")
        self._require(self.samples is None or self.samples >= 1, "samples", "at least 1")
        self._require(self.side is None or self.side >= 0, "side", "at least 0")
        self._require(self.crops >= 1, "crops", "at least 1")
        self._require(self.constants in (None, "cifar", "imagenet"), "constants", "cifar or imagenet")
        self._require(self.delay is None or self.delay >= 0, "delay", "at least 0")
        self._require(self.concentration > 0, "concentration", "a number above 0")
        self._require(bool(self.seeds) and min(self.seeds) >= 0, "seeds", "whole numbers of at least 0")
        natural = self.corruptions == (CLEAN,)
        fine = bool(self.severities) and all(0 <= s <= 5 and (s or natural) for s in self.severities)
        self._require(fine, "severities", "whole numbers from 1 to 5")

    def _require(self, holds: bool, name: str, expected: str) -> None:
        # Options and programs make this struct without msgspec, which elsewhere turns a ValueError into a ConfigError.
        require(holds, name, expected, getattr(self, name), error=ConfigError)

    @classmethod
    def make(cls, *parts: BenchFile) -> BenchConfig:
        """Lay parts over one another, the later over the earlier.

        Raises
        ------
        ConfigError
            If nothing says which data or models, or a value is out of range.
        """
        known: dict[str, Any] = {}
        for part in parts:
            given = part.given()
            if "settings" in given:
                given["settings"] = merged(known.get("settings", {}), given["settings"])
            known |= given
        if "data" not in known:
            raise ConfigError("which data? give --data digits, fashion-mnist or a path, or a --preset")
        if known["data"] == "digits":
            known.setdefault("pair", (DIGITS_PAIR,))
        if "pair" not in known:
            raise ConfigError("which models? give --model and --foundation, or a --preset")
        return cls(**known)

    def settled(
        self, offered: Sequence[str] | None, *, constants: Constants = "imagenet", quick: bool = False
    ) -> BenchConfig:
        """Return this with its corruptions named: those asked for, else what there is.

        Parameters
        ----------
        offered : sequence of str, optional
            Corruptions that the data set has; None when they are made on the fly, so all.
        constants : {"imagenet", "cifar"}
            Where they are made, which severities are meant: C-bar has not the same corruptions for both.
        quick : bool
            Where none were asked for, take three.

        Raises
        ------
        ConfigError
            If one that was asked for is not there.
        """
        made = (*CORRUPTIONS, *VALIDATION_CORRUPTIONS, *LEVELS[constants])
        known = made if offered is None else tuple(offered)
        sets = {name: [one for one in members if one in known] for name, members in CORRUPTION_SETS.items()}
        sets = {name: members for name, members in sets.items() if members}
        check_names("corruption", self.corruptions, (*known, CLEAN, *sets))
        chosen = tuple(dict.fromkeys(one for name in self.corruptions for one in sets.get(name, [name])))
        if not chosen:
            usual = [name for name in CORRUPTIONS if name in known] or [*known]
            few = [name for name in QUICK_CORRUPTIONS if name in usual] or usual[:3]
            chosen = tuple(few if quick else usual) or (CLEAN,)
        severities = (0,) if chosen == (CLEAN,) else self.severities
        return msgspec.structs.replace(self, corruptions=chosen, severities=severities)


def _optional_fields() -> list[tuple[str, Any, Any]]:
    """Return the fields of `BenchConfig` as any may be absent; TOML has no null, so that None is no value."""
    fields = []
    for name, hint in get_type_hints(BenchConfig, include_extras=True).items():
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = tuple(kind for kind in kinds if kind is not NoneType)
        fields.append((name, Union[(*kinds, msgspec.UnsetType)], msgspec.UNSET))
    return fields


_Fields = msgspec.defstruct(
    "_Fields", _optional_fields(), frozen=True, kw_only=True, forbid_unknown_fields=True
)


class BenchFile(_Fields, frozen=True, kw_only=True, forbid_unknown_fields=True):  # type: ignore[misc, valid-type, call-arg]
    """A part of a `BenchConfig`, with the same fields: what a TOML file says, a preset, or the command line."""

    def given(self) -> dict[str, Any]:
        """Return the settings that are there, by name."""
        return {
            name: value for name, value in msgspec.structs.asdict(self).items() if value is not msgspec.UNSET
        }

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
        given = file.given()
        for name in given.keys() & {"data", "source_data"}:
            if resolve_path(path, given[name]).exists():
                changes[name] = str(resolve_path(path, given[name]))
        if "wnids" in given:
            changes["wnids"] = str(resolve_path(path, given["wnids"]))
        if "pair" in given:
            changes["pair"] = tuple(_with_weights_beside(path, pair) for pair in given["pair"])
        return msgspec.structs.replace(file, **changes)


def parse_setting(text: str) -> dict[str, dict[str, Any]]:
    """Read ``METHOD.SETTING=VALUE``; a setting within a setting has another dot.

    The value is JSON, or a table or list as TOML has it on one line; anything else is text.

    Raises
    ------
    ConfigError
        If it does not look so.

    Examples
    --------
    >>> parse_setting("cema.adapt.edge_lr=1e-3")
    {'cema': {'adapt': {'edge_lr': 0.001}}}
    >>> parse_setting("cema.options={share=0.1}")
    {'cema': {'options': {'share': 0.1}}}
    """
    name, equals, value = text.partition("=")
    # The dots before a colon are those of a package or file that a method stands in.
    where, colon, rest = name.rpartition(":")
    method, *steps = rest.split(".")
    path = [f"{where}{colon}{method}".strip(), *(step.strip() for step in steps)]
    if not equals or len(path) < 2 or not all(path):
        raise ConfigError(f"--set: expected METHOD.SETTING=VALUE such as tent.lr=0.001, got {text!r}")
    parsed: Any = _parse_value(value)
    for step in reversed(path):
        parsed = {step: parsed}
    settings: dict[str, dict[str, Any]] = parsed
    return settings


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if not text.lstrip().startswith(("{", "[")):
            return text
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a name that is not known, with those that are.

    Raises
    ------
    ConfigError
        At the first such name.
    """
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"unknown {what} {name!r}; there are {', '.join(known)}{hint}")


def _with_weights_beside(path: Path, pair: ModelPair) -> ModelPair:
    changes = {
        name: str(resolve_path(path, value))
        for name in ("weights", "foundation_weights")
        if (value := getattr(pair, name)) is not None
    }
    return msgspec.structs.replace(pair, **changes)
