"""Benchmarks with a name: the poster's tables, and two that run on a small machine."""

from __future__ import annotations

import msgspec

from cema.bench.config import DIGITS_PAIR, BenchFile, ModelPair, check_names

__all__ = ["PRESETS", "QUICK", "preset"]

#: The names that ``--preset`` takes. Those without data or weights want ``--data`` and ``--weights``.
PRESETS: dict[str, BenchFile] = {
    # Runs anywhere: data and weights come with the package.
    "digits-c": BenchFile(
        data="digits",
        rates="short",
        pair=(
            DIGITS_PAIR,
            ModelPair(model="digits-vit", foundation="digits-vit-foundation"),
        ),
    ),
    # Some thousand CIFAR-10 test images; weights are given. CIFAR-10-C as published has 10,000: --rates papers.
    "cifar10-c": BenchFile(
        rates="short", pair=(ModelPair(model="cifar-resnet20", foundation="cifar-resnet56"),)
    ),
    # The poster's two tables; data are given, weights come with timm and transformers. Those of timm without a suffix
    # are of newer recipes than torchvision's first, which the poster's are.
    "imagenet-c-cnn": BenchFile(
        pair=(ModelPair(model="timm:resnet18.tv_in1k", foundation="timm:resnet101.tv_in1k"),)
    ),
    "imagenet-c-transformer": BenchFile(
        pair=(
            ModelPair(
                model="hf:facebook/deit-tiny-patch16-224", foundation="hf:facebook/deit-base-patch16-224"
            ),
        )
    ),
}

#: What ``--quick`` lays over a preset of that name, where 300 images and three corruptions would show nothing.
QUICK: dict[str, BenchFile] = {
    # On 300 images (five batches) no method has learned enough to differ from batch statistics.
    # All 2,000 therefore, and fewer corruptions.
    "digits-c": BenchFile(samples=2000, severities=(5,), corruptions=("gaussian_noise", "fog")),
}


def preset(name: str, *, quick: bool = False) -> BenchFile:
    """Return a benchmark by its name.

    Parameters
    ----------
    name : str
        One of `PRESETS`.
    quick : bool
        With what `QUICK` says of it.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    check_names("preset", [name], sorted(PRESETS))
    known = PRESETS[name]
    return msgspec.structs.replace(known, **QUICK[name].given()) if quick and name in QUICK else known
