"""Measure how soon the latest inputs are known to be of another domain, and how often wrongly so.

A domain is made of uploads (compressed as devices do) of one corruption; a stream of another, or of the same one from
other images, is watched. Examples::

    python benchmarks/domains.py digits --severity 3
    python benchmarks/domains.py efficientnet --data DATA --severity 3 --samples 200 --output photographs.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cema.data.corruptions import CORRUPTIONS, corrupt_images
from cema.formats.image import CodecConfig, decode_image, encode_image
from cema.ondevice.drift import Domain, DriftMonitor, input_statistics
from defaults import PAIRS, load_models, load_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cema.ondevice.preprocess import Preprocessing

LIMIT = 36.0
REPEATS = 6
NAMES = ("clean", *CORRUPTIONS)


def statistics(images: Sequence[np.ndarray], preprocessing: Preprocessing, *, sent: bool) -> np.ndarray:
    """Return the statistics of images as the device sees them, or as the cloud does after the upload."""
    codec = CodecConfig()
    seen = [decode_image(encode_image(image, codec)) for image in images] if sent else images
    return np.concatenate(
        [input_statistics(preprocessing(seen[i : i + 32])) for i in range(0, len(seen), 32)]
    )


def watch(domain: Domain, rows: np.ndarray) -> tuple[float, float]:
    """Return after how many inputs the first alarm came (infinity: never), and the share of inputs that had drifted."""
    first, drifted = np.inf, 0
    watched = DriftMonitor(LIMIT)
    watched.enter(domain)
    for i, row in enumerate(rows, 1):
        watched.observe(row[None])
        drifted += watched.drifted
        if watched.drifted and np.isinf(first):
            first = i
    return first, drifted / len(rows)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compare every domain with every stream."""
    pool = load_pool(options.pair, options.data)
    preprocessing = load_models(options.pair, options.data)[0].preprocessing
    order = np.random.default_rng(options.seed).permutation(len(pool.labels))
    halves = order[: options.samples], order[options.samples : 2 * options.samples]
    made: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    for name in NAMES:
        for half, sent, into in ((0, True, made), (1, False, seen)):
            images: Sequence[np.ndarray] = [pool.images[i] for i in halves[half]]
            if name != "clean":
                images = corrupt_images(images, name, options.severity, seed=options.seed + half)
            into[name] = statistics(images, preprocessing, sent=sent)
        print(name, flush=True)
    rng = np.random.default_rng(options.seed)
    pairs = {}
    for one in NAMES:
        domain = Domain.of(made[one][:96])
        for other in NAMES:
            results = [watch(domain, rng.permutation(seen[other])) for _ in range(REPEATS)]
            first, drifted = np.array(results).T
            pairs[one, other] = float(np.median(first)), float(drifted.mean())
    return {
        "settings": {key: str(value) for key, value in vars(options).items()},
        "drifted_in_its_own_domain": float(np.mean([pairs[name, name][1] for name in NAMES])),
        "median_inputs_to_the_first_alarm": float(
            np.median([pairs[one, other][0] for one in NAMES for other in NAMES if one != other])
        ),
        "share_of_other_domains_drifted_over_half_the_time": float(
            np.mean([pairs[one, other][1] > 0.5 for one in NAMES for other in NAMES if one != other])
        ),
        "pairs": [
            {
                "domain": one,
                "stream": other,
                "inputs": None if np.isinf(first) else first,
                "drifted": drifted,
            }
            for (one, other), (first, drifted) in pairs.items()
        ],
    }


def main() -> None:
    """Measure one pair of models' data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pair", choices=sorted(PAIRS))
    parser.add_argument("--data", type=Path, help="folder with images and weights (cifar, efficientnet)")
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--samples", type=int, default=400, help="images of each stream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = measure(options)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "pairs"}, indent=1))


if __name__ == "__main__":
    main()
