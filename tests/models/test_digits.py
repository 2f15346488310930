"""The shipped weights are what their records say."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cema.data.digits import DIGITS_SHA256, SPLIT_SEED, load_digits
from cema.errors import ModelError
from cema.models import shipped
from cema.models.digits import DIGITS_PREPROCESSING, digits_net
from cema.models.shipped import shipped_model, shipped_record
from cema.recipes.digits import DIGITS_RECIPES, accuracy

NAMES = ("digits-cnn", "digits-cnn-foundation")
WEIGHTS = Path(str(files("cema.models") / "weights"))


@pytest.mark.parametrize("name", NAMES)
def test_model_is_ready_to_use(name: str) -> None:
    model = shipped_model(name)
    images = load_digits().test_images[:5]
    assert model.name == name
    assert model.labels == tuple("0123456789")
    assert model.classes == 10
    assert not model.module.training
    with torch.inference_mode():
        logits = model.module(torch.from_numpy(model.preprocessing(images)))
    assert logits.shape == (5, 10)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_record_matches_the_weights(name: str) -> None:
    record, data, model = shipped_record(name), load_digits(), shipped_model(name)
    assert record["sha256"] == hashlib.sha256((WEIGHTS / f"{name}.safetensors").read_bytes()).hexdigest()
    assert accuracy(model.module, data.test_images, data.test_labels) == pytest.approx(
        record["clean_accuracy"], abs=0.1
    )
    assert record["parameters"] == sum(parameter.numel() for parameter in model.module.parameters())
    assert record["augmentations"]


@pytest.mark.parametrize("name", NAMES)
def test_record_matches_recipe_and_split(name: str) -> None:
    record, data = shipped_record(name), load_digits()
    recipe = DIGITS_RECIPES[name]
    assert record["recipe"] == {field: getattr(recipe, field) for field in recipe.__dataclass_fields__}
    split = record["split"]
    assert (split["source_sha256"], split["seed"]) == (DIGITS_SHA256, SPLIT_SEED)
    for part in ("train", "test"):
        rows = np.sort(getattr(data, f"{part}_rows")).astype("<i8")
        assert split[f"{part}_rows_sha256"] == hashlib.sha256(rows.tobytes()).hexdigest()
        assert split[part] == len(rows)
    assert not set(data.train_rows.tolist()) & set(data.test_rows.tolist())


def test_preprocessing_is_what_training_used() -> None:
    data = load_digits()
    normalised = DIGITS_PREPROCESSING(data.train_images)
    assert normalised.mean() == pytest.approx(0, abs=0.02)
    assert normalised.std() == pytest.approx(1, abs=0.02)
    model = shipped_model("digits-cnn")
    with torch.inference_mode():
        predicted = model.module(torch.from_numpy(DIGITS_PREPROCESSING(data.test_images))).argmax(1)
    right = 100 * float((predicted.numpy() == data.test_labels).mean())
    assert right == pytest.approx(accuracy(model.module, data.test_images, data.test_labels), abs=0.05)


def test_sizes_and_norm_layers() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) < 6_000_000
    for name in NAMES:
        net = digits_net(name)
        kinds = [type(module) for module in net.modules()]
        assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.Conv2d) >= 4


def test_unknown_names_and_damaged_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="digits-cnn-foundation"):
        digits_net("digits-transformer")
    with pytest.raises(ModelError, match="reinstall"):
        shipped_record("digits-transformer")
    real = shipped._read
    monkeypatch.setattr(
        shipped, "_read", lambda file: real(file)[:-1] if file.endswith("tensors") else real(file)
    )
    with pytest.raises(ModelError, match="sha256"):
        shipped_model("digits-cnn")
