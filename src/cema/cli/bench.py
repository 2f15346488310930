"""`cema bench`: every method on the same streams; `cema bench compare`: two results beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cema.bench.config import BenchConfig, ModelPair

__all__ = ["app"]

app = typer.Typer(
    help="Measure test-time adaptation: every method on the same streams, with its uploads counted.",
    invoke_without_command=True,
)


@app.callback()
def bench(
    context: typer.Context,
    preset: Annotated[
        str | None,
        typer.Option(help="digits-c, cifar10-c, imagenet-c-cnn or imagenet-c-transformer."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file; options go over it.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, fashion-mnist, a .npz with x and y, or a folder (ImageNet-C, CIFAR-10-C, ...)."
        ),
    ] = None,
    source_data: Annotated[
        str | None, typer.Option(help="Clean images for EATA, where the data are corrupted ones only.")
    ] = None,
    wnids: Annotated[
        Path | None, typer.Option(help="Class names of image folders in the order of the logits, one a line.")
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(help="What photographs in folders are cut to, in pixels; 0: nothing. [default: 224]"),
    ] = None,
    constants: Annotated[
        str | None,
        typer.Option(help="Severities of made corruptions: cifar or imagenet; by the images' size if unset."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The edge model: any name that `cema export` takes.")
    ] = None,
    foundation: Annotated[str | None, typer.Option(help="The foundation model.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Safetensors file of the edge model.")] = None,
    foundation_weights: Annotated[
        Path | None, typer.Option(help="Safetensors file of the foundation model.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Rows, separated by commas; all if unset.")] = None,
    corruptions: Annotated[
        str | None, typer.Option(help="Columns, separated by commas; the usual fifteen if unset.")
    ] = None,
    severities: Annotated[str | None, typer.Option(help="Separated by commas, 1 to 5.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="reset, continual, gradual, mixed or correlated.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Images per corruption; all if unset.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per prediction. [default: 64]")] = None,
    edges: Annotated[int | None, typer.Option(help="Devices that share the stream. [default: 1]")] = None,
    delay: Annotated[
        int | None, typer.Option(help="Batches after which an update of CEMA arrives. [default: 0]")
    ] = None,
    concentration: Annotated[
        float | None, typer.Option(help="Of the labels in time, for --protocol correlated. [default: 0.1]")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Separated by commas. [default: 0]")] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            help="papers, or short: tuned by this project on streams of some thousand images. [default: papers]"
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: cpu]")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="METHOD.SETTING=VALUE; may be repeated.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="300 samples and three corruptions, where not said otherwise.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Measure again what --out holds as measured with other settings or code."
        ),
    ] = False,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print every method's settings as TOML, and stop.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; one per core if unset, one on an accelerator.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Keeps corrupted images; in the user's cache folder if unset.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The folder of results; finished runs in it are not done again.")
    ] = Path("cema-bench"),
) -> None:
    """Run a benchmark: methods x corruptions x severities x seeds, for one pair of models or several.

    A benchmark that was stopped goes on where it was when the same command is given again.
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    given = {
        "data": data,
        "source_data": source_data,
        "wnids": None if wnids is None else str(wnids),
        "side": side,
        "constants": constants,
        "methods": _names(methods),
        "corruptions": _names(corruptions),
        "severities": _numbers("--severities", severities),
        "protocol": protocol,
        "samples": samples,
        "batch_size": batch_size,
        "edges": edges,
        "delay": delay,
        "concentration": concentration,
        "seeds": _numbers("--seeds", seeds),
        "rates": rates,
        "device": device,
    }
    asked = _configure(
        preset, config, given, settings or [], (model, weights, foundation, foundation_weights)
    )
    console = Console()
    if show_settings:
        _show_settings(console, asked, cache)
        return
    from cema.bench.runner import run_benchmark

    if asked.rates == "short" and asked.protocol != "reset":
        console.print(
            f"warning: rates short are for the protocol reset, not for {asked.protocol}; consider --rates papers",
            highlight=False,
            soft_wrap=True,
        )
    try:
        run_benchmark(asked, out, console, jobs=jobs, cache=cache, quick=quick, replace=replace)
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
    from cema.bench.results import read_results

    first, second = read_results(a), read_results(b)
    found = compare_cells(first["cells"], second["cells"])
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
    preset: str | None,
    config: Path | None,
    given: dict[str, Any],
    settings: list[str],
    models: tuple[str | None, Path | None, str | None, Path | None],
) -> BenchConfig:
    """Lay the preset, the file and the options over one another."""
    from cema.bench.config import BenchConfig, BenchFile, merge_settings, parse_setting
    from cema.bench.presets import preset as find_preset

    parts = [find_preset(preset)] if preset is not None else []
    parts += [BenchFile.load(config)] if config is not None else []
    options = {name: value for name, value in given.items() if value is not None}
    merged: dict[str, Any] = {}
    for text in settings:
        merged = merge_settings(merged, parse_setting(text))
    if merged:
        options["settings"] = merged
    if any(value is not None for value in models):
        options["pair"] = (_pair(parts, *models),)
    return BenchConfig.make(*parts, BenchFile(**options))


def _pair(
    parts: list[Any],
    model: str | None,
    weights: Path | None,
    foundation: str | None,
    foundation_weights: Path | None,
) -> ModelPair:
    """Return the one pair that the options name, or complete the one that a preset or a file names."""
    import msgspec

    from cema.bench.config import ModelPair
    from cema.errors import ConfigError

    named: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "foundation": foundation,
        "foundation_weights": foundation_weights,
    }
    options = {name: str(value) for name, value in named.items() if value is not None}
    if model is not None and foundation is not None:
        return ModelPair(**options)
    pairs: tuple[ModelPair, ...] = next(
        (part.pair for part in reversed(parts) if part.pair is not msgspec.UNSET), ()
    )
    if len(pairs) != 1:
        raise ConfigError("which models? give both --model and --foundation")
    if model is not None:
        options.setdefault("weights", "")
    if foundation is not None:
        options.setdefault("foundation_weights", "")
    # Weights that belong to a model which the options replace are not its successor's.
    return msgspec.structs.replace(pairs[0], **{name: value or None for name, value in options.items()})


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    from cema.errors import ConfigError

    try:
        return None if text is None else tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(f"{option}: expected whole numbers separated by commas, got {text!r}") from None


def _show_settings(console: Any, asked: BenchConfig, cache: Path | None) -> None:
    """Print what would be used, so that it can be pasted into a file for --config."""
    from cema.bench.hyperparameters import settings_toml
    from cema.bench.runner import make_plan

    for pair in make_plan(asked, cache=cache).pairs:
        console.print(
            f"# {pair.models.model}, foundation {pair.models.foundation}", highlight=False, markup=False
        )
        console.print(settings_toml(pair.settings), highlight=False, markup=False, soft_wrap=True)
