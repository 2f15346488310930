"""Find what a method wants on streams as short as those measured here, on corruptions outside the fifteen.

The score is the mean accuracy over the four validation corruptions at severity 5, with one seed. The grids are not of
one size: seven learning rates for PL, Tent, ETA, EATA, SAR, ROID, CMF and Tent with COME; six for DeYO and EATA with
COME, four for RoTTA, three for CoTTA; twenty points for CEMA, which has two rates; two to four values of what BN with a
prior, ONDA and LAME have in place of a rate. Nothing else is tuned, no threshold either. Examples::

    python benchmarks/tune.py digits --samples 1000 --method tent --method eta
    python benchmarks/tune.py cifar --data DATA --samples 2000 --jobs 2 --output cifar.json
    python benchmarks/tune.py efficientnet --data DATA --samples 500 --batch 32 --method tent --corruption spatter
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cema.bench.config import ModelPair
from cema.bench.hyperparameters import Architecture, method_settings
from cema.bench.plan import load_pair
from cema.data.c_bar import C_BAR_CORRUPTIONS
from cema.data.corruptions import VALIDATION_CORRUPTIONS
from cema.data.dataset import open_dataset
from cema.methods.base import MethodContext
from cema.methods.registry import default_settings, make_adapter

if TYPE_CHECKING:
    from cema.data.base import Dataset, Family, LabelledImages
    from cema.models.spec import Model

RATES = (2.5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2)
FEW_RATES = (2.5e-4, 1e-3, 5e-3, 1e-2, 2.5e-2, 5e-2)
ADAM_RATES = (1e-4, 2.5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2)
# CEMA has two rates, and its loss is up to 20 times as large as an entropy.
EDGE_RATES = (2.5e-4, 5e-4, 1e-3, 2.5e-3, 1e-2)
FOUNDATION_RATES = (2.5e-4, 2.5e-3, 1e-2, 2.5e-2)
GRIDS: dict[str, tuple[dict[str, Any], ...]] = {
    "source": ({},),
    "bn": ({},),
    "bn-prior": tuple({"prior": prior} for prior in (16, 64)),
    "onda": tuple({"momentum": momentum} for momentum in (0.05, 0.1, 0.2, 0.4)),
    "lame": tuple({"neighbours": k} for k in (1, 3, 5)),
    **{name: tuple({"lr": rate} for rate in RATES) for name in ("pl", "tent", "eta", "eata", "sar")},
    "cotta": tuple({"lr": rate} for rate in (1e-5, 1e-4, 1e-3)),
    # The first is the paper's for CIFAR-10 and BatchNorm.
    "tent-come": ({"optimizer": "adam", "lr": 1e-3}, *({"optimizer": "sgd", "lr": r} for r in FEW_RATES)),
    "eata-come": tuple({"lr": rate} for rate in FEW_RATES),
    "deyo": tuple({"lr": rate} for rate in FEW_RATES),
    "roid": tuple({"lr": rate} for rate in ADAM_RATES),
    "cmf": tuple({"lr": rate} for rate in ADAM_RATES),
    "rotta": tuple({"lr": rate} for rate in (2.5e-4, 1e-3, 5e-3, 2.5e-2)),
    **{
        name: tuple(
            {"adapt": {"edge_lr": edge, "foundation_lr": foundation}}
            for edge, foundation in itertools.product(EDGE_RATES, FOUNDATION_RATES)
        )
        for name in ("cema", "cema-reference")
    },
}
PAIRS = {
    "digits": ("digits", "digits-cnn", "digits-cnn-foundation"),
    "digits-vit": ("digits", "digits-vit", "digits-vit-foundation"),
    "cifar": ("cifar10_test_a.npz", "cifar-resnet20", "cifar-resnet56"),
    "efficientnet": ("imagenet_a", "efficientnet-lite0", "efficientnet-lite2"),
}
COLUMNS: dict[str, tuple[Family, Architecture]] = {
    "digits": ("digits", "batchnorm"),
    "digits-vit": ("digits", "layernorm"),
    "cifar": ("cifar", "batchnorm"),
    "efficientnet": ("imagenet", "batchnorm"),
}
WEIGHTS = {"cifar-resnet20": "cifar10_resnet20.safetensors", "cifar-resnet56": "cifar10_resnet56.safetensors"}


@lru_cache
def models(edge: str, foundation: str, data: Path | None, *, cropped: bool) -> tuple[Model, Model]:
    """Load a pair of models, as the benchmark does, once in each process."""
    edge_weights, foundation_weights = (
        str(data / WEIGHTS[name]) if data and name in WEIGHTS else None for name in (edge, foundation)
    )
    pair = ModelPair(
        model=edge, weights=edge_weights, foundation=foundation, foundation_weights=foundation_weights
    )
    return load_pair(pair, cropped=cropped)


@lru_cache
def dataset(spec: str, samples: int, cache: Path | None) -> Dataset:
    """Open the data once in each process."""
    return open_dataset(spec, cache=cache, limit=samples)


@lru_cache
def corrupted(spec: str, samples: int, corruption: str, cache: Path | None) -> LabelledImages:
    """Make the images of one corruption once in each process."""
    return dataset(spec, samples, cache).corrupted(corruption, 5)


def accuracy(job: tuple[argparse.Namespace, str, dict[str, Any], str]) -> float:
    """Run one method with one setting over one corruption."""
    options, method, setting, corruption = job
    torch.set_num_threads(1)
    source, edge, foundation = PAIRS[options.pair]
    spec = source if source == "digits" else str(options.data / source)
    stream = corrupted(spec, options.samples, corruption, options.cache)
    clean = dataset(spec, options.samples, options.cache)
    pupil, teacher = models(edge, foundation, options.data, cropped=clean.cropped)
    context = MethodContext(
        foundation=teacher, source_images=list(clean.clean().images[:500]), batch=options.batch
    )
    adapter = make_adapter(method, pupil, setting, context)
    order = np.random.default_rng(0).permutation(len(stream.labels))
    right = 0
    for i in range(0, len(order), options.batch):
        chosen = order[i : i + options.batch]
        logits = adapter.step([stream.images[int(j)] for j in chosen]).logits
        right += int((logits.argmax(1) == stream.labels[chosen]).sum())
    return 100 * right / len(order)


def grid(options: argparse.Namespace, method: str) -> list[dict[str, Any]]:
    """Return the settings to go through: all of a method's, or those with the rates that were asked for."""

    def asked(point: dict[str, Any]) -> bool:
        rates = point.get("adapt", {})
        own = not options.rate or point.get("lr", rates.get("edge_lr")) in options.rate
        return own and (not options.foundation_rate or rates.get("foundation_lr") in options.foundation_rate)

    return [point for point in GRIDS[method] if asked(point)]


def settings_of(options: argparse.Namespace, method: str, setting: dict[str, Any]) -> dict[str, Any]:
    """Put a grid point over what the tables have for the data and the architecture."""
    family, kind = COLUMNS[options.pair]
    return method_settings(method, family, kind, rates="short", given={method: setting})


def main() -> None:
    """Go through the grids."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pair", choices=sorted(PAIRS))
    parser.add_argument("--data", type=Path, help="folder with images and weights (cifar, efficientnet)")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--method", action="append", choices=sorted(GRIDS))
    parser.add_argument(
        "--rate", action="append", type=float, help="only these learning rates (of CEMA: of the edge)"
    )
    parser.add_argument(
        "--foundation-rate",
        action="append",
        type=float,
        help="only these learning rates of CEMA's foundation",
    )
    parser.add_argument("--corruption", action="append", choices=VALIDATION_CORRUPTIONS + C_BAR_CORRUPTIONS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for method in options.method or GRIDS:
            results[method] = {"default": default_settings(method)}  # type: ignore[dict-item]
            for setting in grid(options, method):
                settings = settings_of(options, method, setting)
                corruptions = options.corruption or VALIDATION_CORRUPTIONS
                jobs = [(options, method, settings, corruption) for corruption in corruptions]
                scores = list(pool.map(accuracy, jobs))
                results[method][json.dumps(setting)] = float(np.mean(scores))
                print(f"{method:15s} {json.dumps(setting):30s} {np.mean(scores):6.2f}", flush=True)
            if options.output:
                options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
