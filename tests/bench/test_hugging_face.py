"""Models in transformers' format, from a local folder, through the benchmark."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cema.models.registry import resolve

METHODS = ("source", "bn", "tent", "cotta", "eta", "sar", "cema")


def write_digits_model(path: Path, kind: str, hidden: int) -> None:
    """Write a small random Transformer for the digits as transformers does."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(hidden)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    getattr(transformers, f"{kind}ForImageClassification")(config).save_pretrained(path)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (path / "preprocessor_config.json").write_text(json.dumps({"size": 32} | half), "utf-8")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_a_pair_from_local_folders_fills_every_row(
    kind: str, tmp_path: Path, cema_bench: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    write_digits_model(tmp_path / "small", kind, 16)
    write_digits_model(tmp_path / "large", kind, 32)
    options = (
        "--corruptions",
        "fog",
        "--severities",
        "3",
        "--samples",
        "96",
        "--batch-size",
        "32",
        "--jobs",
        "1",
    )
    done = cema_bench(
        *(
            "--data",
            "digits",
            "--model",
            f"hf:{tmp_path / 'small'}",
            "--foundation",
            f"hf:{tmp_path / 'large'}",
        ),
        *options,
        *("--methods", ",".join(METHODS), "--out", str(tmp_path / "out")),
        *("--set", "cema.e_max=1.0", "--set", "sar.e_margin=1.0"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Loading weights" not in done.stderr, "a bar that is not this command's"
    text = (tmp_path / "out" / "results.json").read_text()
    assert str(tmp_path) not in text
    cells = {cell["method"]: cell for cell in json.loads(text)["cells"]}
    assert {(cell["model"], cell["foundation"]) for cell in cells.values()} == {("hf:small", "hf:large")}
    assert [name for name in METHODS if cells[name]["accuracy"] is None] == ["bn"], "there is no BatchNorm"
    assert cells["tent"]["backwards"] == cells["cema"]["uploads"] == 96
    assert cells["cema"]["backwards"] > 0


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_the_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    write_digits_model(tmp_path, kind, 16)
    import transformers

    direct = getattr(transformers, f"{kind}ForImageClassification").from_pretrained(tmp_path).eval()
    model = resolve(f"hf:{tmp_path}")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    by_hand = (torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = direct.double()(pixel_values=by_hand).logits
        pixels = torch.from_numpy(model.preprocessing([image]))
        got = model.module(pixels)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
