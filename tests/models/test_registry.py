"""Names and what they resolve to."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cema.errors import ModelError
from cema.models.registry import available, resolve
from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

PREPROCESSING = Preprocessing(height=4, width=4, channels=1, mean=(127.5,), std=(127.5,))

OWN = """
from torch import nn
from cema import Model
from cema.ondevice.preprocess import Preprocessing

P = Preprocessing(height=4, width=4, channels=1, mean=(127.5,), std=(127.5,))

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

def module():
    made = net().double().train()
    made.preprocessing = P
    made.labels = ["a", "b", "c"]
    return made

def model():
    return Model("mine", net(), P, 3)

def lie():
    return Model("mine", net(), P, 4)

def bare():
    return net()

def images():
    made = nn.Sequential(nn.Conv2d(1, 3, 1))
    made.preprocessing = P
    return made

def too_large():
    made = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    made.preprocessing = P
    return made

def four_channels():
    made = net()
    made.preprocessing = Preprocessing(height=4, width=4, channels=4, mean=(0.0,) * 4, std=(1.0,) * 4)
    return made

def takes_some(size):
    return net()

def broken():
    raise KeyError("no such thing")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module with models, and return its name."""
    (tmp_path / "own_models.py").write_text(OWN, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return "own_models"


def test_available_lists_the_built_in_models_sorted() -> None:
    assert list(available()) == sorted(available())
    assert {"digits-cnn", "digits-cnn-foundation", "efficientnet-lite2", "cifar-resnet56"} <= set(available())


@pytest.mark.parametrize("name", ["digits-cnn-9000", "", "timm:", ":resnet18"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(ModelError, match=r"unknown model .*digits-cnn.*timm:NAME.*package.module:function"):
        resolve(name)


@pytest.mark.parametrize("name", ["digits-cnn", "digits-cnn-foundation"])
def test_digits_models_come_ready(name: str) -> None:
    model = resolve(name, classes=10)
    assert (model.name, model.classes, model.module.training) == (name, 10, False)
    x = torch.from_numpy(model.preprocessing(np.zeros((2, 32, 32, 1), np.uint8)))
    with torch.inference_mode():
        assert model.module(x).shape == (2, 10)
    with pytest.raises(ModelError, match="expected 7 classes, the model has 10"):
        resolve(name, classes=7)


def test_a_weights_file_replaces_the_shipped_weights(tmp_path: Path) -> None:
    source = resolve("digits-cnn").module.state_dict()
    changed = {key: value + 1 if value.is_floating_point() else value for key, value in source.items()}
    save_file(changed, tmp_path / "w.safetensors")
    loaded = resolve("digits-cnn", weights=str(tmp_path / "w.safetensors")).module.state_dict()
    assert all(torch.equal(value, changed[key]) for key, value in loaded.items())


def test_functions_of_ones_own(own: str) -> None:
    made = resolve(f"{own}:module")
    assert (made.classes, made.labels, made.module.training) == (3, ("a", "b", "c"), False)
    assert next(made.module.parameters()).dtype == torch.float32
    assert resolve(f"{own}:model", classes=3).name == f"{own}:model"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.models:net", "no_such_package.models cannot be imported.*PYTHONPATH"),
        ("{}:nothing", "has no function 'nothing'"),
        ("{}:number", "has no function 'number'"),
        ("{}:broken", "the function failed: KeyError: 'no such thing'"),
        ("{}:broken", "no such thing'$"),
        ("{}:takes_some", "missing 1 required positional argument.*it is called without arguments"),
        ("{}:four_channels", "the function failed: .*channels(?!.*called without arguments)"),
        ("{}:bare", "with an attribute preprocessing.*got Sequential with preprocessing NoneType"),
        ("{}:images", r"expected logits of shape \(1, classes\) for one image, got \(1, 3, 4, 4\)"),
        ("{}:too_large", r"fails on one input of shape \(1, 1, 4, 4\)"),
        ("{}:lie", "expected 4 classes, the model has 3 logits"),
    ],
)
def test_wrong_functions_are_explained(own: str, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(name.format(own))


def test_weights_are_loaded_strictly(own: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"1.weight": torch.zeros(3, 16).half(), "1.bias": torch.ones(3)}, path)
    module = resolve(f"{own}:module", weights=path).module
    assert module[1].weight.dtype == torch.float32
    assert module[1].bias.tolist() == [1, 1, 1]

    save_file({"1.weight": torch.zeros(4, 16), "2.bias": torch.ones(3)}, path)
    with pytest.raises(ModelError) as caught:
        resolve(f"{own}:module", weights=path)
    for part in ("1 missing: 1.bias", "1 unexpected: 2.bias", "1.weight is (4, 16) and should be (3, 16)"):
        assert part in str(caught.value)


def test_unreadable_weights_are_refused(own: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights file at"):
        resolve(f"{own}:module", weights=tmp_path / "absent.safetensors")
    torch.save({"1.bias": torch.ones(3)}, tmp_path / "pickled.pt")
    with pytest.raises(ModelError, match=r"not a readable safetensors file.*pickled files are not read"):
        resolve(f"{own}:module", weights=tmp_path / "pickled.pt")


@pytest.mark.parametrize(
    ("name", "package"),
    [("timm:resnet18", "timm"), ("torchvision:resnet18", "torchvision"), ("hf:somewhere", "transformers")],
)
def test_absent_packages_are_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Hidden(package), *sys.meta_path])
    with pytest.raises(ModelError, match=f"needs the package {package}, .*pip install '{package}'"):
        resolve(name)


class Hidden:
    """An import hook under which one package is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('raise RuntimeError("operator torchvision::nms does not exist")', "cannot be imported beside torch"),
        (
            'raise OSError("libcudart.so.12: cannot open shared object file")',
            "install both from the same index",
        ),
        ("import a_package_that_is_absent", "is installed but needs a_package_that_is_absent"),
    ],
)
def test_packages_that_do_not_match_torch_are_explained(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision.py").write_text(body, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(ModelError, match=message):
        resolve("torchvision:resnet18")


def test_a_model_checks_its_classes_and_labels() -> None:
    with pytest.raises(ModelError, match="at least 2 classes, got 1"):
        Model("m", nn.Identity(), PREPROCESSING, 1)
    with pytest.raises(ModelError, match="one label for each of 3 classes, got 2"):
        Model("m", nn.Identity(), PREPROCESSING, 3, ("a", "b"))
