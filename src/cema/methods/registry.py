"""Every method of the benchmark by its name: built in, installed, or named where it stands."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import msgspec

import cema.methods
from cema._util.names import did_you_mean, is_object_name, load_object, merged
from cema.errors import ConfigError
from cema.methods.base import REGISTERED, Method, MethodContext

if TYPE_CHECKING:
    from cema.methods.base import Adapter
    from cema.models.spec import Model

__all__ = ["ENTRY_POINTS", "METHODS", "default_settings", "find_method", "make_adapter"]

ENTRY_POINTS = "cema.methods"
"""The entry-point group in which an installed package names its methods as ``name = "package.module:Class"``."""

# The order of the tables; what is not in here follows by name.
_ORDER = (
    "source",
    "bn",
    "bn-prior",
    "views",
    "onda",
    "lame",
    "t3a",
    "neo",
    "pl",
    "tent",
    "tent-come",
    "cotta",
    "rotta",
    "eta",
    "eata",
    "eata-come",
    "rdumb",
    "sar",
    "deyo",
    "roid",
    "cmf",
    "cema",
    "cema-paper",
    "cema-reference",
)


class _Methods(Mapping[str, Method]):
    """The built-in and the installed methods; a look-up takes the name of a class outside of these too."""

    def __getitem__(self, name: str) -> Method:
        if is_object_name(name):
            return _of_class(name)
        if name in _built_in():
            return REGISTERED[name]
        return _of_class(_installed()[name])

    def __iter__(self) -> Iterator[str]:
        yield from _built_in()
        yield from _installed()

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (is_object_name(name) or name in list(iter(self)))


METHODS: Mapping[str, Method] = _Methods()
"""Every method by name, in the order of the tables; the first use loads torch.

Iterating gives the built-in methods and those that installed packages name in the group `ENTRY_POINTS`. A look-up also
takes ``package.module:Class`` and ``path/to/file.py:Class``.
"""


@cache
def _built_in() -> tuple[str, ...]:
    """Import every module of the package, and return the names that they registered."""
    own = f"{cema.methods.__name__}."
    for module in pkgutil.iter_modules(cema.methods.__path__, own):
        import_module(module.name)
    names = [name for name, known in REGISTERED.items() if known.adapter.__module__.startswith(own)]
    return tuple(
        sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    )


@cache
def _installed() -> dict[str, str]:
    """Return the names that installed packages give their methods, and where these stand."""
    found = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    return {point.name: point.value for point in found if point.name not in _built_in()}


def _of_class(name: str) -> Method:
    """Import a class from outside and return the method that its decorator made of it."""
    adapter = load_object(name)
    for known in REGISTERED.values():
        if known.adapter is adapter:
            return known
    raise ConfigError(
        f"{name}: expected a class with the decorator cema.methods.base.method, got {type(adapter).__name__} without; "
        "see examples/own_method.py"
    )


def find_method(name: str) -> Method:
    """Return a method by name.

    Parameters
    ----------
    name : str
        As `METHODS` takes it.

    Raises
    ------
    ConfigError
        When there is no such method.
    """
    if name not in METHODS:
        raise ConfigError(
            f"expected a method out of {', '.join(METHODS)}, got {name!r}{did_you_mean(name, METHODS)}"
        )
    return METHODS[name]


def default_settings(name: str) -> dict[str, Any]:
    """Return a method's settings when none are given.

    Parameters
    ----------
    name : str
        As `METHODS` takes it.

    Returns
    -------
    dict of str to object
        Fit for JSON; nested structures are dicts.

    Raises
    ------
    ConfigError
        When there is no such method.
    """
    settings: dict[str, Any] = msgspec.to_builtins(find_method(name).defaults())
    return settings


def make_adapter(
    name: str, edge: Model, settings: Mapping[str, object] | None = None, context: MethodContext | None = None
) -> Adapter:
    """Make an adapter by the name of its method.

    Parameters
    ----------
    name : str
        As `METHODS` takes it.
    edge : cema.models.spec.Model
        The edge model; copied.
    settings : mapping of str to object, optional
        What differs from `default_settings`; a nested mapping changes single settings of a nested structure.
    context : MethodContext, optional
        Everything else; None for its defaults.

    Returns
    -------
    Adapter
        At the source model.

    Raises
    ------
    ConfigError
        When there is no such method, or a setting is unknown, of the wrong type or out of its range.
    NotApplicable
        When the method cannot work with this model or context.
    ModelError
        When the model has no adaptable normalisation layer.
    """
    config = _configure(name, settings or {})
    return find_method(name).adapter(edge, config, context=context or MethodContext())


def _configure(name: str, settings: Mapping[str, object]) -> msgspec.Struct:
    defaults = default_settings(name)
    try:
        return msgspec.convert(merged(defaults, settings), find_method(name).config)
    except msgspec.ValidationError as error:
        unknown = [key for key in settings if key not in defaults]
        hint = did_you_mean(unknown[0], defaults) if unknown else ""
        known = ", ".join(defaults) or "none"
        raise ConfigError(f"method {name}: {error}; settings of {name}: {known}{hint}") from error
