"""The CIFAR ResNets, with public weights and real photographs where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cema.errors import ModelError
from cema.models.cifar import CifarResNet
from cema.models.registry import resolve


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_the_networks_have_the_size_they_are_known_for(depth: int, parameters: int) -> None:
    net = CifarResNet(depth).eval()
    # 0.27 and 0.85 million in the paper: a shortcut with parameters would add 2,752.
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    with torch.inference_mode():
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_other_depths_and_missing_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"6n \+ 2"):
        CifarResNet(18)
    with pytest.raises(ModelError, match=r"comes without weights.*safetensors"):
        resolve("cifar-resnet20")


def test_another_number_of_classes_comes_with_its_weights(tmp_path: Path) -> None:
    save_file(CifarResNet(20, 7).state_dict(), tmp_path / "w.safetensors")
    model = resolve("cifar-resnet20", weights=tmp_path / "w.safetensors", classes=7)
    assert (model.classes, model.labels) == (7, None)
    with pytest.raises(ModelError, match=r"linear.weight is \(7, 64\) and should be \(10, 64\)"):
        resolve("cifar-resnet20", weights=tmp_path / "w.safetensors")


def test_resnet20_recognises_photographs(shared_data: Path) -> None:
    model = resolve("cifar-resnet20", weights=shared_data / "cifar10_resnet20.safetensors")
    with np.load(shared_data / "cifar10_test_a.npz") as data:
        images, labels = data["x"][:1000], data["y"][:1000]
    with torch.inference_mode():
        answers = model.module(torch.from_numpy(model.preprocessing(images))).argmax(1).numpy()
    # The publisher re-encoded the photographs as JPEG; on the originals it is near 92 %.
    assert 0.79 < (answers == labels).mean() < 0.84


def test_resnet56_loads_strictly(shared_data: Path) -> None:
    model = resolve("cifar-resnet56", weights=shared_data / "cifar10_resnet56.safetensors")
    assert model.labels is not None
    assert model.labels[0] == "airplane"
    with pytest.raises(ModelError, match=r"unexpected: layer1\.3"):
        resolve("cifar-resnet20", weights=shared_data / "cifar10_resnet56.safetensors")
