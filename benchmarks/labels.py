"""Measure what true labels of earlier samples change, by how wrong the foundation model is (docs/algorithm.md).

The digits CNN learns from some 500 digits with noise and little contrast. Then labels come for a share of them, and it
learns from 500 others without labels, with a replay-only step after each batch. Prints accuracies on 1,000 others::

    python benchmarks/labels.py --seeds 4
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner
from cema.data.digits import load_digits
from cema.models.registry import resolve
from cema.models.spec import Model
from cema.ondevice.batch import Batch

Pixels = npt.NDArray[np.uint8]

SWAPPED = (4, 9)
SETTINGS = {
    "defaults": AdaptConfig(),
    "many passes, high rate": AdaptConfig(
        fresh=16, replay_from=64, passes=4, average=0.98, edge_lr=0.01, foundation_lr=0.0
    ),
}


def swapped(model: Model, first: int, second: int) -> Model:
    """Return a model that takes two classes for each other."""
    found = copy.deepcopy(model)
    last = [module for module in found.module.modules() if isinstance(module, nn.Linear)][-1]
    order = list(range(model.classes))
    order[first], order[second] = order[second], order[first]
    with torch.no_grad():
        last.weight.copy_(last.weight[order].clone())
        last.bias.copy_(last.bias[order].clone())
    return found


def drifted(image: Pixels, seed: int) -> Pixels:
    """Return an image (H, W) as a camera with little contrast and much noise sees it, (H, W, 1)."""
    noise = np.random.default_rng(seed).normal(0, 35, image.shape)
    seen: Pixels = np.clip(0.6 * image.astype(float) + 50 + noise, 0, 255).astype(np.uint8)
    return seen.reshape(*image.shape[:2], -1)


def measure(
    edge: Model, foundation: Model, config: AdaptConfig, *, share: float, seed: int, most: int
) -> float:
    """Return the accuracy after a stream in which labels come for a share of its first half."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.test_images)).tolist()[: 2 * most]
    images = {i: drifted(digits.test_images[i], i + 10**6 * seed) for i in order}
    known: dict[int, int] = {}
    learner: CemaLearner[int] = CemaLearner(
        edge, foundation, config, recall=lambda items: [images[item] for item in items], seed=1
    )
    learner.labels_from(lambda items: [known.get(item) for item in items])

    def learn(batches: Sequence[Sequence[int]], replay: bool) -> None:
        for batch in batches:
            learner.learn(batch, Batch([images[item] for item in batch]))
            if replay:
                learner.replay()

    batches = [order[i : i + config.fresh] for i in range(0, most - config.fresh + 1, config.fresh)]
    half = len(batches) // 2
    learn(batches[:half], replay=False)
    seen = [item for batch in batches[:half] for item in batch]
    known |= {item: int(digits.test_labels[item]) for item in seen[: int(share * len(seen))]}
    learn(batches[half:], replay=True)
    answers = learner.edge_logits([images[item] for item in order[most:]]).argmax(axis=1)
    return float((answers == digits.test_labels[order[most:]]).mean())


def main() -> None:
    """Print the accuracies in per cent, and the same as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4, help="runs of each kind")
    parser.add_argument("--most", type=int, default=1000, help="digits in a stream, and as many to test on")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25, 1.0], help="of labels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    edge, right = resolve("digits-cnn"), resolve("digits-cnn-foundation")
    results: list[dict[str, Any]] = []
    for teacher, foundation in (("swaps", swapped(right, *SWAPPED)), ("right", right), ("as the edge", edge)):
        for name, config in SETTINGS.items():
            for share in options.shares:
                runs = [
                    measure(edge, foundation, config, share=share, seed=seed, most=options.most)
                    for seed in range(options.seeds)
                ]
                found = {"foundation": teacher, "settings": name, "labelled": share}
                results.append({**found, "accuracy": round(100 * float(np.mean(runs)), 2)})
                print(*results[-1].values(), sep="\t", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
