"""Measure the choices behind the defaults of `cema.adapt.config.AdaptConfig`.

An edge model predicts a stream with the norm state published some batches ago and selects what to upload; the
adapter learns from every 32 uploads. Streams are stretches of corruption, one after the other, over shuffled
images. The classes are those of the service. Examples::

    python benchmarks/defaults.py cifar --data DATA --stream gaussian_noise:5 --samples 2000 \
        --variant default --variant source-step:start=source,statistics=step
    python benchmarks/defaults.py efficientnet --data DATA --stream contrast:4 --samples 500 \
        --variant statistics-only:edge_lr=0,foundation_lr=0
    python benchmarks/defaults.py digits --stream clean,gaussian_noise:4,clean,fog:4 --samples 2000 \
        --variant default --output digits.json
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner
from cema.data.corruptions import corrupt_images
from cema.models.norm_state import load_folded
from cema.models.registry import resolve
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.selection.entropy_band import EntropyBand

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cema.models.spec import Model

PAIRS = {
    "cifar": ("cifar-resnet20", "cifar-resnet56"),
    "efficientnet": ("efficientnet-lite0", "efficientnet-lite2"),
    "digits": ("digits-cnn", "digits-cnn-foundation"),
}


@dataclass(frozen=True)
class Pool:
    """Labelled images to make streams from."""

    images: Sequence[np.ndarray]
    labels: np.ndarray


@dataclass(frozen=True)
class Stretch:
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
        return Pool(digits.test_images, digits.test_labels)
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


def make_stream(pool: Pool, spec: str, samples: int, seed: int) -> list[Stretch]:
    """Shuffle the pool once, walk through it, and corrupt each stretch."""
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
        stream.append(Stretch(name, level, images, pool.labels[chosen]))
    return stream


class Device:
    """An edge that predicts with the norm state published `delay` batches ago."""

    def __init__(self, model: Model, selector: EntropyBand, delay: int) -> None:
        self.module = copy.deepcopy(model.module).eval()
        self.preprocessing = model.preprocessing
        self.selector = selector
        self.coming: deque[dict[str, np.ndarray] | None] = deque([None] * delay)

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return predicted classes and which images to upload."""
        logits = self.module(torch.from_numpy(self.preprocessing(images))).numpy()
        return logits.argmax(1), self.selector.decide(softmax_entropy(logits))

    def receive(self, norm_state: dict[str, np.ndarray] | None) -> None:
        """Take note of what was published after this batch; it arrives later."""
        self.coming.append(norm_state)
        arrived = self.coming.popleft()
        if arrived is not None:
            load_folded(self.module, arrived)


def batches(stretch: Stretch, size: int) -> Iterator[tuple[Sequence[np.ndarray], np.ndarray]]:
    """Cut a stretch into batches."""
    for i in range(0, len(stretch.labels), size):
        yield stretch.images[i : i + size], stretch.labels[i : i + size]


def run(
    models: tuple[Model, Model],
    stream: list[Stretch],
    config: AdaptConfig | None,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Predict and learn along a stream; without a config nothing is learned. Returns one row per stretch."""
    edge, foundation = models
    device = Device(edge, EntropyBand(edge.classes, SelectionConfig(group=options.batch)), options.delay)
    adapter: CemaLearner[np.ndarray] | None = None
    if config:
        adapter = CemaLearner(edge, foundation, config, device=options.device, seed=options.seed)
    waiting: deque[np.ndarray] = deque()
    rows = []
    for stretch in stream:
        right: list[int] = []
        uploaded, began = 0, time.perf_counter()
        for images, labels in batches(stretch, options.batch):
            classes, selected = device.predict(images)
            right.append(int((classes == labels).sum()))
            uploaded += int(selected.sum())
            waiting.extend(images[i] for i in np.flatnonzero(selected))
            device.receive(learn(adapter, waiting, options.replay_steps) if adapter else None)
        seen = len(stretch.labels)
        rows.append(
            {
                "corruption": stretch.corruption,
                "severity": stretch.severity,
                "accuracy": round(100 * sum(right) / seen, 2),
                "last_half": round(100 * sum(right[len(right) // 2 :]) / tail(right, seen, options.batch), 2),
                "uploaded": round(100 * uploaded / seen, 1),
                "changes": adapter.surroundings.changes if adapter else 0,
                "by_batch": right,
                "seconds": round(time.perf_counter() - began, 1),
            }
        )
    return rows


def tail(right: list[int], seen: int, batch: int) -> int:
    """Count the samples in the second half of a stretch's batches."""
    return seen - batch * (len(right) // 2)


def learn(
    adapter: CemaLearner[np.ndarray], waiting: deque[np.ndarray], replay_steps: bool
) -> dict[str, np.ndarray] | None:
    """Learn from every full batch that waits; return what to publish, if anything changed."""
    changed = False
    while len(waiting) >= adapter.config.fresh:
        adapter.learn([waiting.popleft() for _ in range(adapter.config.fresh)])
        changed = True
    if not changed and replay_steps:
        changed = adapter.replay_step().step > 0
    return adapter.norm_state() if changed else None


def parse_variant(text: str) -> tuple[str, AdaptConfig | None]:
    """Read NAME or NAME:KEY=VALUE,KEY=VALUE; the name "source" stands for no adaptation."""
    name, _, settings = text.partition(":")
    if name == "source":
        return name, None
    values: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return name, msgspec.convert(values, AdaptConfig)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pair", choices=sorted(PAIRS))
    parser.add_argument("--data", type=Path, help="folder with images and weights (cifar, efficientnet)")
    parser.add_argument("--stream", action="append", required=True, help="corruption:severity,... or clean")
    parser.add_argument("--variant", action="append", required=True, help="NAME[:KEY=VALUE,...], or source")
    parser.add_argument("--samples", type=int, default=1000, help="images in each stretch")
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
        for name, config in map(parse_variant, options.variant):
            rows = run(models, stream, config, options)
            results.append({"variant": name, "stream": spec, "stretches": rows})
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
