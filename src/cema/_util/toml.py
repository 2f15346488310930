"""Read TOML configuration strictly: an unknown key or a wrong type is an error that names it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import inspect

from cema._util.names import did_you_mean
from cema.errors import ConfigError

__all__ = ["load_toml", "resolve_path"]

T = TypeVar("T")

_PLACE = re.compile(r" - at `(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]*)`")


def load_toml(path: Path, type_: type[T]) -> T:
    """Read a TOML file into a `msgspec.Struct`.

    Parameters
    ----------
    path : Path
        The file.
    type_ : type
        The structure it must follow; nested structures are tables.

    Returns
    -------
    T
        An instance of `type_`.

    Raises
    ------
    ConfigError
        If the file is missing, is not TOML, or does not follow `type_`. The message names the file and the
        key and, for an unknown key, lists the keys that are allowed there.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; check the path, or create the file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error
    try:
        return msgspec.convert(document, type_)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explain(str(error), type_)}") from error


def resolve_path(base: Path, value: str) -> Path:
    """Resolve a path that a configuration file names.

    Parameters
    ----------
    base : Path
        The configuration file, or the folder that holds it.
    value : str
        The path as written: ``~`` is the home folder, and a relative path is relative to the configuration
        file.

    Returns
    -------
    Path
        An absolute path; it need not exist.
    """
    folder = base.parent if base.is_file() else base
    return (folder / Path(value).expanduser()).absolute()


def _explain(message: str, type_: type) -> str:
    """Rewrite msgspec's message with TOML's dotted keys, and what is allowed at that place."""
    place = _PLACE.search(message)
    path = place["path"] if place else "$"
    detail = message[: place.start()] if place else message
    where = path.removeprefix("$").removeprefix(".")
    text = f"{detail} (at key `{where}`)" if where else detail
    unknown = _UNKNOWN.search(detail)
    allowed = _allowed_keys(type_, path)
    if unknown and allowed:
        hint = did_you_mean(unknown["name"], allowed, quote="`")
        text += f"; allowed here: {', '.join(f'`{key}`' for key in allowed)}{hint}"
    return text


def _allowed_keys(type_: type, path: str) -> list[str]:
    """Return the keys that the structure at a msgspec path such as ``$.cohort[0].adapt`` allows."""
    candidates = [inspect.type_info(type_)]
    for step in re.findall(r"\.([^.\[\]]+)|\[([^\]]*)\]", path.removeprefix("$")):
        candidates = [inner for outer in _unfold(candidates) for inner in _enter(outer, step[0])]
    return sorted(
        field.encode_name
        for candidate in _unfold(candidates)
        if isinstance(candidate, inspect.StructType)
        for field in candidate.fields
    )


def _unfold(types: list[inspect.Type]) -> list[inspect.Type]:
    """Replace unions and annotated types by what they hold."""
    flat: list[inspect.Type] = []
    for item in types:
        if isinstance(item, inspect.UnionType):
            flat += _unfold(list(item.types))
        elif isinstance(item, inspect.Metadata):
            flat += _unfold([item.type])
        else:
            flat.append(item)
    return flat


def _enter(outer: inspect.Type, name: str) -> list[inspect.Type]:
    """Return what stands under the key `name` (or, when it is empty, under any index) of a type."""
    if isinstance(outer, inspect.StructType) and name:
        return [field.type for field in outer.fields if field.encode_name == name]
    if isinstance(outer, inspect.DictType):
        return [outer.value_type]
    if isinstance(outer, (inspect.ListType, inspect.VarTupleType)) and not name:
        return [outer.item_type]
    return []
