"""Names of things: what a stranger names as ``package.module:object``, and what was probably meant."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from cema.errors import ConfigError

__all__ = [
    "did_you_mean",
    "first_line",
    "import_from_here",
    "is_object_name",
    "load_object",
    "merged",
    "missing_and_unknown",
    "on_one_line",
    "own_frames",
    "shortened",
]

# Where the frames of a stranger's code are not: this package, the import system, installed libraries.
_PACKAGE = str(Path(__file__).parents[1])
_LIBRARIES = ("site-packages", "dist-packages", "<frozen ")


def did_you_mean(wrong: str, known: Iterable[str], *, quote: str = "") -> str:
    """Return ``; did you mean NAME?`` for the closest of the known names, in quotes if given; or nothing.

    Examples
    --------
    >>> did_you_mean("tnet", ["tent", "eta"])
    '; did you mean tent?'
    """
    import difflib  # noqa: PLC0415 - only a message needs it

    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {quote}{close[0]}{quote}?" if close else ""


def missing_and_unknown(expected: Iterable[str], got: Iterable[str], *, unknown: str = "unknown") -> str:
    """Return which names are missing and which are not known, some of each; nothing when the two are the same.

    Examples
    --------
    >>> missing_and_unknown(["a", "b"], ["b", "c"])
    "missing ['a'] (1 in all), unknown ['c'] (1 in all)"
    """
    wanted, given = set(expected), set(got)
    missing, extra = sorted(wanted - given), sorted(given - wanted)
    if not missing and not extra:
        return ""
    return f"missing {missing[:3]} ({len(missing)} in all), {unknown} {extra[:3]} ({len(extra)} in all)"


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over others; where both hold a mapping, key by key.

    Examples
    --------
    >>> merged({"lr": 1, "adapt": {"a": 1, "b": 2}}, {"adapt": {"b": 3}})
    {'lr': 1, 'adapt': {'a': 1, 'b': 3}}
    """
    result = dict(under)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if nested else value
    return result


def is_object_name(name: str) -> bool:
    """Tell whether a name has the form ``package.module:object`` or ``path/to/file.py:object``."""
    where, colon, attribute = name.rpartition(":")
    return bool(colon and where and attribute)


def import_from_here() -> None:
    """Let modules in the current folder be imported, before others of their name, as ``python -m`` does.

    Each program of this package calls it at its start: a name ``package.module:object`` then means the same to all.
    """
    here = str(Path.cwd())
    if sys.path[:1] not in ([here], [""]):
        sys.path.insert(0, here)


def load_object(name: str, kind: str = "") -> Any:
    """Import what a name stands for.

    Parameters
    ----------
    name : str
        ``package.module:object``, or ``path/to/file.py:object`` with a path from the current folder.
    kind : str
        What is looked for, for the message: ``"function"``.

    Returns
    -------
    object
        The module's attribute of that name.

    Raises
    ------
    ConfigError
        When the name has another form, the module cannot be imported, or has no such attribute.

    Examples
    --------
    >>> load_object("math:tau") > 6
    True
    """
    if not is_object_name(name):
        raise ConfigError(f"expected package.module:object or path/to/file.py:object, got {name!r}")
    where, _, attribute = name.rpartition(":")
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:  # importing runs foreign code
        raise ConfigError(
            f"{name}: {'the file' if where.endswith('.py') else 'the module'} {where} cannot be imported "
            f"({first_line(error)}); install its package, put its folder on PYTHONPATH, or run this in its folder"
            + own_frames(error)
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        what = f"{kind} {attribute!r}" if kind else repr(attribute)
        found = getattr(module, "__file__", None)
        place = f" ({found})" if found and not where.endswith(".py") else ""
        raise ConfigError(f"{name}: {where}{place} has no {what}; check the name after the colon") from None


def _load_file(path: Path) -> ModuleType:
    """Import a file once, under a name that no package has."""
    path = path.resolve()
    name = f"cema_file_{path.stem}_{abs(hash(str(path))):x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def first_line(error: BaseException) -> str:
    """Shorten a foreign error to its type and the first line of its message.

    Parameters
    ----------
    error : BaseException
        Any error.

    Returns
    -------
    str
        ``"Type: message"``.
    """
    text = inspect.cleandoc(str(error)).partition("\n")[0].strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def own_frames(error: BaseException) -> str:
    """Return where in a stranger's own code an error arose: its frames and whole message, or nothing.

    Parameters
    ----------
    error : BaseException
        As caught, with its traceback.

    Returns
    -------
    str
        To be put behind a message: it begins with a line break. Empty where no frame is the stranger's.
    """
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_PACKAGE) and not any(part in frame.filename for part in _LIBRARIES)
    ]
    if not frames:
        return ""
    lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
    return "\n" + "".join(lines).rstrip()


def on_one_line(text: str) -> str:
    r"""Return foreign text as one line in which nothing moves a terminal: what cannot be printed is replaced.

    Examples
    --------
    >>> on_one_line("no \n link\x1b[2J").encode("ascii", "replace")
    b'no link?[2J'
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def shortened(text: str, most: int) -> str:
    """Return a text, or what fits of one that is too long, for a message about something from outside.

    Parameters
    ----------
    text : str
        Any text.
    most : int
        The most characters to return.

    Returns
    -------
    str
        The text as it is, or its beginning and ``...``.

    Examples
    --------
    >>> shortened("sample", 6), shortened("a longer text", 6)
    ('sample', 'a l...')
    """
    return text if len(text) <= most else text[: most - 3] + "..."
