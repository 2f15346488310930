"""Models in transformers' format, and the translation of their preprocessors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cema.errors import ModelError
from cema.models.hugging_face import read_preprocessor
from cema.models.registry import resolve

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": 224, "resample": 2}, (224, 224, 1.0, "bilinear")),
        ({"size": {"height": 384, "width": 256}, "resample": 3}, (384, 256, 1.0, "bicubic")),
        (
            {"size": 256, "do_center_crop": True, "crop_size": 224, "resample": 3},
            (224, 224, 0.875, "bicubic"),
        ),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 192, "width": 192},
            },
            (192, 192, 0.75, "bicubic"),
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 224, 0.875, "bicubic")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384, 1.0, "bicubic")),
    ],
)
def test_geometry_of_a_preprocessor(settings: dict[str, Any], expected: tuple[int, int, float, str]) -> None:
    made = read_preprocessor(settings | HALF, name="hf:x")
    assert (made.height, made.width, made.crop, made.interpolation) == expected


@pytest.mark.parametrize(
    ("settings", "black", "white"),
    [
        ({}, -1, 1),
        ({"do_normalize": False}, 0, 1),
        ({"do_rescale": False, "image_mean": 100, "image_std": 50}, -2, 3.1),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True}, -3, 1),
        ({"include_top": True}, -2, 2),
    ],
)
def test_pixels_of_a_preprocessor(settings: dict[str, Any], black: float, white: float) -> None:
    prepare = read_preprocessor({"size": 2} | HALF | settings, name="hf:x")
    pixels = np.stack([np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)])
    got = prepare(pixels)
    np.testing.assert_allclose(got[0], black, atol=1e-6)
    np.testing.assert_allclose(got[1], white, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"size": 224}, HALF | {"size": {"longest": 3}}, HALF | {"size": 0}])
def test_a_preprocessor_that_is_not_understood_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"preprocessor_config.json is not understood.*function of your own"):
        read_preprocessor(settings, name="hf:x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny random ViT classifier as transformers does."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    path = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        id2label={0: "cat", 1: "dog", 2: "bird"},
    )
    transformers.ViTForImageClassification(config).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps({"size": 16} | HALF), "utf-8")
    return path


@pytest.mark.filterwarnings("default")
def test_a_local_folder_resolves(folder: Path, tmp_path: Path) -> None:
    model = resolve(f"hf:{folder}")
    assert (model.classes, model.labels) == (3, ("cat", "dog", "bird"))
    with torch.inference_mode():
        assert model.module(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    state = load_file(folder / "model.safetensors")
    state["classifier.bias"] = torch.tensor([1.0, 2.0, 3.0])
    save_file(state, tmp_path / "w.safetensors")
    other = resolve(f"hf:{folder}", weights=tmp_path / "w.safetensors")
    assert other.module.state_dict()["model.classifier.bias"].tolist() == [1, 2, 3]
    state["other"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"do not fit, 1 keys .*: other"):
        resolve(f"hf:{folder}", weights=tmp_path / "w.safetensors")


@pytest.mark.filterwarnings("default")
def test_incomplete_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be loaded.*config.json"):
        resolve(f"hf:{tmp_path}")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    state = load_file(folder / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be loaded.*save_pretrained"):
        resolve(f"hf:{tmp_path}")
    save_file(
        {key: value for key, value in state.items() if "classifier" not in key},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"do not fit.*classifier.bias, classifier.weight"):
        resolve(f"hf:{tmp_path}")
