"""Results on disk: every finished run's cells at once and for good, and one JSON of them all at the end."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from cema._util.files import sync_folder, write_atomic
from cema._util.version import __version__
from cema.bench.plan import Run, identities
from cema.data.dataset import READERS
from cema.errors import ConfigError, FormatError

__all__ = [
    "CELLS",
    "RESULTS",
    "ResultsFolder",
    "data_name",
    "environment",
    "read_results",
    "with_joined_names",
    "write_results",
]

CELLS = "cells.jsonl"
RESULTS = "results.json"
_PACKAGES = ("torch", "numpy", "imagecorruptions-imaug", "pillow", "simplejpeg", "timm", "transformers")


class ResultsFolder:
    """The folder of a benchmark: a line of ``cells.jsonl`` for every run that finished.

    A line holds the run's key, the facts that it stands for, and its cells; it is flushed to disk before anybody is
    told. A line that a crash left incomplete is cut off: its run is done again. Of two lines that fill the same cell
    the later one counts.

    Parameters
    ----------
    path : Path
        Made if it is not there.

    Attributes
    ----------
    finished : dict of str to dict
        By key, the lines that are there.

    Raises
    ------
    ConfigError
        If it cannot be written, another benchmark uses it, or ``cells.jsonl`` holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file = (path / CELLS).open("a+b")
            sync_folder(path)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be used for results ({error}); choose another --out"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ConfigError(
                f"{path}: another benchmark is writing there; wait for it, or choose another --out"
            ) from None
        self.finished = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)
        lines: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                _drop(lines, identities(record["facts"]))
                lines[record["key"]] = {"facts": record["facts"], "cells": record["cells"]}
            except (ValueError, KeyError, TypeError) as error:
                self._file.close()
                raise ConfigError(
                    f"{self.path / CELLS}: line {number} is not a finished run ({error!r}); remove that line or "
                    "choose another --out"
                ) from error
        return lines

    def check(self, runs: Sequence[Run], *, replace: bool = False) -> set[str]:
        """Return the keys of those runs that are finished.

        Parameters
        ----------
        runs : sequence of Run
            What is to be measured.
        replace : bool
            Forget the same cells as measured in another way.

        Raises
        ------
        ConfigError
            If the folder holds some, and is not to forget them.
        """
        planned = {run.key for run in runs}
        if replace:
            stale = {key: record for key, record in self.finished.items() if key not in planned}
            _drop(stale, set().union(*(identities(run.facts) for run in runs)))
            self.finished = {key: r for key, r in self.finished.items() if key in planned or key in stale}
        taken = {
            identity: record["facts"]
            for key, record in self.finished.items()
            if key not in planned
            for identity in identities(record["facts"])
        }
        for run in runs:
            for identity in identities(run.facts) & taken.keys():
                raise ConfigError(
                    f"{self.path}: holds {run.method} on {identity[-2]} {identity[-1]} as measured with another "
                    f"{_difference(taken[identity], run.facts)}; choose another --out, or --replace what is there"
                )
        return planned & self.finished.keys()

    def add(self, run: Run, cells: list[dict[str, Any]]) -> None:
        """Keep the cells of a finished run; they are on disk when this returns."""
        record = {"facts": run.facts, "cells": cells}
        line = json.dumps({"key": run.key, **record}, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.finished[run.key] = record

    def cells(self, names: Mapping[tuple[str, str], str] | None = None) -> list[dict[str, Any]]:
        """Return all cells that are there, each with the key of its run and a name of its data that no others have.

        Parameters
        ----------
        names : mapping, optional
            From a data set's own name and digest to what it is called here; others get the digest behind the name.
        """
        known = names or {}
        cells = []
        for key, record in self.finished.items():
            what = record["facts"]["dataset"], record["facts"].get("data_digest", "")
            name = known.get(what) or data_name("", *what)
            cells += [{**cell, "dataset": name, "run": key} for cell in record["cells"]]
        return cells

    def __enter__(self) -> ResultsFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def data_name(spec: str, name: str, digest: str) -> str:
    """Return what results call a data set: the name alone of a built-in one, and a digest behind all others'.

    Parameters
    ----------
    spec : str
        How the data were asked for: a built-in name or a path.
    name, digest : str
        The data set's own.

    Returns
    -------
    str
        Two files of one name, or a file with the name of a built-in data set, are told apart by it.

    Examples
    --------
    >>> data_name("digits", "digits", "cb9c8441f1f7150a"), data_name("./digits.npz", "digits", "5feceb66ffc86f38")
    ('digits', 'digits@5feceb66')
    """
    built_in = spec in {reader.name for reader in READERS if not reader.needs_path}
    return name if built_in or not digest else f"{name}@{digest[:8]}"


def with_joined_names(results: Mapping[str, Any], others: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the cells of results, their data called as in others that were measured on the same data.

    Results of earlier versions have no digest in the names of data; their settings have it.

    Parameters
    ----------
    results, others : mapping
        As `read_results` returns them.
    """
    settings = results.get("settings", {})
    name, digest = settings.get("data"), settings.get("data_digest") or ""
    there = others.get("settings", {}).get("data"), others.get("settings", {}).get("data_digest")
    renamed = there[0] if digest and there[1] == digest else name
    return [
        {**cell, "dataset": renamed} if renamed and cell.get("dataset") == name else cell
        for cell in results["cells"]
    ]


def _drop(lines: dict[str, dict[str, Any]], cells: set[tuple[object, ...]]) -> None:
    """Take out the runs that fill any of these cells."""
    for key in [key for key, record in lines.items() if identities(record["facts"]) & cells]:
        del lines[key]


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Name what differs, with its values where they are short."""
    if one["settings"] != other["settings"]:
        names = sorted(
            name
            for name in one["settings"].keys() | other["settings"].keys()
            if one["settings"].get(name) != other["settings"].get(name)
        )
        return f"setting of {', '.join(names)}"
    names = [name for name in other if one.get(name) != other[name]]
    if names == ["code"]:
        return "version of the code or of torch"
    short = [
        f"{name} ({one.get(name)} there, {other[name]} now)" if len(str(other[name])) < 40 else name
        for name in names
    ]
    return ", ".join(short)


def environment(device: str) -> dict[str, Any]:
    """Return the versions and the machine that numbers were made with."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cema": __version__,
        "python": platform.python_version(),
        "packages": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": _device_name(device),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    import torch  # noqa: PLC0415 - only to name an accelerator

    if device.startswith("cuda") and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json``, whole or not at all: one line per cell, so that versions of it can be compared."""
    head = {name: value for name, value in results.items() if name != "cells"}
    lines = ",\n".join("  " + json.dumps(cell) for cell in results["cells"])
    text = json.dumps(head, indent=1).removesuffix("\n}")
    write_atomic(path, f'{text},\n "cells": [\n{lines}\n ]\n}}\n'.encode())


def read_results(path: Path) -> dict[str, Any]:
    """Read a ``results.json``.

    Raises
    ------
    FormatError
        If the file is missing or none.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file; give the results.json of a benchmark") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(results, dict) or not isinstance(results.get("cells"), list):
        raise FormatError(
            f"{path}: expected an object with a list of cells; give the results.json of a benchmark"
        )
    return results
