"""Measure a step of the service against the textbook's plain loop, for one pair of models.

Each side is a process of its own that makes one step when it is told to, so that they take turns: the service's worker,
in the environment that it is given, with its store, decoding, gate and commit; and the textbook's loop in a plain
environment and, for comparison, in the worker's. CPU seconds, one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAIRS = ("digits", "vit", "resnet", "lite")
STEPS = {"digits": 30, "vit": 5, "resnet": 5, "lite": 1}


def main() -> None:
    """Run the children in turn and print the ratio, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", choices=PAIRS)
    parser.add_argument("--side", choices=("product", "textbook"), help="be this child")
    options = parser.parse_args()
    if options.side:
        _serve({"product": product, "textbook": textbook}[options.side](options.pair))
        return
    print(json.dumps(measure(options.pair)))


def measure(pair: str) -> dict[str, Any]:
    """Return the values and details of one pair."""
    inside = _worker_environment()
    sides = {"product": Child(pair, "product", inside), "textbook": Child(pair, "textbook", {})}
    readings: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(STEPS[pair]):
        for name, child in sides.items():
            readings[name].append(child.step())
    for child in sides.values():
        child.end()
    if pair != "lite":  # it would keep more memory than a small machine has
        again = Child(pair, "textbook", inside | {"TEXTBOOK_KEEPS_MEMORY": "1"})
        readings["textbook_in_worker_environment"] = [again.step() for _ in range(STEPS[pair])]
        again.end()
    seconds = {name: statistics.median(r["cpu"] for r in found) for name, found in readings.items()}
    values = {f"step.{pair}": seconds["textbook"] / seconds["product"]}
    if pair == "lite":
        values["step.lite.memory"] = max(r["peak_mb"] for r in readings["product"]) / 1000
    details = {name: _summary(found) for name, found in readings.items()}
    return {"values": values, "details": details}


def _summary(readings: list[dict[str, float]]) -> dict[str, Any]:
    seconds = [r["cpu"] for r in readings]
    return {
        "cpu_seconds": {
            "median": statistics.median(seconds),
            "lowest": min(seconds),
            "highest": max(seconds),
        },
        "peak_mb": max(r["peak_mb"] for r in readings),
        "page_faults": statistics.median(r["page_faults"] for r in readings),
        "steps": len(readings),
    }


class Child:
    """A process that makes one step when it is told to."""

    def __init__(self, pair: str, side: str, environment: dict[str, str]) -> None:
        command = [sys.executable, __file__, pair, "--side", side]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self._read()

    def step(self) -> dict[str, float]:
        """Make one step; return what it took."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self._read()

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with status {self.process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found


def _serve(step: Callable[[], None]) -> None:
    """Make a step for each line of standard input."""
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        begin = time.process_time()
        step()
        taken = time.process_time() - begin
        usage = resource.getrusage(resource.RUSAGE_SELF)
        told = {"cpu": taken, "peak_mb": usage.ru_maxrss / 1024, "page_faults": usage.ru_minflt - before}
        print(json.dumps(told), flush=True)


def _worker_environment() -> dict[str, str]:
    """Return what the service sets in its worker's environment; nothing where it sets nothing yet."""
    memory = _memory_module()
    return dict(memory.worker_environment({})) if memory else {}


def keep_freed_memory() -> None:
    """Do what the worker's process does at its start; nothing where it does nothing yet."""
    memory = _memory_module()
    if memory:
        memory.keep_freed_memory()


def _memory_module() -> Any:
    """Return the module that sets up a process's memory, which was elsewhere once; None where there is none yet."""
    for name in ("cema._util.memory", "cema.cloud.worker.memory"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None


def models(pair: str) -> tuple[Any, Any, list[Any]]:
    """Return edge model, foundation model and images."""
    import numpy as np  # noqa: PLC0415

    from cema.models.registry import resolve  # noqa: PLC0415

    data = Path(os.environ["CEMA_SHARED_DATA"])
    if pair == "resnet":
        pictures = list(np.load(data / "cifar10_test_a.npz")["x"])
        names = ("cifar-resnet20", "cifar-resnet56")
        found = [resolve(n, weights=data / f"{n.replace('cifar-', 'cifar10_')}.safetensors") for n in names]
        return found[0], found[1], pictures
    if pair == "lite":
        from PIL import Image  # noqa: PLC0415

        files = sorted((data / "imagenet_a").glob("*/*.JPEG"))
        pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        return resolve("efficientnet-lite0"), resolve("efficientnet-lite2"), pictures
    from cema.data.digits import load_digits  # noqa: PLC0415

    kind = {"digits": "digits-cnn", "vit": "digits-vit"}[pair]
    return resolve(kind), resolve(f"{kind}-foundation"), list(load_digits().test_images)


def textbook(pair: str) -> Callable[[], None]:
    """Return the textbook's step."""
    from step_textbook import Textbook  # noqa: PLC0415

    if os.environ.get("TEXTBOOK_KEEPS_MEMORY"):
        keep_freed_memory()
    edge, foundation, _ = models(pair)
    loop = Textbook(edge, foundation)
    loop.step()
    return loop.step


def product(pair: str) -> Callable[[], None]:
    """Return the service's step, with a replay buffer that is filled."""
    keep_freed_memory()
    from step_product import worker  # noqa: PLC0415

    edge, foundation, pictures = models(pair)
    folder = tempfile.TemporaryDirectory()
    made = worker(Path(folder.name), edge, foundation, pictures, steps=STEPS[pair] + 9)
    for _ in range(9):
        made.run_once()

    def step() -> None:
        assert folder
        if not made.run_once():
            raise SystemExit("the worker had nothing to do")

    return step


if __name__ == "__main__":
    main()
