"""Benchmarks with a name: the poster's tables, and two that run on a small machine."""

from __future__ import annotations

from cema.bench.config import DIGITS_PAIR, BenchFile, ModelPair, check_names

__all__ = ["PRESETS", "preset"]

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


def preset(name: str) -> BenchFile:
    """Return a benchmark by its name.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    check_names("preset", [name], sorted(PRESETS))
    return PRESETS[name]
