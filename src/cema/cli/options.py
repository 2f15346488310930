"""Command-line options made from the fields of a settings struct, so that a setting is declared in one place.

A field's type is its option's, a tuple is text with commas, and the first sentence of what the class's docstring says
of the field is the help; where that says ``; VALUE if unset``, VALUE is shown as the default. Fields that no option can
hold (tables, other structs) get none.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    import msgspec

__all__ = ["given_settings", "lazy_group", "with_options"]

PANEL = "Settings (also keys of the file)"

# In numpydoc's section of attributes: a name, its type, and the indented lines below them.
_ATTRIBUTE = re.compile(r"^(\w+) : .*\n((?: +\S.*(?:\n|$))+)", re.MULTILINE)
_UNSET = re.compile(r"; ([^;]+?),? if unset")
_SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z])")


def with_options(*structs: type[msgspec.Struct]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of some structs; it takes their values as keyword arguments.

    Parameters
    ----------
    *structs : type of msgspec.Struct
        With a numpydoc section of attributes.

    Returns
    -------
    callable
        A decorator of functions whose last parameter is ``**given``. An option that was not given is None.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[:-1]
        parameters = [*own, *(option for struct in structs for option in _options(struct))]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            function(**values)

        # What typer reads.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def given_settings(struct: type[msgspec.Struct], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that are fields of a struct and were given, as its fields' values.

    Raises
    ------
    ConfigError
        If numbers with commas between them are none.
    """
    import msgspec

    settings: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        value = given.get(field.name)
        if isinstance(value, str) and (item := _item_type(struct, field.name)) is not None:
            settings[field.name] = _split(field.name, value, item)
        elif value is not None:
            settings[field.name] = str(value) if isinstance(value, Path) else value
    return settings


def lazy_group(make: Callable[[], Callable[..., None]]) -> type[TyperGroup]:
    """Return a class for a `typer.Typer` whose own options are made once its command line is read.

    Parameters
    ----------
    make : callable
        Returns the group's callback; called at most once, and not for the help of the commands above.
    """

    class Lazy(TyperGroup):
        def get_params(self, ctx: Any) -> list[Any]:
            if self.callback is None:
                app = typer.Typer(add_completion=False, rich_markup_mode=None)
                app.callback(invoke_without_command=True)(make())
                group = typer.main.get_command(app)
                self.params, self.callback = group.params, group.callback
            return super().get_params(ctx)

    return Lazy


def _options(struct: type[msgspec.Struct]) -> Iterator[inspect.Parameter]:
    helps = _attribute_helps(struct)
    for field in _fields(struct):
        kind = _option_type(field.type)
        if kind is None:
            continue
        text, unset = _without_unset(helps.get(field.name, ""))
        option = typer.Option(help=text, show_default=_shown(field.default) or unset, rich_help_panel=PANEL)
        annotation: Any = Annotated[kind | None, option]
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
        )


def _attribute_helps(struct: type[msgspec.Struct]) -> dict[str, str]:
    section = inspect.cleandoc(struct.__doc__ or "").partition("Attributes\n----------\n")[2]
    return {
        name: _SENTENCE_END.split(" ".join(text.split()))[0] for name, text in _ATTRIBUTE.findall(section)
    }


def _without_unset(text: str) -> tuple[str, str]:
    """Take out of a help what holds where the option is not given, as it is told: ``; all if unset``."""
    found = _UNSET.search(text)
    return (text, "none") if found is None else (text[: found.start()] + text[found.end() :], found[1])


def _fields(struct: type[msgspec.Struct]) -> tuple[Any, ...]:
    import msgspec

    described: Any = msgspec.inspect.type_info(struct)
    return tuple(described.fields)


def _option_type(kind: Any) -> type | None:
    """Return what an option for a value of this kind takes; None if there can be none."""
    from msgspec import inspect as kinds

    match _without_none(kind):
        case kinds.Metadata(extra={"path": True}):
            return Path
        case kinds.StrType() | kinds.LiteralType():
            return str
        case kinds.IntType():
            return int
        case kinds.FloatType():
            return float
        case kinds.VarTupleType(item_type=kinds.StrType() | kinds.IntType()):
            return str
    return None


def _without_none(kind: Any) -> Any:
    from msgspec import inspect as kinds

    if not isinstance(kind, kinds.UnionType):
        return kind
    return next(inner for inner in kind.types if not isinstance(inner, kinds.NoneType))


def _item_type(struct: type[msgspec.Struct], name: str) -> type | None:
    """Return what the tuple in a field consists of; None if it holds no tuple."""
    from msgspec import inspect as kinds

    kind = next(field.type for field in _fields(struct) if field.name == name)
    if not isinstance(kind, kinds.VarTupleType):
        return None
    return int if isinstance(kind.item_type, kinds.IntType) else str


def _shown(default: Any) -> str:
    """Return a default as one would type it; nothing for what stands for "unset"."""
    import msgspec

    if default is None or default is msgspec.NODEFAULT:
        return ""
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _split(name: str, text: str, item: type) -> tuple[Any, ...]:
    from cema.errors import ConfigError

    if item is str:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        option = f"--{name.replace('_', '-')}"
        raise ConfigError(f"{option}: expected whole numbers separated by commas, got {text!r}") from None
