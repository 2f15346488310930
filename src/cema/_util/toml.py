"""Read TOML configuration strictly: an unknown key or a wrong type is an error that names it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from cema._util.names import did_you_mean
from cema.errors import ConfigError

__all__ = ["load_toml", "read_text", "resolve_path", "shown"]

T = TypeVar("T")

_PLACE = re.compile(r" - at `(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]*)`")
_LINE = re.compile(r"at line (?P<line>\d+)")
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_JUDGED_ELSEWHERE = {
    "options",
    "token",
}  # an extension's own settings may be any text; a token is stripped first
_PLAIN = "save it as plain text (UTF-8)"
_BACKSLASHES = r"a path with backslashes goes in single quotes, as in 'C:\new', or is written with /"


def shown(path: Path | str) -> str:
    r"""Return a path as a message has it: quoted and escaped if it would not stay on one line otherwise.

    Parameters
    ----------
    path : Path or str

    Returns
    -------
    str

    Examples
    --------
    >>> print(shown("data/edge.toml"), shown("C:\new"))
    data/edge.toml 'C:\new'
    """
    text = str(path)
    return text if text.isprintable() else repr(text)


def read_text(path: Path) -> str:
    """Read a text file that a person wrote, with whatever tool.

    Parameters
    ----------
    path : Path
        In UTF-8, with or without a byte order mark.

    Returns
    -------
    str
        The text, without the mark.

    Raises
    ------
    OSError
        If the file cannot be read.
    ConfigError
        If it is in UTF-16, or in any other encoding than UTF-8.
    """
    data = path.read_bytes()
    if data.startswith(_WIDE) or b"\0" in data:
        raise ConfigError(
            f"{shown(path)}: cannot be read: expected UTF-8, got UTF-16 or binary data; {_PLAIN}"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown(path)}: cannot be read: expected UTF-8: {error}; {_PLAIN}") from error


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
    import tomllib  # noqa: PLC0415 - an agent whose settings come from a program reads none

    path = Path(path)
    name = shown(path)
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such configuration file; check the path, or create the file") from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ConfigError(f"{name}: cannot be read: {error}") from error
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{name}: is not valid TOML: {error}{_escape_hint(str(error), text)}") from error
    for key, value in _strings(document):
        if not _is_one_line(value):
            raise ConfigError(
                f"{name}: {value!r} has a control character (at key `{key}`): in double quotes a backslash "
                f"begins an escape, such as \\n for a new line; {_BACKSLASHES}"
            )
    try:
        return msgspec.convert(document, type_)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {_explain(str(error), type_)}") from error


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

    Raises
    ------
    ConfigError
        If it begins with the home folder of a user that does not exist.
    """
    folder = base.parent if base.is_file() else base
    try:
        return (folder / Path(value).expanduser()).absolute()
    except RuntimeError as error:
        raise ConfigError(f"{value!r}: {error}; write the whole path in place of ~") from error


def _is_one_line(value: str) -> bool:
    """Whether a string has no control characters, C1's and the line separators of Unicode included."""
    return not re.search("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]", value)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the strings of a document with their dotted keys, less those that others judge."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in _JUDGED_ELSEWHERE:
                yield from _strings(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{key}[{index}]")


def _escape_hint(message: str, text: str) -> str:
    """Say how paths with backslashes are written, if the line that is not TOML has one in double quotes."""
    lines = text.splitlines() or [""]
    place = _LINE.search(message)
    line = lines[min(int(place["line"]), len(lines)) - 1] if place else lines[-1]
    return f"; {_BACKSLASHES}" if re.search(r'"[^"]*\\', line) else ""


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
