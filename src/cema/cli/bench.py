"""`cema bench`: every method on the same streams; `cema bench compare`: two results beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cema.cli.options import given_settings, lazy_group, with_options

if TYPE_CHECKING:
    from rich.console import Console

    from cema.bench.config import BenchConfig, BenchFile, ModelPair

__all__ = ["app"]


def _bench_with_settings() -> Callable[..., None]:
    """Return the command with an option for every setting; loads what declares them."""
    from cema.bench.config import BenchConfig, ModelPair

    return with_options(ModelPair, BenchConfig)(_bench)


app = typer.Typer(
    help="Measure test-time adaptation: every method on the same streams, with its uploads counted.",
    invoke_without_command=True,
    rich_markup_mode=None,
    cls=lazy_group(_bench_with_settings),
)


def _bench(
    context: typer.Context,
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            help="digits-c, cifar10-c, imagenet-c-cnn or imagenet-c-transformer.", show_default="none"
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file; options go over it.", show_default="none")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="METHOD.SETTING=VALUE; may be repeated.", show_default="none"),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            show_default="off",
            help="300 samples and three corruptions, where not said otherwise; 1000 and severity 3 with digits-c.",
        ),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            show_default="off",
            help="Measure again what --out holds as measured with other settings or code.",
        ),
    ] = False,
    html: Annotated[
        bool,
        typer.Option(
            "--html", show_default="off", help="Write report.html into --out, one file that opens anywhere."
        ),
    ] = False,
    show_settings: Annotated[
        bool,
        typer.Option(
            "--show-settings", show_default="off", help="Print every method's settings as TOML, and stop."
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time.", show_default="one per core, one on an accelerator"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keeps corrupted images.", show_default="cema in the user's cache folder"),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The folder of results; finished runs in it are not done again.")
    ] = Path("cema-bench"),
    **given: Any,
) -> None:
    """Run a benchmark: methods x corruptions x severities x seeds, for one pair of models or several.

    A benchmark that was stopped goes on where it was when the same command is given again.
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    asked = _configure(preset, config, given, settings or [], quick=quick)
    console = Console()
    if show_settings:
        _show_settings(console, asked, cache)
        return
    from cema.bench.runner import run_benchmark

    if asked.rates == "short" and asked.protocol != "reset":
        warning = f"rates short are for the protocol reset, not for {asked.protocol}; consider --rates papers"
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)
    try:
        run_benchmark(asked, out, console, jobs=jobs, cache=cache, quick=quick, replace=replace, html=html)
    except KeyboardInterrupt:
        console.print(
            f"stopped; the same command goes on from what is in {out}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(130) from None


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A results.json.", metavar="A.json")],
    b: Annotated[Path, typer.Argument(help="Another one.", metavar="B.json")],
) -> None:
    """Show how much better B is than A, in points of accuracy, and which differences are more than chance."""
    from rich.console import Console

    from cema.bench.compare import compare as compare_cells
    from cema.bench.compare import comparison_table
    from cema.bench.progress import print_wide
    from cema.bench.results import read_results, with_joined_names

    first, second = read_results(a), read_results(b)
    found = compare_cells(first["cells"], with_joined_names(second, first))
    console = Console()
    for group, rows in found.groups.items():
        print_wide(console, comparison_table(group, rows))
    every = found.all()
    beyond = sum(difference.beyond for difference in every)
    lines = [
        "B minus A in points of accuracy ± standard error; * is beyond two of them: "
        f"{beyond} of {len(every)}, where chance alone makes about one in twenty."
    ]
    if found.only_in_a or found.only_in_b:
        lines.append(f"Left out: {found.only_in_a} cells that only A has, {found.only_in_b} that only B has.")
    one, other = (results.get("settings", {}).get("data_digest") for results in (first, second))
    if one != other:
        lines.append("A and B were measured on different data.")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _configure(
    preset: str | None, config: Path | None, given: dict[str, Any], settings: list[str], *, quick: bool
) -> BenchConfig:
    """Lay the preset, the file and the options over one another."""
    from cema._util.names import merged
    from cema.bench.config import BenchConfig, BenchFile, ModelPair, parse_setting
    from cema.bench.presets import preset as find_preset

    parts = [find_preset(preset, quick=quick)] if preset is not None else []
    parts += [BenchFile.load(config)] if config is not None else []
    options = given_settings(BenchConfig, given)
    for text in settings:
        options["settings"] = merged(options.get("settings", {}), parse_setting(text))
    models = given_settings(ModelPair, given)
    if models:
        options["pair"] = (_pair(parts, models),)
    return BenchConfig.make(*parts, BenchFile(**options))


def _pair(parts: Sequence[BenchFile], options: dict[str, str]) -> ModelPair:
    """Return the one pair that the options name, or complete the one that a preset or a file names."""
    import msgspec

    from cema.bench.config import ModelPair
    from cema.errors import ConfigError

    if {"model", "foundation"} <= options.keys():
        return ModelPair(**options)
    known = [part.given()["pair"] for part in parts if "pair" in part.given()]
    if not known or len(known[-1]) != 1:
        raise ConfigError("which models? give both --model and --foundation")
    changes: dict[str, str | None] = dict(options)
    # Weights that belong to a model which the options replace are not its successor's.
    for model, weights in (("model", "weights"), ("foundation", "foundation_weights")):
        if model in options:
            changes.setdefault(weights, None)
    pair: ModelPair = msgspec.structs.replace(known[-1][0], **changes)
    return pair


def _show_settings(console: Console, asked: BenchConfig, cache: Path | None) -> None:
    """Print what would be used, so that it can be pasted into a file for --config."""
    from cema.bench.runner import make_plan
    from cema.bench.settings_file import settings_toml

    for pair in make_plan(asked, cache=cache).pairs:
        console.print(
            f"# {pair.models.model}, foundation {pair.models.foundation}", highlight=False, markup=False
        )
        console.print(settings_toml(pair.settings), highlight=False, markup=False, soft_wrap=True)
