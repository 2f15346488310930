"""What is asked for: presets, files, options, and what is said about what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from cema._util.names import merged
from cema.bench.config import BenchConfig, BenchFile, ModelPair, parse_setting
from cema.bench.hyperparameters import (
    architecture,
    method_settings,
    table_settings,
)
from cema.bench.presets import PRESETS, preset
from cema.bench.settings_file import settings_toml
from cema.cli.app import app
from cema.data.c_bar import LEVELS
from cema.data.corruptions import CORRUPTIONS, VALIDATION_CORRUPTIONS
from cema.errors import ConfigError

PAIR = ModelPair(model="digits-cnn", foundation="digits-cnn-foundation")


def config(**changes: Any) -> BenchConfig:
    return BenchConfig(**({"data": "digits", "pair": (PAIR,)} | changes))


def test_the_later_goes_over_the_earlier(tmp_path: Path) -> None:
    path = tmp_path / "bench.toml"
    path.write_text(
        'data = "digits"\nseverities = [1]\nsamples = 5\nprotocol = "recurring"\nvisits = 4\n'
        '[[pair]]\nmodel = "a"\nfoundation = "b"\nweights = "w.safetensors"\n'
        "[settings.tent]\nlr = 0.5\n[settings.cema.adapt]\nfresh = 8\nreplayed = 4\n"
    )
    options = BenchFile(samples=7, visits=2, settings={"cema": {"adapt": {"fresh": 16}}})
    made = BenchConfig.make(preset("digits-c"), BenchFile.load(path), options)
    assert (made.severities, made.samples, made.batch_size) == ((1,), 7, 64)
    assert made.pair[0].weights == str(tmp_path / "w.safetensors")
    assert (made.protocol, made.visits) == ("recurring", 2)
    assert made.settings == {"tent": {"lr": 0.5}, "cema": {"adapt": {"fresh": 16, "replayed": 4}}}


def test_data_beside_the_file_are_found_there(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "bench.toml").write_text('data = "images"')
    assert BenchFile.load(tmp_path / "bench.toml").data == str(tmp_path / "images")
    (tmp_path / "bench.toml").write_text('data = "digits"')
    assert BenchFile.load(tmp_path / "bench.toml").data == "digits"


def test_the_embedded_digits_come_with_models() -> None:
    assert BenchConfig.make(BenchFile(data="digits")).pair == (PAIR,)
    with pytest.raises(ConfigError, match="--model and --foundation"):
        BenchConfig.make(BenchFile(data="photographs"))
    with pytest.raises(ConfigError, match="which data"):
        BenchConfig.make()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_a_configuration(name: str) -> None:
    made = BenchConfig.make(preset(name), BenchFile(data="digits"))
    assert made.severities == (3, 5)
    assert made.protocol == "reset"
    assert made.rates == ("short" if name in {"digits-c", "cifar10-c"} else "papers")


def test_a_preset_may_have_a_short_form_and_what_is_asked_for_goes_over_it() -> None:
    short, whole = preset("digits-c", quick=True), preset("digits-c")
    made = BenchConfig.make(short)
    assert (made.samples, made.severities, len(made.corruptions)) == (2000, (5,), 2)
    assert made.pair == BenchConfig.make(whole).pair
    assert BenchConfig.make(short, BenchFile(samples=64)).samples == 64
    assert preset("cifar10-c", quick=True) == preset("cifar10-c")


def test_whose_rates_may_be_said_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_text('rates = "papers"')
    file = BenchFile.load(tmp_path / "bench.toml")
    assert BenchConfig.make(preset("digits-c"), file).rates == "papers"
    (tmp_path / "bench.toml").write_text('rates = "mine"')
    with pytest.raises(ConfigError, match="rates"):
        BenchFile.load(tmp_path / "bench.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "resett"}, "did you mean reset"),
        ({"rates": "shrt"}, "did you mean short"),
        ({"severities": (6,)}, "severities"),
        ({"severities": (0,)}, "severities"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "each value once"),
        ({"batch_size": 0}, "batch_size"),
        ({"samples": 0}, "samples"),
        ({"crops": 0}, "crops"),
        ({"edges": 0}, "edges"),
        ({"visits": 0}, "visits"),
        ({"delay": -1}, "delay"),
        ({"concentration": 0.0}, "concentration"),
        ({"pair": ()}, "pair"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_corruptions_are_those_that_there_are() -> None:
    assert config().settled(None).corruptions == CORRUPTIONS
    assert config().settled(None, quick=True).corruptions == ("gaussian_noise", "snow", "contrast")
    assert config().settled(["snow", "fog", "spatter"]).corruptions == ("snow", "fog")
    assert config().settled(["spatter"]).corruptions == ("spatter",)
    assert config(corruptions=("spatter", "clean")).settled(None).corruptions == ("spatter", "clean")
    natural = config().settled([])
    assert (natural.corruptions, natural.severities) == (("clean",), (0,))
    with pytest.raises(ConfigError, match=r"'fogg'; there are .*did you mean fog"):
        config(corruptions=("fogg",)).settled(None)
    with pytest.raises(ConfigError, match="there are snow, clean"):
        config(corruptions=("fog",)).settled(["snow"])


def test_sets_of_corruptions_have_names() -> None:
    usual = config(corruptions=("usual",)).settled(None)
    assert usual.corruptions == CORRUPTIONS
    tuning = config(corruptions=("validation", "c-bar", "clean")).settled(None).corruptions
    assert tuning == (*VALIDATION_CORRUPTIONS, *LEVELS["imagenet"], "clean")
    small = config(corruptions=("c-bar",)).settled(None, constants="cifar").corruptions
    assert sorted(small) == sorted(LEVELS["cifar"])
    # Named twice, measured once; of published files, what is there.
    twice = config(corruptions=("snow", "usual")).settled(None).corruptions
    assert sorted(twice) == sorted(CORRUPTIONS)
    assert config(corruptions=("c-bar",)).settled(["snow", "lines"]).corruptions == ("lines",)
    with pytest.raises(ConfigError, match=r"'c-bar'; there are snow, clean, usual$"):
        config(corruptions=("c-bar",)).settled(["snow"])
    with pytest.raises(ConfigError, match=r"'lines'; there are .*perlin_noise"):
        config(corruptions=("lines",)).settled(None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tent.lr=1e-3", {"tent": {"lr": 0.001}}),
        ("cema.adapt.preset=reference", {"cema": {"adapt": {"preset": "reference"}}}),
        ("cotta.symmetric=true", {"cotta": {"symmetric": True}}),
        ("a.b=x=y", {"a": {"b": "x=y"}}),
        ('cema.rule="budget"', {"cema": {"rule": "budget"}}),
        ('cema.options={"share": 0.1}', {"cema": {"options": {"share": 0.1}}}),
        (
            "cema.options={share=0.1, order='random'}",
            {"cema": {"options": {"share": 0.1, "order": "random"}}},
        ),
        ("a.b=['x', 'y']", {"a": {"b": ["x", "y"]}}),
        ("a.b={not a table", {"a": {"b": "{not a table"}}),
    ],
)
def test_settings_on_the_command_line(text: str, expected: dict[str, Any]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["tent.lr", "lr=1", ".lr=1", "tent.=1", ""])
def test_a_setting_without_a_method_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"METHOD\.SETTING=VALUE"):
        parse_setting(text)


def test_merging_leaves_its_arguments_alone() -> None:
    under = {"a": {"b": 1, "c": 2}}
    assert merged(under, {"a": {"b": 3}, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert under == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize("family", ["imagenet", "cifar", "cifar100", "digits", "shells"])
@pytest.mark.parametrize("kind", ["batchnorm", "groupnorm", "layernorm"])
@pytest.mark.parametrize("rates", ["papers", "short"])
def test_every_method_takes_what_the_tables_say(family: Any, kind: Any, rates: Any) -> None:
    from cema.methods.registry import METHODS

    for method in METHODS:
        settings = method_settings(method, family, kind, rates=rates)
        for name, value in table_settings(method, family, kind, rates).items():
            expected = merged(settings[name], value) if isinstance(value, dict) else value
            assert settings[name] == expected


def test_short_streams_have_rates_of_their_own() -> None:
    def tent(rates: Any, family: Any = "cifar") -> tuple[str, float]:
        settings = method_settings("tent", family, "batchnorm", rates=rates)
        return settings["optimizer"], settings["lr"]

    assert tent("papers") == tent("papers", "digits") == ("adam", 0.001)
    assert tent("short") == ("sgd", 0.025)
    assert tent("short", "digits") == ("sgd", 0.00025)
    # What was not tuned stays.
    assert tent("short", "cifar100") == tent("papers", "cifar100")
    short = method_settings("eata", "cifar", "batchnorm", rates="short")
    assert (short["lr"], short["d_margin"], short["fisher_alpha"]) == (0.025, 0.4, 1.0)
    assert method_settings("deyo", "cifar", "batchnorm", rates="short")["lr"] == 0.005
    for method in ("roid", "cmf"):
        short = method_settings(method, "digits", "batchnorm", rates="short")
        assert (short["optimizer"], short["lr"], short["flip"]) == ("adam", 2.5e-4, 0.0)
    for row, table in (("rotta", "cifar"), ("eata-come", "digits")):
        short, papers = (method_settings(row, table, "batchnorm", rates=r) for r in ("short", "papers"))
        assert short == papers
    given = {"tent": {"lr": 0.7}}
    assert method_settings("tent", "cifar", "batchnorm", rates="short", given=given)["lr"] == 0.7


@pytest.mark.parametrize(
    ("method", "family", "kind", "expected"),
    [
        ("tent", "imagenet", "batchnorm", {"optimizer": "sgd", "lr": 0.00025}),
        ("sar", "imagenet", "groupnorm", {"lr": 0.00025}),
        ("sar", "imagenet", "layernorm", {"lr": 0.001}),
        ("deyo", "imagenet", "batchnorm", {"lr": 0.00025, "plpd_margin": 0.3, "e_margin": 0.5}),
        ("deyo", "imagenet", "groupnorm", {"lr": 0.00025, "plpd_margin": 0.2, "e_weight": 0.4}),
        ("deyo", "imagenet", "layernorm", {"lr": 0.001, "plpd_margin": 0.2}),
        ("tent-come", "imagenet", "layernorm", {"optimizer": "sgd", "lr": 0.001}),
        ("eata-come", "imagenet", "batchnorm", {"lr": 0.00025, "e_margin": 0.4, "fisher_alpha": 2000.0}),
        ("rdumb", "imagenet", "batchnorm", {"lr": 0.00025, "d_margin": 0.05, "reset_every": 1000}),
        ("eta", "cifar", "groupnorm", {"lr": 0.005, "d_margin": 0.4, "e_margin": 0.4}),
        ("eta", "cifar100", "batchnorm", {"lr": 0.005, "d_margin": 0.4, "e_margin": 0.4}),
        ("cotta", "cifar", "batchnorm", {"optimizer": "adam", "lr": 0.001, "confidence": 0.92}),
        ("cotta", "cifar100", "layernorm", {"optimizer": "adam", "lr": 0.001, "confidence": 0.72}),
        ("cotta", "imagenet", "groupnorm", {"optimizer": "sgd", "lr": 0.01, "confidence": 0.1}),
        ("cotta", "digits", "groupnorm", {"flip": 0.0, "confidence": 0.92}),
    ],
)
def test_the_papers_values(method: str, family: Any, kind: Any, expected: dict[str, Any]) -> None:
    settings = method_settings(method, family, kind)
    assert {name: settings[name] for name in expected} == expected


def test_which_architecture_a_network_is_of() -> None:
    batch, group, layer = nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4)
    assert architecture(nn.Sequential(layer, nn.Sequential(group, batch))) == "batchnorm"
    assert architecture(nn.Sequential(nn.Conv2d(3, 4, 1), group)) == "groupnorm"
    assert architecture(nn.Sequential(group, layer)) == "layernorm"
    assert architecture(layer) == "layernorm"


def test_short_rates_on_other_protocols_are_warned_of() -> None:
    # It says so before it finds that there is no such method.
    command = ["bench", "--data", "digits", "--methods", "none", "--rates", "short", "--protocol"]
    warned = CliRunner().invoke(app, [*command, "continual"])
    assert isinstance(warned.exception, ConfigError)
    assert warned.output.count("\n") == 1
    assert "not for continual; consider --rates papers" in warned.output
    assert not CliRunner().invoke(app, [*command, "reset"]).output


def test_settings_go_over_the_table_and_delay_reaches_cema() -> None:
    given = {"tent": {"lr": 0.7}, "cema": {"adapt": {"edge_lr": 0.3}}}
    assert method_settings("tent", "cifar", "batchnorm", given=given)["lr"] == 0.7
    cema = method_settings("cema", "cifar", "batchnorm", given=given, delay=4)
    assert (cema["adapt"]["edge_lr"], cema["delay"]) == (0.3, 4)
    assert cema["adapt"]["fresh"] == method_settings("cema", "cifar", "batchnorm")["adapt"]["fresh"]
    assert "delay" not in method_settings("tent", "cifar", "batchnorm", delay=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tent": {"rate": 1}}, "unknown setting of tent 'rate'; there are lr"),
        ({"cema": {"adapt": {"edge_lrr": 1}}}, r"setting of cema\.adapt 'edge_lrr'.*did you mean edge_lr"),
        ({"tentt": {"lr": 1}}, "unknown method 'tentt'.*did you mean tent"),
        ({"tent": {"lr": "fast"}}, "settings of tent"),
        ({"tent": {"lr": -1}}, "settings of tent"),
        (
            {"cema": {"rule": "budget", "options": {"share": 2}}},
            r"settings of cema: options\.share: expected",
        ),
        (
            {"cema": {"rule": "budget", "options": {"shar": 2}}},
            r"settings of cema: options\.shar: .*mean share",
        ),
        ({"cema": {"options": {"share": 0.1}}}, "settings of cema: options: expected none"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        method_settings("cema" if "cema" in given else "tent", "digits", "batchnorm", given=given)


def test_what_is_printed_can_be_read_back(tmp_path: Path) -> None:
    settings = {m: method_settings(m, "imagenet", "layernorm") for m in ("source", "cotta", "sar", "cema")}
    path = tmp_path / "bench.toml"
    path.write_text(settings_toml(settings))
    given = BenchFile.load(path).settings
    assert isinstance(given, dict)
    for method, expected in settings.items():
        assert method_settings(method, "digits", "batchnorm", given=given) == expected
