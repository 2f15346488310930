"""DeYO against the same steps written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from two_layers import CLASSES, normalised, pictures, two_layers
from written_two_layers import WrittenTwoLayers, softmax_entropies

from cema.methods.base import MethodContext, NotApplicable, Uplink
from cema.methods.deyo import DeYO, DeYOConfig, shuffle_patches
from cema.methods.sar import SAR
from cema.models.registry import resolve
from cema.models.spec import Model

Photos = Callable[..., list[np.ndarray]]
SEED = 7
E_MARGIN, PLPD_MARGIN, E_WEIGHT = 0.8, 0.02, 0.6


def config(**changes: Any) -> DeYOConfig:
    settings: dict[str, Any] = {
        "lr": 0.05,
        "e_margin": E_MARGIN,
        "plpd_margin": PLPD_MARGIN,
        "e_weight": E_WEIGHT,
        "patches": 2,
        "skip": (),
    }
    return DeYOConfig(**settings | changes)


def shuffled_by_loops(x: torch.Tensor, order: np.ndarray, across: int) -> torch.Tensor:
    height, width = x.shape[2] // across, x.shape[3] // across
    result = torch.empty_like(x)
    for i in range(len(x)):
        for place in range(across**2):
            to, of = divmod(place, across), divmod(int(order[i, place]), across)
            for row in range(height):
                for column in range(width):
                    moved = x[i, :, of[0] * height + row, of[1] * width + column]
                    result[i, :, to[0] * height + row, to[1] * width + column] = moved
    return result


class Written:
    """The method, sample by sample."""

    def __init__(self, seed: int, across: int = 2) -> None:
        self.model = WrittenTwoLayers(SEED)
        self.rng = np.random.default_rng(seed)
        self.across = across

    def step(self, images: list[np.ndarray]) -> tuple[np.ndarray, list[int], list[int]]:
        """Return the logits, and who passes the first filter and who both."""
        x = normalised(images)
        logits = self.model.logits(x)
        entropy = softmax_entropies(logits)
        sure = [i for i in range(len(x)) if entropy[i] < E_MARGIN * math.log(CLASSES)]
        places = np.tile(np.arange(self.across**2), (len(sure), 1))
        order = self.rng.permuted(places, axis=1)
        destroyed = self.model.logits(shuffled_by_loops(x[sure], order, self.across)).softmax(1)
        terms, passed = [], []
        for place, i in enumerate(sure):
            p = logits[i].softmax(0)
            label = int(p.argmax())
            plpd = float((p[label] - destroyed[place, label]).detach())
            if plpd > PLPD_MARGIN:
                e = float(entropy[i].detach())
                weight = math.exp(E_WEIGHT * math.log(CLASSES) - e) + math.exp(plpd)
                terms.append(weight * entropy[i])
                passed.append(i)
        self.model.descend(torch.stack(terms).mean(), 0.05)
        return logits.detach().numpy(), sure, passed


@pytest.mark.parametrize("across", [2, 4])
def test_three_steps_are_the_written_out_method(across: int) -> None:
    deyo = DeYO(two_layers(SEED), config(patches=across), context=MethodContext(seed=3))
    written = Written(seed=3, across=across)
    counts = []
    for seed in range(3):
        images = pictures(16, seed)
        outcome = deyo.step(images)
        logits, sure, passed = written.step(images)
        np.testing.assert_allclose(outcome.logits, logits, atol=1e-4)
        assert (outcome.uploads, outcome.backwards) == (len(passed), len(passed))
        assert outcome.forwards == 16 + len(sure)
        assert outcome.bytes_up == Uplink().count([images[i] for i in passed])
        counts.append((len(sure), len(passed)))
    assert all(0 < passed <= sure <= 16 for sure, passed in counts)
    assert any(passed < sure for sure, passed in counts), "the second filter must have decided something"
    assert any(sure < 16 for sure, _ in counts), "the first filter must have decided something"
    written.model.check(deyo.model.parameters)


@pytest.mark.parametrize(("e_margin", "plpd_margin", "forwards"), [(0.0, -1.0, 8), (10.0, 1.0, 16)])
def test_where_nothing_passes_nothing_is_learned(e_margin: float, plpd_margin: float, forwards: int) -> None:
    deyo = DeYO(two_layers(SEED), config(e_margin=e_margin, plpd_margin=plpd_margin), context=MethodContext())
    before = {name: p.detach().clone() for name, p in deyo.parameters.items()}
    outcome = deyo.step(pictures(8))
    assert (outcome.uploads, outcome.bytes_up, outcome.forwards, outcome.backwards) == (0, 0, forwards, 0)
    assert all(torch.equal(p, before[name]) for name, p in deyo.parameters.items())


def test_the_order_of_patches_is_new_in_every_step_and_the_seeds() -> None:
    runs = []
    for seed in (1, 1, 2):
        deyo = DeYO(
            two_layers(SEED), config(e_margin=10.0, plpd_margin=-1.0), context=MethodContext(seed=seed)
        )
        runs.append([deyo.step(pictures(16)).logits for _ in range(3)][-1])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("channels", "height", "width", "across"), [(3, 8, 12, 4), (1, 6, 6, 3), (3, 4, 4, 2)]
)
def test_patches_are_moved_whole(channels: int, height: int, width: int, across: int) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(5, channels, height, width)))
    order = rng.permuted(np.tile(np.arange(across**2), (5, 1)), axis=1)
    got = shuffle_patches(x, torch.from_numpy(order))
    assert torch.equal(got, shuffled_by_loops(x, order, across))
    back = shuffle_patches(got, torch.from_numpy(order.argsort(axis=1)))
    assert torch.equal(back, x)


def test_a_side_that_the_patches_do_not_divide_is_resized_and_back() -> None:
    x = torch.rand(2, 3, 11, 7, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([[2, 0, 3, 1], [3, 2, 1, 0]])
    smaller = torch.nn.functional.interpolate(x, size=(10, 6), mode="bilinear", align_corners=False)
    moved = shuffled_by_loops(smaller, order.numpy(), 2)
    expected = torch.nn.functional.interpolate(moved, size=(11, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(shuffle_patches(x, order), expected)
    # Images of fewer pixels than patches.
    tiny = shuffle_patches(x[:, :, :3, :2], torch.arange(16).flip(0).repeat(2, 1))
    assert tiny.shape == (2, 3, 3, 2)


@pytest.mark.parametrize("name", ["digits-cnn", "digits-vit"])
def test_it_learns_the_layers_that_sar_learns(name: str) -> None:
    source = resolve(name)
    deyo, sar = (method(source, context=MethodContext()) for method in (DeYO, SAR))
    assert list(deyo.parameters) == list(sar.parameters)
    assert len(deyo.parameters) < len(deyo.model.parameters)


def test_skipped_layers_stay_as_they_are(edge: Model, photos: Photos) -> None:
    settings = config(lr=0.1, e_margin=2.0, plpd_margin=-1.0, skip=("blocks.*", "ln"))
    deyo = DeYO(edge, settings, context=MethodContext())
    assert {name.rpartition(".")[0] for name in deyo.parameters} == {"bn1", "bn2"}
    source = {k: v.clone() for k, v in deyo.model.module.state_dict().items()}
    deyo.step(photos(12))
    changed = {k for k, v in deyo.model.module.state_dict().items() if not torch.equal(v, source[k])}
    assert changed == set(deyo.parameters)
    with pytest.raises(NotApplicable, match=r"DeYO has nothing to learn.*skip"):
        DeYO(edge, DeYOConfig(skip=("*",)), context=MethodContext())


def test_a_grey_model_is_adapted() -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), dtype=np.uint8))
    deyo = DeYO(resolve("digits-cnn"), config(e_margin=1.0, plpd_margin=-1.0), context=MethodContext())
    outcome = deyo.step(images)
    assert outcome.logits.shape == (8, 10)
    assert outcome.backwards == 8


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": -1.0},
        {"momentum": 1.0},
        {"e_margin": math.nan},
        {"e_weight": -0.1},
        {"plpd_margin": 1.5},
        {"patches": 1},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DeYOConfig(**settings)
