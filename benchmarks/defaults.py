"""Measure the choices behind the defaults of `cema.adapt.config.AdaptConfig`.

Runs the benchmark's row `cema.methods.cema.Cema` along a stream: segments of corruption, one after the other, over
shuffled images. Unless a variant says otherwise the edge has no guard, an update arrives some batches after it was
made, and uploads are sent without loss. Examples::

    python benchmarks/defaults.py cifar --data DATA --stream gaussian_noise:5 --samples 2000 \
        --variant default --variant source-step:start=source,statistics=step
    python benchmarks/defaults.py efficientnet --data DATA --stream contrast:4 --samples 500 \
        --variant statistics-only:edge_lr=0,foundation_lr=0
    python benchmarks/defaults.py digits --stream clean,gaussian_noise:4,clean,fog:4 --samples 2000 \
        --variant default --variant guarded:guard=36 --output digits.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner
from cema.data.corruptions import corrupt_images
from cema.formats.image import CodecConfig
from cema.methods.base import MethodContext
from cema.methods.cema import Cema, CemaConfig
from cema.models.registry import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cema.models.spec import Model

PAIRS = {
    "cifar": ("cifar-resnet20", "cifar-resnet56"),
    "efficientnet": ("efficientnet-lite0", "efficientnet-lite2"),
    "digits": ("digits-cnn", "digits-cnn-foundation"),
}
# So many uploads never gather: a cloud that waits for them never learns.
NEVER = 10**12


@dataclass(frozen=True)
class Pool:
    """Labelled images to make streams from."""

    images: Sequence[np.ndarray]
    labels: np.ndarray


@dataclass(frozen=True)
class Segment:
    """A part of a stream under one condition."""

    corruption: str
    severity: int
    images: Sequence[np.ndarray]
    labels: np.ndarray


def load_pool(pair: str, data: Path | None) -> Pool:
    """Read the test images that go with a pair of models."""
    if pair == "digits":
        from cema.data.digits import load_digits  # noqa: PLC0415

        digits = load_digits()
        return Pool(list(digits.test_images), digits.test_labels)
    if data is None:
        raise SystemExit(f"{pair}: pass --data, the folder with its images and weights")
    if pair == "cifar":
        archive = np.load(data / "cifar10_test_a.npz")
        return Pool(archive["x"], archive["y"])
    from PIL import Image  # noqa: PLC0415

    index = {wnid: i for i, wnid in enumerate((data / "imagenet_wnids.txt").read_text().split())}
    paths = sorted((data / "imagenet_a").glob("*/*.JPEG"))
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return Pool(images, np.array([index[path.parent.name] for path in paths]))


def load_models(pair: str, data: Path | None) -> tuple[Model, Model]:
    """Resolve the edge and the foundation model of a pair."""
    edge, foundation = PAIRS[pair]
    if pair != "cifar":
        return resolve(edge), resolve(foundation)
    root = data or Path()
    return (
        resolve(edge, weights=root / "cifar10_resnet20.safetensors"),
        resolve(foundation, weights=root / "cifar10_resnet56.safetensors"),
    )


def make_stream(pool: Pool, spec: str, samples: int, seed: int) -> list[Segment]:
    """Shuffle the pool once, walk through it, and corrupt each segment."""
    order = np.random.default_rng(seed).permutation(len(pool.labels))
    stream, position = [], 0
    for part in spec.split(","):
        name, _, severity = part.partition(":")
        chosen = [int(order[(position + i) % len(order)]) for i in range(samples)]
        position += samples
        images: Sequence[np.ndarray] = [pool.images[i] for i in chosen]
        level = int(severity or 0)
        if name != "clean":
            images = corrupt_images(images, name, level, seed=seed)
        stream.append(Segment(name, level, images, pool.labels[chosen]))
    return stream


def batches(segment: Segment, size: int) -> Iterator[tuple[Sequence[np.ndarray], np.ndarray]]:
    """Cut a segment into batches."""
    for i in range(0, len(segment.labels), size):
        yield segment.images[i : i + size], segment.labels[i : i + size]


def run(
    models: tuple[Model, Model], stream: list[Segment], config: CemaConfig, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Predict and learn along a stream; return one row per segment."""
    edge, foundation = models
    context = MethodContext(
        foundation=foundation, device=options.device, seed=options.seed, codec=CodecConfig(codec="raw")
    )
    method = Cema(edge, config, context=context)
    return [run_segment(method, segment, options.batch) for segment in stream]


def run_segment(method: Cema, segment: Segment, batch: int) -> dict[str, Any]:
    """Go along one segment of a stream; return what came of it."""
    right: list[int] = []
    uploaded, began = 0, time.perf_counter()
    for images, labels in batches(segment, batch):
        result = method.step(images)
        right.append(int((result.logits.argmax(1) == labels).sum()))
        uploaded += result.uploads
    seen, half = len(segment.labels), len(right) // 2
    return {
        "corruption": segment.corruption,
        "severity": segment.severity,
        "accuracy": round(100 * sum(right) / seen, 2),
        "last_half": round(100 * sum(right[half:]) / (seen - batch * half), 2),
        "uploaded": round(100 * uploaded / seen, 1),
        "changes": changes_of(method),
        "by_batch": right,
        "seconds": round(time.perf_counter() - began, 1),
    }


def changes_of(method: Cema) -> int:
    """Return how many changes of domain the cloud has seen; an algorithm of one's own may count none."""
    return method.learner.changes.changes if isinstance(method.learner, CemaLearner) else 0


def parse_variant(text: str, options: argparse.Namespace) -> tuple[str, CemaConfig]:
    """Read NAME or NAME:KEY=VALUE,KEY=VALUE; the name "source" stands for no adaptation.

    Keys are those of `AdaptConfig` and, where it has none of that name, of `CemaConfig`.
    """
    name, _, settings = text.partition(":")
    adapt: dict[str, Any] = {"fresh": NEVER} if name == "source" else {}
    row: dict[str, Any] = {
        "guard": 0.0,
        # What is chosen here is what the cloud does: devices have the statistics of updates.
        "statistics": {"source": "update"},
        "group": options.batch,
        "delay": options.delay,
        "replay_steps": options.replay_steps,
    }
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        table = (
            row if key in CemaConfig.__struct_fields__ and key not in AdaptConfig.__struct_fields__ else adapt
        )
        try:
            table[key] = json.loads(value)
        except json.JSONDecodeError:
            table[key] = value
    return name, msgspec.convert({**row, "adapt": adapt}, CemaConfig)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pair", choices=sorted(PAIRS))
    parser.add_argument("--data", type=Path, help="folder with images and weights (cifar, efficientnet)")
    parser.add_argument("--stream", action="append", required=True, help="corruption:severity,... or clean")
    parser.add_argument("--variant", action="append", required=True, help="NAME[:KEY=VALUE,...], or source")
    parser.add_argument("--samples", type=int, default=1000, help="images in each segment")
    parser.add_argument("--batch", type=int, default=64, help="images that the edge predicts at once")
    parser.add_argument("--delay", type=int, default=3, help="batches from learning to the edge's use of it")
    parser.add_argument("--replay-steps", action="store_true", help="replay when no full batch waits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="write JSON here instead of to the standard output")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every variant on every stream."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    models = load_models(options.pair, options.data)
    pool = load_pool(options.pair, options.data)
    results = []
    for spec in options.stream:
        stream = make_stream(pool, spec, options.samples, options.seed)
        for text in options.variant:
            name, config = parse_variant(text, options)
            rows = run(models, stream, config, options)
            results.append({"variant": name, "stream": spec, "segments": rows})
            summary = "  ".join(f"{row['corruption']} {row['accuracy']}/{row['uploaded']}" for row in rows)
            print(f"{name:24s} {summary}", file=sys.stderr, flush=True)
            if options.output:
                options.output.write_text(report(options, results))
    if not options.output:
        print(report(options, results), end="")


def report(options: argparse.Namespace, results: list[dict[str, Any]]) -> str:
    """Write settings and results as JSON."""
    settings = {key: str(value) for key, value in vars(options).items() if value is not None}
    return json.dumps({"settings": settings, "torch": torch.__version__, "results": results}, indent=1) + "\n"


if __name__ == "__main__":
    main()
