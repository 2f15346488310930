"""The recipes of the weights that ship with the package."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn import functional

from cema._util.files import write_atomic
from cema.data.digits import DIGITS_SHA256, SPLIT_SEED, DigitsData, load_digits
from cema.models.digits import DIGITS_PREPROCESSING, digits_net
from cema.models.digits_vit import DigitsVit, digits_vit_net
from cema.recipes.augment import AUGMENTATIONS, Augmenter

__all__ = ["DIGITS_PAIRS", "DIGITS_RECIPES", "Recipe", "VitRecipe", "accuracy", "train_digits"]

Progress = Callable[[str, int, int], object]

_THREADS = 1


@dataclass(frozen=True)
class Recipe:
    """How one model is trained: AdamW with a warm-up over the first tenth and a cosine decay to zero.

    Attributes
    ----------
    epochs : int
        Passes over the training images.
    batch : int
        Images in a step.
    learning_rate : float
        The highest, after the warm-up.
    weight_decay : float
        Decoupled, on every parameter.
    smoothing : float
        Label smoothing.
    geometry, appearance : float
        Strength of the random changes of `cema.recipes.augment.Augmenter`; 0 is none, 1 is full.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    smoothing: float
    geometry: float
    appearance: float


@dataclass(frozen=True)
class VitRecipe(Recipe):
    """How a Vision Transformer is trained.

    Attributes
    ----------
    patches : float
        Share of an image's patches that the network sees in training, drawn again for each image and step. Half of
        them halve the time, and what is learned then rests on no single part of the image.
    ramp : float
        Share of the training over which the changes of appearance grow from none to their strength, slowly at first
        (as the square of the time). With all of them from the first step, a Vision Transformer learned nothing in
        200 steps.

    References
    ----------
    Liu et al., "PatchDropout: Economizing Vision Transformers Using Patch Dropout", WACV 2023.
    """

    patches: float
    ramp: float


#: The recipes by model.
DIGITS_RECIPES: dict[str, Recipe] = {
    "digits-cnn": Recipe(
        epochs=15,
        batch=100,
        learning_rate=5e-3,
        weight_decay=0.01,
        smoothing=0.0,
        geometry=0.5,
        appearance=0.02,
    ),
    "digits-cnn-foundation": Recipe(
        epochs=20,
        batch=100,
        learning_rate=4e-3,
        weight_decay=0.02,
        smoothing=0.05,
        geometry=1.0,
        appearance=1.0,
    ),
    "digits-vit": VitRecipe(
        epochs=40,
        batch=50,
        learning_rate=1e-3,
        weight_decay=0.05,
        smoothing=0.0,
        geometry=0.5,
        appearance=0.02,
        patches=0.5,
        ramp=0.0,
    ),
    "digits-vit-foundation": VitRecipe(
        epochs=50,
        batch=50,
        learning_rate=1e-3,
        weight_decay=0.05,
        smoothing=0.05,
        geometry=0.7,
        appearance=0.7,
        patches=0.5,
        ramp=0.5,
    ),
}

#: What is trained together: edge model, then foundation model.
DIGITS_PAIRS: dict[str, tuple[str, ...]] = {
    "cnn": ("digits-cnn", "digits-cnn-foundation"),
    "vit": ("digits-vit", "digits-vit-foundation"),
    "all": tuple(DIGITS_RECIPES),
}


def train_digits(
    out: Path,
    *,
    seed: int = 0,
    pair: str = "cnn",
    progress: Progress | None = None,
    max_steps: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Train pairs of models of digits and write their weights and records.

    With the same seed, release of torch and kind of machine, the weights are the same bytes.

    Parameters
    ----------
    out : Path
        Folder for ``<name>.safetensors`` and ``<name>.json``, made when absent; each file appears whole or
        not at all.
    seed : int
        Of the initial weights, the order of the images and their changes. The split has a seed of its own.
    pair : {"cnn", "vit", "all"}
        The convolutional networks, the Vision Transformers, or both pairs. What is trained beside a model does not
        change its weights.
    progress : callable, optional
        Called with the model's name, the steps done and the steps in all.
    max_steps : int, optional
        Stop each training after so many steps: to try it out, not to get a good model.

    Returns
    -------
    dict
        The records by name: seed, split, recipe, parameters, clean accuracy in percent, torch version,
        seconds and the sha256 of the weights.

    Raises
    ------
    ConfigError
        If the package that carries the digits is absent.
    ValueError
        If `pair` is another, or `max_steps` is below 1.
    """
    if pair not in DIGITS_PAIRS:
        raise ValueError(f"pair: expected one of {', '.join(DIGITS_PAIRS)}, got {pair!r}")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}; leave it out to train fully")
    data = load_digits()
    out.mkdir(parents=True, exist_ok=True)
    records = {}
    for name in DIGITS_PAIRS[pair]:
        recipe = DIGITS_RECIPES[name]
        started = time.perf_counter()
        with _reproducible(seed):
            net = _train(name, data, seed=seed, progress=progress, max_steps=max_steps)
        weights = save_safetensors({key: value.contiguous() for key, value in net.state_dict().items()})
        record = {
            "format": "cema.weights/1",
            "name": name,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "clean_accuracy": round(accuracy(net, data.test_images, data.test_labels), 2),
            "parameters": sum(parameter.numel() for parameter in net.parameters()),
            "seed": seed,
            "split": _describe_split(data),
            "recipe": asdict(recipe) | ({} if max_steps is None else {"max_steps": max_steps}),
            "augmentations": list(AUGMENTATIONS),
            "torch": torch.__version__,
            "seconds": round(time.perf_counter() - started, 1),
        }
        write_atomic(out / f"{name}.safetensors", weights)
        write_atomic(out / f"{name}.json", (json.dumps(record, indent=2) + "\n").encode())
        records[name] = record
    return records


def accuracy(net: nn.Module, images: np.ndarray, labels: np.ndarray, *, batch: int = 500) -> float:
    """Measure how often a digits model is right.

    Parameters
    ----------
    net : torch.nn.Module
        Put into evaluation mode by this.
    images : ndarray of uint8, shape (N, 32, 32, 1)
        Digits.
    labels : ndarray of int64, shape (N,)
        What they show.
    batch : int
        Images at a time.

    Returns
    -------
    float
        Percent.
    """
    net.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            inputs = _normalise(_to_unit(images[start : start + batch]))
            right += int((net(inputs).argmax(1).numpy() == labels[start : start + batch]).sum())
    return 100.0 * right / len(images)


def _train(
    name: str, data: DigitsData, *, seed: int, progress: Progress | None, max_steps: int | None
) -> nn.Module:
    recipe, net = DIGITS_RECIPES[name], _build(name).train()
    images, labels = _to_unit(data.train_images), torch.from_numpy(data.train_labels)
    change = Augmenter(seed, geometry=recipe.geometry, appearance=recipe.appearance)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=recipe.weight_decay)
    per_epoch = len(images) // recipe.batch
    steps = recipe.epochs * per_epoch
    last = steps if max_steps is None else min(steps, max_steps)
    for step in range(last):
        if step % per_epoch == 0:
            order = torch.randperm(len(images))
        start = step % per_epoch * recipe.batch
        picked = order[start : start + recipe.batch]
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step / steps)
        change.appearance = _appearance(recipe, step / steps)
        loss = functional.cross_entropy(
            _answers(net, _normalise(change(images[picked])), recipe),
            labels[picked],
            label_smoothing=recipe.smoothing,
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if progress is not None:
            progress(name, step + 1, last)
    return net


def _build(name: str) -> nn.Module:
    return digits_vit_net(name) if name in DIGITS_PAIRS["vit"] else digits_net(name)


def _answers(net: nn.Module, inputs: Tensor, recipe: Recipe) -> Tensor:
    if isinstance(net, DigitsVit) and isinstance(recipe, VitRecipe) and recipe.patches < 1:
        tokens = net.embed(inputs)
        kept = round(recipe.patches * tokens.shape[1])
        chosen = torch.rand(tokens.shape[:2]).argsort(1)[:, :kept]
        return net.classify(tokens.gather(1, chosen.unsqueeze(2).expand(-1, -1, tokens.shape[2])))
    logits: Tensor = net(inputs)
    return logits


def _schedule(done: float) -> float:
    warm = 0.1
    if done < warm:
        return 0.05 + 0.95 * done / warm
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


def _appearance(recipe: Recipe, done: float) -> float:
    ramp = recipe.ramp if isinstance(recipe, VitRecipe) else 0.0
    return recipe.appearance * (min(1.0, done / ramp) ** 2 if ramp else 1.0)


@contextlib.contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    # Sums are split by thread, so the number of threads is part of the recipe: one, because layers this small
    # gain nothing from a second and lose much when a core is busy. What the caller had is put back.
    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(_THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


def _to_unit(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def _normalise(images: Tensor) -> Tensor:
    # The same map as the models' preprocessing, which works on pixels of 0 to 255.
    return (images * 255 - DIGITS_PREPROCESSING.mean[0]) / DIGITS_PREPROCESSING.std[0]


def _describe_split(data: DigitsData) -> dict[str, Any]:
    def digest(rows: np.ndarray) -> str:
        return hashlib.sha256(np.sort(rows).astype("<i8").tobytes()).hexdigest()

    return {
        "source_sha256": DIGITS_SHA256,
        "seed": SPLIT_SEED,
        "train": len(data.train_rows),
        "train_rows_sha256": digest(data.train_rows),
        "test": len(data.test_rows),
        "test_rows_sha256": digest(data.test_rows),
    }
