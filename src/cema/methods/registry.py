"""Every method of the benchmark by its name, loaded when it is first asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from cema.errors import ConfigError
from cema.methods.base import MethodContext

if TYPE_CHECKING:
    from cema.methods.base import Adapter
    from cema.models.spec import Model

__all__ = ["METHODS", "Method", "default_settings", "make_adapter"]


class AdapterFactory(Protocol):
    """The constructor that every method has."""

    def __call__(self, edge: Model, config: Any = None, *, context: MethodContext) -> Adapter:
        """Make an adapter that begins as the model `edge`."""
        ...


class Method(NamedTuple):
    """One method: the structure of its settings, and its class."""

    config: type[msgspec.Struct]
    adapter: AdapterFactory


class _Home(NamedTuple):
    """Where a method is: module, class, structure of its settings, and a function for other defaults."""

    module: str
    adapter: str
    config: str
    defaults: str | None = None


_HOMES = {
    "source": _Home("source", "Source", "SourceConfig"),
    "bn": _Home("bn", "BN", "BNConfig"),
    "bn-prior": _Home("bn", "BN", "BNConfig", "prior_defaults"),
    "onda": _Home("onda", "ONDA", "ONDAConfig"),
    "lame": _Home("lame", "Lame", "LameConfig"),
    "pl": _Home("pl", "PL", "PLConfig"),
    "tent": _Home("tent", "Tent", "TentConfig"),
    "cotta": _Home("cotta", "CoTTA", "CoTTAConfig"),
    "eta": _Home("eta", "ETA", "ETAConfig"),
    "eata": _Home("eata", "EATA", "EATAConfig"),
    "sar": _Home("sar", "SAR", "SARConfig"),
    "cema": _Home("cema", "Cema", "CemaConfig"),
    "cema-reference": _Home("cema", "Cema", "CemaConfig", "reference_defaults"),
}


class _Methods(Mapping[str, Method]):
    """A mapping that imports a method's module when the method is looked up."""

    def __getitem__(self, name: str) -> Method:
        home = _HOMES[name]
        module = _load(home)
        return Method(getattr(module, home.config), getattr(module, home.adapter))

    def __iter__(self) -> Iterator[str]:
        return iter(_HOMES)

    def __len__(self) -> int:
        return len(_HOMES)


METHODS: Mapping[str, Method] = _Methods()
"""Every method by name, in the order of the tables; looking one up loads torch."""


def default_settings(name: str) -> dict[str, Any]:
    """Return a method's settings when none are given.

    Parameters
    ----------
    name : str
        A key of `METHODS`.

    Returns
    -------
    dict of str to object
        Fit for JSON; nested structures are dicts.

    Raises
    ------
    ConfigError
        When there is no such method.
    """
    home = _find(name)
    module = _load(home)
    defaults = getattr(module, home.defaults or home.config)()
    settings: dict[str, Any] = msgspec.to_builtins(defaults)
    return settings


def make_adapter(
    name: str, edge: Model, settings: Mapping[str, object] | None = None, context: MethodContext | None = None
) -> Adapter:
    """Make an adapter by the name of its method.

    Parameters
    ----------
    name : str
        A key of `METHODS`.
    edge : cema.models.spec.Model
        The edge model; copied.
    settings : mapping of str to object, optional
        What differs from `default_settings`; a nested mapping changes single settings of a nested structure.
    context : Context, optional
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
    return METHODS[name].adapter(edge, config, context=context or MethodContext())


def _configure(name: str, settings: Mapping[str, object]) -> msgspec.Struct:
    defaults = default_settings(name)
    try:
        return msgspec.convert(_merge(defaults, settings), METHODS[name].config)
    except msgspec.ValidationError as error:
        unknown = [key for key in settings if key not in defaults]
        known = ", ".join(defaults) or "none"
        raise ConfigError(
            f"method {name}: {error}; settings of {name}: {known}{_hint(unknown, defaults)}"
        ) from error


def _merge(defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _find(name: str) -> _Home:
    if name not in _HOMES:
        raise ConfigError(
            f"expected a method out of {', '.join(_HOMES)}, got {name!r}{_hint([name], _HOMES)}"
        )
    return _HOMES[name]


def _hint(wrong: list[str], known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(wrong[0], list(known), n=1) if wrong else []
    return f"; did you mean {close[0]}?" if close else ""


def _load(home: _Home) -> Any:
    return import_module(f"cema.methods.{home.module}")
