"""Measure how far images are from one another and from themselves, for the setting `duplicates` of a device's budget.

Prints, for each source, the distance from an image to the nearest other one, and, where images are large enough to be
moved, how far an image is from itself when it is corrupted or moved by some pixels. Distances are those of
`cema.ondevice.likeness`, in grey levels. Example::

    python benchmarks/likeness.py digits cifar10_test.npz PHOTOGRAPHS
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cema.data.corruptions import corrupt_images
from cema.data.digits import load_digits
from cema.ondevice.image_file import read_image_file
from cema.ondevice.image_folder import list_images
from cema.ondevice.likeness import likeness_distances, likeness_signature

Images = list[npt.NDArray[np.uint8]]

SIDE = 224  # of the images that are moved
CORRUPTIONS = ("jpeg_compression", "gaussian_noise", "brightness", "fog")


def read_images(source: str, most: int) -> Images:
    """Return the images of ``digits``, of the array `x` in a ``.npz`` file, or of a folder."""
    path = Path(source)
    if source == "digits":
        array = load_digits().test_images[:most]
        return list(array.reshape(*array.shape[:3], -1))
    if path.suffix == ".npz":
        return list(np.load(path)["x"][:most])
    return [read_image_file(file) for file in list_images(path).images[:most]]


def nearest(images: Images) -> dict[str, float]:
    """Return the distance from an image to the nearest other: the least, and some percentiles."""
    signatures = np.stack([likeness_signature(image) for image in images])
    found = np.empty(len(images))
    for i, signature in enumerate(signatures):
        distances = likeness_distances(signature, signatures)
        distances[i] = np.inf
        found[i] = distances.min()
    return {f"percentile {p}": round(float(np.percentile(found, p)), 1) for p in (0, 1, 5, 50)}


def from_themselves(images: Images, seed: int) -> dict[str, float]:
    """Return the median distance from an image to itself, corrupted or moved."""
    large = [image for image in images if min(image.shape[:2]) >= SIDE + 8]
    if not large:
        return {}
    parts = np.stack([image[:SIDE, :SIDE] for image in large])
    found = {f"moved by {n}": _apart(parts, [i[:SIDE, n : SIDE + n] for i in large]) for n in (1, 2, 4, 8)}
    for kind in CORRUPTIONS:
        for severity in (1, 5):
            found[f"{kind} {severity}"] = _apart(
                parts[:50], corrupt_images(parts[:50], kind, severity, seed=seed)
            )
    return found


def _apart(one: Any, other: Any) -> float:
    distances = [
        likeness_distances(likeness_signature(a), likeness_signature(b)[None])[0]
        for a, b in zip(one, other, strict=True)
    ]
    return round(float(np.median(distances)), 1)


def main() -> None:
    """Print a table for each source, and all as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sources", nargs="+", help="digits, a .npz file with an array x, or a folder of images"
    )
    parser.add_argument("--most", type=int, default=2000, help="images of each source")
    parser.add_argument("--seed", type=int, default=0, help="of the corruptions")
    options = parser.parse_args()
    results = {}
    for source in options.sources:
        images = read_images(source, options.most)
        rows = {"images": len(images), **nearest(images), **from_themselves(images, options.seed)}
        results[source] = rows
        print(f"| {source} | |\n|---|--:|")
        for name, value in rows.items():
            print(f"| {name} | {value} |")
        print()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
