"""Options made from a settings struct: each field once, with its type, help and default."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from cema.bench.config import BenchConfig, BenchFile, FilePath, ModelPair
from cema.cli.app import app
from cema.cli.options import given_settings, lazy_group, with_options
from cema.errors import ConfigError


class Settings(msgspec.Struct, kw_only=True):
    """Settings of a test.

    Attributes
    ----------
    names : tuple of str
        Names. A second sentence is for
        programmers.
    sizes : tuple of int
        Sizes of each thing,
        in pixels.
    file : str, optional
        A file.
    rate : float
        Of learning.
    table : dict
        No option can hold it.
    """

    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (3, 5)
    file: FilePath | None = None
    rate: float = 0.5
    table: dict[str, int] = {}


def command(seen: list[dict[str, Any]]) -> typer.Typer:
    def run(*, quick: bool = False, **given: Any) -> None:
        seen.append({"quick": quick, **given_settings(Settings, given)})

    group = typer.Typer(cls=lazy_group(lambda: with_options(Settings)(run)), invoke_without_command=True)
    root = typer.Typer()
    root.add_typer(group, name="run")
    root.command("other")(lambda: None)
    return root


def test_values_are_those_of_the_fields() -> None:
    seen: list[dict[str, Any]] = []
    arguments = ["run", "--quick", "--names", "a, b,", "--sizes", "1,2", "--file", "f.txt", "--rate", "1"]
    done = CliRunner().invoke(command(seen), arguments)
    assert done.exit_code == 0, done.output
    assert seen == [{"quick": True, "names": ("a", "b"), "sizes": (1, 2), "file": "f.txt", "rate": 1.0}]


def test_what_is_not_given_is_not_there() -> None:
    seen: list[dict[str, Any]] = []
    assert CliRunner().invoke(command(seen), ["run"]).exit_code == 0
    assert seen == [{"quick": False}]


def test_a_wrong_number_names_its_option() -> None:
    error = CliRunner().invoke(command([]), ["run", "--sizes", "1;2"]).exception
    assert isinstance(error, ConfigError)
    assert str(error) == "--sizes: expected whole numbers separated by commas, got '1;2'"
    assert CliRunner().invoke(command([]), ["run", "--rate", "fast"]).exit_code == 2


def test_the_help_is_the_first_sentence_and_the_default() -> None:
    shown = CliRunner().invoke(command([]), ["run", "--help"], env={"COLUMNS": "160"}).stdout
    assert "Sizes of each thing, in pixels. [default: (3,5)]" in shown
    assert "Names. " in shown
    assert "programmers" not in shown
    assert "--table" not in shown


def test_every_setting_of_a_benchmark_has_an_option_or_is_a_table() -> None:
    shown = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "200"}).stdout
    names = {*BenchConfig.__struct_fields__, *ModelPair.__struct_fields__} - {"pair", "codec", "settings"}
    assert [name for name in names if f"--{name.replace('_', '-')} " not in shown] == []
    assert BenchFile.__struct_fields__ == BenchConfig.__struct_fields__


def test_the_options_of_one_command_do_not_slow_the_others_down(tmp_path: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from cema.cli.app import app; "
        "assert 'bench' in CliRunner().invoke(app, ['--help']).stdout; "
        "print([name for name in ('numpy', 'torch', 'msgspec') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("key", ["data", "samples", "pair"])
def test_a_key_of_a_file_is_checked_as_the_setting_is(tmp_path: Path, key: str) -> None:
    (tmp_path / "bench.toml").write_text(f"{key} = true")
    expected = {"data": "Expected `str`, got `bool`", "samples": "Expected `int`", "pair": "Expected `array`"}
    with pytest.raises(ConfigError, match=expected[key]):
        BenchFile.load(tmp_path / "bench.toml")


def options(command: Any, path: str = "cema") -> Iterator[tuple[str, str]]:
    """Yield every option of a command and of those below it, with what the help says of it."""
    context = command.make_context(path, [], resilient_parsing=True)
    for parameter in command.get_params(context):
        if parameter.param_type_name == "option" and not parameter.required and not parameter.is_eager:
            yield f"{path} {parameter.opts[0]}", parameter.get_help_record(context)[1]
    for name, below in getattr(command, "commands", {}).items():
        yield from options(below, f"{path} {name}")


def test_every_option_of_every_command_shows_its_default() -> None:
    every = dict(options(typer.main.get_command(app)))
    assert {"cema demo --rate", "cema bench --samples", "cema device renew --out"} <= every.keys()
    assert {name: told for name, told in every.items() if "[default" not in told} == {}
    assert {name: told for name, told in every.items() if "if unset" in told} == {}
