"""The tables of a benchmark: rows are methods, columns are corruptions and their average."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from cema._util.files import write_atomic
from cema._util.units import human_bytes
from cema.bench.chance import chance_sentence
from cema.bench.protocols import CLEAN
from cema.bench.standard_error import binomial_error

__all__ = [
    "AVERAGE",
    "SHORT",
    "Entry",
    "ResultTable",
    "averaged",
    "console_table",
    "markdown_table",
    "summarise",
    "write_csv",
    "write_markdown",
]

#: The last column.
AVERAGE = "average"

#: Headings as papers abbreviate them.
SHORT = {
    "gaussian_noise": "Gauss.",
    "shot_noise": "Shot",
    "impulse_noise": "Impul.",
    "defocus_blur": "Defoc.",
    "glass_blur": "Glass",
    "motion_blur": "Motion",
    "zoom_blur": "Zoom",
    "snow": "Snow",
    "frost": "Frost",
    "fog": "Fog",
    "brightness": "Brit.",
    "contrast": "Contr.",
    "elastic_transform": "Elast.",
    "pixelate": "Pixel",
    "jpeg_compression": "JPEG",
    "speckle_noise": "Speck.",
    "gaussian_blur": "G.blur",
    "spatter": "Spatt.",
    "saturate": "Satur.",
    "blue_noise_sample": "BlueS.",
    "plasma_noise": "Plasma",
    "checkerboard_cutout": "Check.",
    "cocentric_sine_waves": "Rings",
    "single_frequency_greyscale": "Freq.",
    "brownish_noise": "Brown.",
    "perlin_noise": "Perlin",
    "sparkles": "Spark.",
    "inverse_sparkles": "I.spark",
    "caustic_refraction": "Caust.",
    "pinch_and_twirl": "Pinch",
    "ripple": "Ripple",
    "circular_motion_blur": "Circ.",
    "lines": "Lines",
    "transverse_chromatic_abberation": "Chrom.",
    "clean": "Clean",
    AVERAGE: "Avg.",
}

_CSV_COLUMNS = [
    "dataset",
    "model",
    "foundation",
    "protocol",
    "severity",
    "method",
    "corruption",
    "seeds",
    "samples",
    "accuracy",
    "deviation",
    "uploads",
    "share",
    "bytes_up",
    "note",
]


@dataclass(frozen=True)
class Entry:
    """A method on a corruption, over all seeds; None where the method does not apply.

    Attributes
    ----------
    accuracy : float or None
        Mean in percent.
    deviation : float or None
        Standard deviation over seeds in points (with n - 1); None for one seed.
    seeds : int
        How many.
    samples, uploads, bytes_up : float
        Per seed, means; of the average column, per corruption.
    images : float
        Different ones among the samples: fewer where a corruption is visited again with the same.
    note : str
        Why the method does not apply.
    photographs, standard_error : float or None
        Where photographs gave several images: how many there are, and the standard error over them in points. Both are
        means. The columns show the same photographs, so that of the average column is the most it can be.
    """

    accuracy: float | None
    deviation: float | None
    seeds: int
    samples: float
    uploads: float | None
    bytes_up: float | None
    images: float
    note: str = ""
    photographs: float | None = None
    standard_error: float | None = None

    @property
    def share(self) -> float | None:
        """Uploaded samples in percent of all."""
        return None if self.uploads is None else 100.0 * self.uploads / self.samples

    @property
    def error(self) -> float:
        """Standard deviation for an error bar, in points: over seeds; for one seed, `sampling_error`."""
        return self.sampling_error if self.deviation is None else self.deviation

    @property
    def sampling_error(self) -> float:
        """Standard error in points for the choice of images: over photographs, or else of a binomial share."""
        if self.standard_error is not None:
            return self.standard_error
        # A single photograph that gave all images counts once.
        return binomial_error(self.accuracy or 0.0, self.photographs or self.images)


@dataclass(frozen=True)
class ResultTable:
    """One table: a pair of models, a protocol and a severity.

    Attributes
    ----------
    dataset, model, foundation, protocol : str
        What it is of.
    severity : int
        0 where nothing is corrupted.
    corruptions : tuple of str
        Its columns; `AVERAGE` comes last and is not among them.
    rows : dict of str to dict of str to Entry
        By method and by corruption, with `AVERAGE` where all corruptions are there; clean images are not in it.
    """

    dataset: str
    model: str
    foundation: str
    protocol: str
    severity: int
    corruptions: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Entry]]

    @property
    def columns(self) -> tuple[str, ...]:
        """The corruptions and the average."""
        return (*self.corruptions, AVERAGE)

    @property
    def title(self) -> str:
        """What it is of, in words."""
        severity = f", severity {self.severity}" if self.severity else ""
        return f"{self.dataset}, {self.protocol}{severity}: {self.model} (foundation {self.foundation})"

    def chance(self) -> str:
        """Return a sentence on how large a difference must be to be more than chance; see `cema.bench.chance`."""
        entries = [
            entry
            for row in self.rows.values()
            for name, entry in row.items()
            if name != AVERAGE and entry.accuracy is not None
        ]
        if not entries:
            return ""
        images = min(entry.images for entry in entries)
        photographs = [entry.photographs for entry in entries if entry.photographs is not None]
        columns = len(averaged(self.corruptions))
        if photographs:
            errors = [entry.sampling_error for entry in entries]
            return chance_sentence(errors, images, columns, min(photographs))
        errors = [binomial_error(entry.accuracy or 0.0, images) for entry in entries]
        return chance_sentence(errors, images, columns)

    def notes(self) -> list[str]:
        """Return why methods do not apply, each once, and how sure the averages are where photographs say it."""
        found = {name: e.note for name, row in self.rows.items() for e in row.values() if e.note}
        averages = {name: row[AVERAGE].standard_error for name, row in self.rows.items() if AVERAGE in row}
        errors = [f"{name} {error:.2f}" for name, error in averages.items() if error is not None]
        sure = [f"standard error of the average over photographs, at most: {', '.join(errors)}"]
        return [*(f"{name}: {note}" for name, note in found.items()), *(sure if errors else [])]


def summarise(cells: Sequence[Mapping[str, Any]]) -> list[ResultTable]:
    """Sort cells into tables.

    Parameters
    ----------
    cells : sequence of mapping
        As ``results.json`` has them; methods and corruptions keep their order.

    Returns
    -------
    list of ResultTable
        In the order of their first cells.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        names = ("dataset", "model", "foundation", "protocol", "severity")
        groups.setdefault(tuple(cell[name] for name in names), []).append(cell)
    tables = []
    for (dataset, model, foundation, protocol, severity), members in groups.items():
        corruptions = tuple(dict.fromkeys(cell["corruption"] for cell in members))
        rows = {
            method: _row([cell for cell in members if cell["method"] == method], corruptions)
            for method in dict.fromkeys(cell["method"] for cell in members)
        }
        tables.append(ResultTable(dataset, model, foundation, protocol, severity, corruptions, rows))
    return tables


def averaged(corruptions: Sequence[str]) -> list[str]:
    """Return the columns that an average is of: all, but clean images only where there is nothing else.

    Examples
    --------
    >>> averaged(["clean", "fog", "snow"]), averaged(["clean"])
    (['fog', 'snow'], ['clean'])
    """
    return [name for name in corruptions if name != CLEAN] or [*corruptions]


def _row(cells: Sequence[Mapping[str, Any]], corruptions: Sequence[str]) -> dict[str, Entry]:
    by_name = {name: [cell for cell in cells if cell["corruption"] == name] for name in corruptions}
    row = {name: _entry([[cell] for cell in found]) for name, found in by_name.items() if found}
    # The average is taken per seed, so that its deviation is that of averages.
    names = averaged(corruptions)
    seeds = sorted({cell["seed"] for cell in cells})
    per_seed = [[c for c in cells if c["seed"] == seed and c["corruption"] in names] for seed in seeds]
    if all(len(group) == len(names) for group in per_seed):
        row[AVERAGE] = _entry(per_seed)
    return row


def _entry(per_seed: Sequence[Sequence[Mapping[str, Any]]]) -> Entry:
    """Average the cells of each seed, then the seeds."""
    everything = [cell for group in per_seed for cell in group]
    samples = float(np.mean([cell["samples"] for cell in everything]))
    photographs = _mean(everything, "photographs")
    images = float(np.mean([cell.get("images", cell["samples"]) for cell in everything]))
    notes = [cell["note"] for cell in everything if cell.get("note")]
    if any(cell["accuracy"] is None for cell in everything):
        note = notes[0] if notes else ""
        return Entry(None, None, len(per_seed), samples, None, None, images, note, photographs)
    means = [float(np.mean([cell["accuracy"] for cell in group])) for group in per_seed]
    return Entry(
        accuracy=float(np.mean(means)),
        deviation=float(np.std(means, ddof=1)) if len(means) > 1 else None,
        seeds=len(means),
        samples=samples,
        uploads=float(np.mean([cell["uploads"] for cell in everything])),
        bytes_up=float(np.mean([cell["bytes_up"] for cell in everything])),
        images=images,
        photographs=photographs,
        standard_error=_mean(everything, "standard_error"),
    )


def _mean(cells: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the mean of what only cells of several crops have."""
    found = [float(cell[name]) for cell in cells if cell.get(name) is not None]
    return float(np.mean(found)) if len(found) == len(cells) else None


def _accuracy(entry: Entry | None, *, deviation: bool = True) -> str:
    if entry is None:
        return ""
    if entry.accuracy is None:
        return "n/a"
    text = f"{entry.accuracy:.1f}"
    return f"{text} ±{entry.deviation:.1f}" if deviation and entry.deviation is not None else text


def _best(table: ResultTable, column: str) -> float:
    found = [row[column].accuracy for row in table.rows.values() if column in row]
    return max((accuracy for accuracy in found if accuracy is not None), default=math.inf)


def console_table(table: ResultTable) -> Table:
    """Return a table for the terminal: accuracies, and what was uploaded on average."""
    shown = Table(
        title=f"Accuracy in percent; {table.title}", box=box.SIMPLE_HEAD, padding=(0, 0), title_justify="left"
    )
    shown.add_column("method", no_wrap=True)
    for name in table.columns:
        shown.add_column(SHORT.get(name, name), justify="right", min_width=6, no_wrap=True)
    shown.add_column(" up %", justify="right", no_wrap=True)
    shown.add_column(" bytes up", justify="right", no_wrap=True)
    for method, row in table.rows.items():
        average = row.get(AVERAGE)
        texts = []
        for name in table.columns:
            text = _accuracy(row.get(name), deviation=name == AVERAGE)
            entry = row.get(name)
            best = entry is not None and entry.accuracy == _best(table, name)
            texts.append(f"[bold]{text}[/bold]" if best else text)
        shown.add_row(method, *texts, *_traffic(average))
    return shown


def _traffic(entry: Entry | None) -> tuple[str, str]:
    if entry is None or entry.share is None or entry.bytes_up is None:
        return "", ""
    return f"{entry.share:.1f}", f" {human_bytes(entry.bytes_up)}"


def write_markdown(
    path: Path, tables: Sequence[ResultTable], results: Mapping[str, Any], further: Sequence[str] = ()
) -> None:
    """Write all tables as Markdown, accuracies first and each with its uploads beside it; then further lines."""
    settings = results["settings"]
    lines = [
        f"# {settings['data']}, {settings['protocol']}",
        "",
        "Accuracy in percent"
        + (
            f", mean and standard deviation over seeds {', '.join(map(str, settings['seeds']))}."
            if len(settings["seeds"]) > 1
            else f", seed {settings['seeds'][0]}."
        )
        + " Uploads per corruption: samples, share of all samples, and bytes as encoded.",
    ]
    for table in tables:
        headings = [SHORT.get(name, name) for name in table.columns]
        lines += ["", f"## {table.title}", "", *markdown_table(["method", *headings], _accuracy_rows(table))]
        uploads = ["method", "samples", "uploads", "share %", "bytes", "bytes each"]
        lines += ["", *markdown_table(uploads, _upload_rows(table))]
        lines += ["", table.chance()] if table.chance() else []
        lines += ["", *(f"* {note}" for note in table.notes())] if table.notes() else []
    write_atomic(path, ("\n".join([*lines, *further]) + "\n").encode())


def _accuracy_rows(table: ResultTable) -> list[list[str]]:
    rows = []
    for method, row in table.rows.items():
        texts = []
        for name in table.columns:
            entry = row.get(name)
            best = entry is not None and entry.accuracy == _best(table, name)
            texts.append(f"**{_accuracy(entry)}**" if best else _accuracy(entry))
        rows.append([method, *texts])
    return rows


def _upload_rows(table: ResultTable) -> list[list[str]]:
    rows = []
    for method, row in table.rows.items():
        names = averaged(table.corruptions)
        found = [entry for name, entry in row.items() if name in names]
        if not found:
            continue
        samples = f"{np.mean([entry.samples for entry in found]):.0f}"
        if any(entry.uploads is None for entry in found):
            rows.append([method, samples, "n/a", "n/a", "n/a", "n/a"])
            continue
        uploads = float(np.mean([entry.uploads or 0.0 for entry in found]))
        size = float(np.mean([entry.bytes_up or 0.0 for entry in found]))
        share = 100.0 * uploads / float(np.mean([entry.samples for entry in found]))
        each = f"{size / uploads:.0f}" if uploads else ""
        rows.append([method, samples, f"{uploads:.0f}", f"{share:.1f}", f"{size:.0f}", each])
    return rows


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first column is text and whose others are numbers."""
    marks = ["---"] + ["--:"] * (len(headings) - 1)
    return [f"| {' | '.join(row)} |" for row in (headings, marks, *rows)]


def write_csv(path: Path, tables: Sequence[ResultTable]) -> None:
    """Write one line for each method and corruption, and for each average; what was not measured is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for table in tables:
        for method, row in table.rows.items():
            for name, entry in row.items():
                what = (table.dataset, table.model, table.foundation, table.protocol, table.severity)
                numbers = (entry.accuracy, entry.deviation, entry.uploads, entry.share, entry.bytes_up)
                texts = ["" if number is None else f"{number:.4f}" for number in numbers]
                writer.writerow([*what, method, name, entry.seeds, f"{entry.samples:g}", *texts, entry.note])
    write_atomic(path, buffer.getvalue().encode())
