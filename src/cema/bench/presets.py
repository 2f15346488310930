"""Benchmarks with a name: the poster's tables, and two that run on a small machine."""

from __future__ import annotations

from cema.bench.config import DIGITS_PAIR, BenchFile, ModelPair, check_names

__all__ = ["PRESETS", "preset"]

#: The names that ``--preset`` takes. Those without data or weights want ``--data`` and ``--weights``.
PRESETS: dict[str, BenchFile] = {
    # Runs anywhere: data and weights come with the package.
    "digits-c": BenchFile(
        data="digits",
        pair=(
            DIGITS_PAIR,
            ModelPair(model="digits-vit", foundation="digits-vit-foundation"),
        ),
    ),
    # CIFAR-10 test images, or CIFAR-10-C as published; weights are given.
    "cifar10-c": BenchFile(pair=(ModelPair(model="cifar-resnet20", foundation="cifar-resnet56"),)),
    # The poster's two tables; data are given, weights come with timm and transformers.
    "imagenet-c-cnn": BenchFile(pair=(ModelPair(model="timm:resnet18", foundation="timm:resnet101"),)),
    "imagenet-c-transformer": BenchFile(
        pair=(
            ModelPair(
                model="hf:facebook/deit-tiny-patch16-224", foundation="hf:facebook/deit-base-patch16-224"
            ),
        )
    ),
}


def preset(name: str) -> BenchFile:
    """Return a benchmark by its name.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    check_names("preset", [name], sorted(PRESETS))
    return PRESETS[name]
