"""Methods by name, and strict settings."""

from __future__ import annotations

import json
import math

import pytest

from cema._util.names import merged
from cema.errors import ConfigError
from cema.methods.base import MethodContext
from cema.methods.cotta import CoTTAConfig
from cema.methods.pl import PLConfig
from cema.methods.registry import METHODS, default_settings, make_adapter
from cema.methods.source import Source
from cema.methods.tent import Tent, TentConfig
from cema.models.spec import Model

MINE = ["source", "bn", "bn-prior", "onda", "pl", "tent", "eta", "eata"]


def test_the_methods_are_those_of_the_tables_in_their_order() -> None:
    assert list(METHODS) == [
        *(
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
        ),
    ]
    assert (METHODS["tent"].config, METHODS["tent"].adapter) == (TentConfig, Tent)


def test_no_two_rows_have_one_colour_in_plots() -> None:
    colours = [METHODS[name].colour for name in METHODS]
    assert len(set(colours)) == len(colours)


@pytest.mark.parametrize("name", MINE)
def test_default_settings_are_those_of_an_adapter_made_without(name: str, edge: Model) -> None:
    settings = default_settings(name)
    assert json.loads(json.dumps(settings)) == settings
    if name != "eata":
        context = MethodContext()
        assert make_adapter(name, edge).config == make_adapter(name, edge, settings, context).config  # type: ignore[attr-defined]


def test_the_defaults_are_the_papers() -> None:
    assert default_settings("onda") == {"momentum": 0.1, "every": 10}
    assert default_settings("tent") == {"lr": 0.00025, "momentum": 0.9, "optimizer": "sgd"}
    assert default_settings("pl") == {**default_settings("tent"), "threshold": 0.0}
    sar = default_settings("sar")
    assert sar["recover_below"] * math.log(1000) == pytest.approx(0.2)
    assert (sar["e_margin"], sar["skip"]) == (0.4, None)
    eata = default_settings("eata")
    assert (eata["e_margin"], eata["d_margin"]) == (0.4, 0.05)
    assert (eata["fisher_alpha"], eata["fisher_size"]) == (2000.0, 2000)
    assert default_settings("bn") == {"prior": 0.0}
    assert default_settings("bn-prior") == {"prior": 16.0}


def test_settings_replace_defaults(edge: Model) -> None:
    adapter = make_adapter("tent", edge, {"lr": 1})
    assert adapter.config == TentConfig(lr=1.0)  # type: ignore[attr-defined]
    assert isinstance(make_adapter("source", edge), Source)


def test_nested_settings_replace_single_nested_defaults() -> None:
    assert merged({"adapt": {"a": 1, "b": 2}, "c": 3}, {"adapt": {"b": 4}}) == {
        "adapt": {"a": 1, "b": 4},
        "c": 3,
    }


def test_an_unknown_method_is_an_error_that_lists_them(edge: Model) -> None:
    with pytest.raises(ConfigError, match=r"source, bn, .*got 'tnet'; did you mean tent\?"):
        make_adapter("tnet", edge)
    with pytest.raises(ConfigError, match="got 'nothing'"):
        default_settings("nothing")


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("tent", {"learning": 0.1}, r"method tent: .*learning.*settings of tent: lr, momentum"),
        ("tent", {"momentun": 0.1}, r"did you mean momentum\?"),
        ("source", {"lr": 0.1}, "settings of source: none"),
        ("tent", {"lr": "0.1"}, r"Expected `float`, got `str`"),
        ("tent", {"lr": -0.1}, "lr: expected a finite number of at least 0, got -0.1"),
        ("tent", {"lr": float("nan")}, "lr: expected a finite number"),
        ("tent", {"momentum": 1.0}, r"momentum: expected a number in \[0, 1\)"),
        ("tent", {"optimizer": "adamw"}, r"Invalid enum value 'adamw' - at `\$.optimizer`"),
        ("pl", {"optimizer": "Adam"}, "method pl: Invalid enum value 'Adam'"),
        ("pl", {"threshold": 1.5}, r"threshold: expected a number in \[0, 1\]"),
        ("pl", {"lr": float("inf")}, "lr: expected a finite number"),
        ("eta", {"e_margin": -1}, "e_margin: expected"),
        ("eta", {"d_margin": 2}, "d_margin: expected"),
        ("eta", {"average": 1}, "average: expected"),
        ("eta", {"fisher_alpha": 1.0}, "settings of eta"),
        ("eata", {"fisher_size": 0}, "fisher_size: expected a whole number of at least 1, got 0"),
        ("eata", {"fisher_batch": 0}, "fisher_batch: expected"),
        ("eata", {"fisher_alpha": -1}, "fisher_alpha: expected"),
        ("eata", {"lr": -1}, "lr: expected"),
        ("eata", {"fisher_size": 2.5}, "Expected `int`"),
        ("bn", {"prior": -1}, "prior: expected"),
        ("onda", {"momentum": 0}, r"momentum: expected a number in \(0, 1\]"),
        ("onda", {"every": 0}, "every: expected a whole number of at least 1"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(
    method: str, settings: dict[str, object], message: str, edge: Model
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_adapter(method, edge, settings)


@pytest.mark.parametrize("config", [CoTTAConfig, PLConfig, TentConfig])
def test_an_unknown_optimizer_is_refused_from_python_too(
    config: type[CoTTAConfig] | type[PLConfig] | type[TentConfig],
) -> None:
    with pytest.raises(ValueError, match='optimizer: expected one of "sgd" and "adam", got \'adamw\''):
        config(optimizer="adamw")  # type: ignore[arg-type]
