"""Measure what a device needs before it does anything: its packages on disk, and the time of its imports.

``install``: the size of ``pip install 'cema[edge]'`` in an empty virtual environment, without pip and setuptools.
``start``: processor time of importing what a device needs over that of importing onnxruntime, and of ``cema --help``;
of fresh processes in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What a virtual environment has before anything is installed.
GIVEN = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils")
TIMES = 15


def main() -> None:
    """Run what the argument asks for; the last line printed is the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("install", "start"))
    measured = {"install": _install, "start": _start}[parser.parse_args().what]()
    print(json.dumps(measured))


def _install() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ.copy()
        environment.pop("PYTHONPATH", None)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        command = [str(python), "-m", "pip", "install", "--quiet", f"{ROOT}[edge]"]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        (packages,) = Path(folder).glob("lib/python*/site-packages")
        sizes: Counter[str] = Counter()
        for path in packages.rglob("*"):
            if path.is_file() and not path.is_symlink():
                sizes[path.relative_to(packages).parts[0]] += path.stat().st_size
    kept = Counter({name: size for name, size in sizes.items() if not name.startswith(GIVEN)})
    details = {name: round(size / 1e6, 2) for name, size in kept.most_common(20)}
    return {"values": {"install.edge": kept.total() / 1e6}, "details": details}


def _start() -> dict[str, Any]:
    commands = {
        "nothing": ("-c", "pass"),
        "onnxruntime": ("-c", "import onnxruntime"),
        "cema": ("-c", "import cema.edge; from cema import EdgeAgent"),
        "help": ("-m", "cema", "--help"),
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(1 + TIMES):  # the first one compiles, as an installation does
            for name, arguments in commands.items():
                seconds = _processor_seconds(*arguments, compiled=folder)
                taken[name] += [seconds] if turn else []
    median = {name: statistics.median(each) for name, each in taken.items()}
    # The ratio of each turn: the machine is not equally fast all the time.
    pairs = zip(taken["cema"], taken["onnxruntime"], strict=True)
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    return {"values": {"import.edge": ratio, "cli.help": median["help"]}, "details": median}


def _processor_seconds(*arguments: str, compiled: str) -> float:
    environment = os.environ | {"PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
