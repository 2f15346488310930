"""The recipes: reproducible, and their changes to images keep what they must."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cema.data.digits import load_digits
from cema.recipes.augment import Augmenter, structured_pictures
from cema.recipes.digits import DIGITS_PAIRS, DIGITS_RECIPES, train_digits

Calls = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]], Calls]:
    out, calls = tmp_path_factory.mktemp("trained") / "new" / "folder", []
    records = train_digits(out, max_steps=2, progress=lambda name, done, of: calls.append((name, done, of)))
    return out, records, calls


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_weights_follow_the_seed(trained: Any, tmp_path: Path, seed: int, same: bool) -> None:
    train_digits(tmp_path, seed=seed, max_steps=2)
    for name in DIGITS_PAIRS["cnn"]:
        file = f"{name}.safetensors"
        assert ((tmp_path / file).read_bytes() == (trained[0] / file).read_bytes()) is same


def test_writes_records_and_reports_progress(trained: Any) -> None:
    out, records, calls = trained
    assert calls == [(name, step, 2) for name in DIGITS_PAIRS["cnn"] for step in (1, 2)]
    for name, record in records.items():
        assert json.loads((out / f"{name}.json").read_text()) == record
        weights = (out / f"{name}.safetensors").read_bytes()
        assert record["sha256"] == hashlib.sha256(weights).hexdigest()
        assert record["recipe"]["max_steps"] == 2
        assert record["seed"] == 0
    assert len(list(out.iterdir())) == 4


@pytest.fixture(scope="module")
def all_trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    out = tmp_path_factory.mktemp("all")
    return out, train_digits(out, pair="all", max_steps=2)


def test_the_default_pair_is_the_same_beside_the_other(trained: Any, all_trained: Any) -> None:
    records = all_trained[1]
    assert list(records) == list(DIGITS_RECIPES) == [*DIGITS_PAIRS["cnn"], *DIGITS_PAIRS["vit"]]
    assert list(trained[1]) == list(DIGITS_PAIRS["cnn"])
    assert all(records[name]["sha256"] == record["sha256"] for name, record in trained[1].items())


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_transformers_follow_the_seed(all_trained: Any, tmp_path: Path, seed: int, same: bool) -> None:
    records = train_digits(tmp_path, pair="vit", max_steps=2, seed=seed)
    assert list(records) == list(DIGITS_PAIRS["vit"])
    for name in records:
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (tmp_path, all_trained[0]))
        # The same bytes on a sound machine. Not asked for here: a core was seen whose vectorised erf is at times three
        # units in the last place off in one lane, and Adam makes steps of noise where a gradient is zero (key biases).
        # Two steps move a parameter by some 1e-4.
        apart = torch.cat([(one[key] - other[key]).abs().flatten() for key in one]).mean()
        assert apart < 2e-6 if same else apart > 1e-3


def test_leaves_torch_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train_digits(tmp_path, max_steps=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_wrong_steps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        train_digits(tmp_path, max_steps=0)


def test_wrong_pair(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of cnn, vit, all, got 'both'"):
        train_digits(tmp_path, pair="both")


def test_changes_are_seeded_bounded_and_by_strength() -> None:
    images = torch.from_numpy(load_digits().train_images[:50]).permute(0, 3, 1, 2).float() / 255
    one, again = (Augmenter(3)(images) for _ in range(2))
    assert torch.equal(one, again)
    assert one.shape == images.shape
    assert 0 <= one.min() <= one.max() <= 1
    untouched = Augmenter(3, geometry=0, appearance=0)(images)
    assert torch.allclose(untouched, images, atol=1e-4)


def test_pictures_have_structure_not_pixel_noise() -> None:
    pictures = structured_pictures(90, torch.Generator().manual_seed(0))
    assert pictures.shape == (90, 1, 32, 32)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    # Neighbouring pixels of noise are unrelated: they would differ by 1.4 deviations in the mean square.
    step = (pictures[..., 1:] - pictures[..., :-1]).pow(2).mean((1, 2, 3)).sqrt()
    assert (step < 1.2 * pictures.std((1, 2, 3))).all()
