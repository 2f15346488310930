"""CoTTA against the same steps written out in float64, and its views against plain loops."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from two_layers import PIXELS, SIDE, TwoLayers, normalised, pictures, two_layers

from cema.methods.base import MethodContext, Uplink
from cema.methods.cotta import CoTTA, CoTTAConfig
from cema.methods.cotta_views import (
    Border,
    Scene,
    View,
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    adjust_hue,
    adjust_saturation,
    apply_view,
    draw_view,
)
from cema.models.registry import resolve
from cema.models.spec import Model

Photos = Callable[[int], list[np.ndarray]]
Parameters = dict[str, torch.Tensor]


class Written:
    """Student, teacher and anchor in float64, with batch normalisation and both optimisers spelled out."""

    def __init__(self, config: CoTTAConfig) -> None:
        self.config = config
        source = {k: v.double() for k, v in TwoLayers(5, bias=False).named_parameters()}
        self.anchor, self.teacher, self.student = (
            {k: v.detach().clone() for k, v in source.items()} for _ in range(3)
        )
        self.first, self.second = (
            {k: torch.zeros_like(v) for k, v in self.student.items()} for _ in range(2)
        )
        self.steps = 0

    @staticmethod
    def logits(p: Parameters, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(x, p["conv.weight"])
        mu = y.mean((0, 2, 3), keepdim=True)
        y = (y - mu) / torch.sqrt(((y - mu) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5)
        y = torch.relu(y * p["norm.weight"].reshape(1, -1, 1, 1) + p["norm.bias"].reshape(1, -1, 1, 1))
        return y.mean((2, 3)) @ p["linear.weight"].T + p["linear.bias"]

    def step(self, x: torch.Tensor, views: list[torch.Tensor]) -> torch.Tensor:
        confidence = self.logits(self.anchor, x).softmax(1).max(1).values.mean()
        if confidence < self.config.confidence and views:
            answers = sum(self.logits(self.teacher, v) for v in views) / len(views)
        else:
            answers = self.logits(self.teacher, x)
        assert isinstance(answers, torch.Tensor)
        theta = {k: v.clone().requires_grad_() for k, v in self.student.items()}
        p, q = self.logits(theta, x).softmax(1), answers.softmax(1)
        loss = -(q * p.log()).sum(1).mean()
        if self.config.symmetric:
            loss = 0.5 * loss - 0.5 * (p * q.log()).sum(1).mean()
        gradients = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
        self.steps += 1
        for k, g in gradients.items():
            self.student[k] = self.student[k] - self.config.lr * self.direction(k, g)
            self.teacher[k] = self.config.ema * self.teacher[k] + (1 - self.config.ema) * self.student[k]
        return answers

    def direction(self, k: str, g: torch.Tensor) -> torch.Tensor:
        beta = self.config.momentum
        if self.config.optimizer == "sgd":
            self.first[k] = g if self.steps == 1 else beta * self.first[k] + g
            return g + beta * self.first[k]
        self.first[k] = beta * self.first[k] + (1 - beta) * g
        self.second[k] = 0.999 * self.second[k] + 0.001 * g * g
        mean = self.first[k] / (1 - beta**self.steps)
        return mean / (torch.sqrt(self.second[k] / (1 - 0.999**self.steps)) + 1e-8)


def assert_parameters(model: Any, expected: Parameters) -> None:
    for name, parameter in model.module.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-4, atol=2e-5)


# Adam with the loss in one direction is tested on views below: at first student and teacher agree, so that without
# views the gradient is zero up to rounding errors, and those are what Adam would follow.
@pytest.mark.parametrize(("optimizer", "symmetric"), [("adam", True), ("sgd", False), ("sgd", True)])
def test_three_steps_are_the_written_out_algorithm(optimizer: str, symmetric: bool) -> None:
    config = CoTTAConfig(
        optimizer=optimizer,  # type: ignore[arg-type]
        lr=0.01,
        ema=0.9,
        confidence=0.0,
        restore=0.0,
        symmetric=symmetric,
    )
    cotta, written = CoTTA(two_layers(5, bias=False), config, context=MethodContext()), Written(config)
    for seed in range(3):
        images = pictures(12, seed)
        outcome = cotta.step(images)
        expected = written.step(normalised(images), [])
        np.testing.assert_allclose(outcome.logits, expected.numpy(), rtol=1e-3, atol=1e-4)
        assert (outcome.uploads, outcome.forwards, outcome.backwards) == (12, 36, 12)
        assert outcome.bytes_up == Uplink().count(images)
    assert_parameters(cotta.student, written.student)
    assert_parameters(cotta.teacher, written.teacher)
    assert_parameters(cotta.anchor, written.anchor)


def test_an_unsure_anchor_has_pseudo_labels_averaged_over_views() -> None:
    config = CoTTAConfig(lr=0.01, ema=0.9, views=4, confidence=1.0, restore=0.0)
    cotta, written = CoTTA(two_layers(5, bias=False), config, context=MethodContext(seed=9)), Written(config)
    rng, generator = np.random.default_rng(9), torch.Generator().manual_seed(9)
    for seed in range(2):
        images = pictures(12, seed)
        grey = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2) / 255.0).float()
        seen = [apply_view(grey, draw_view(rng, SIDE, SIDE), generator) for _ in range(4)]
        views = [normalised(255.0 * view.double().permute(0, 2, 3, 1).numpy()) for view in seen]
        expected = written.step(normalised(images), views)
        outcome = cotta.step(images)
        np.testing.assert_allclose(outcome.logits, expected.numpy(), rtol=1e-3, atol=1e-3)
        assert outcome.forwards == 12 * (1 + 1 + 4)
    assert_parameters(cotta.student, written.student)


def test_each_weight_goes_back_to_the_source_by_chance() -> None:
    learned, restored, all_back = (
        CoTTA(
            two_layers(5, bias=False),
            CoTTAConfig(lr=0.05, confidence=0.0, restore=p),
            context=MethodContext(),
        )
        for p in (0.0, 0.3, 1.0)
    )
    for cotta in (learned, restored, all_back):
        cotta.step(pictures(12))
    back = total = 0
    source = dict(TwoLayers(5, bias=False).named_parameters())
    kept = dict(learned.student.module.named_parameters())
    for name, value in restored.student.module.named_parameters():
        at_source, at_learned = value == source[name], value == kept[name]
        assert bool((at_source | at_learned).all())
        back, total = back + int((at_source & ~at_learned).sum()), total + value.numel()
    assert 0.2 < back / total < 0.4
    for name, value in all_back.student.module.named_parameters():
        assert torch.equal(value, source[name])
    # The teacher has followed before anything was restored.
    for one, other in zip(
        all_back.teacher.module.parameters(), learned.teacher.module.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_the_seed_decides_about_views_and_restoration(edge: Model, photos: Photos) -> None:
    config = CoTTAConfig(views=3, confidence=1.0, restore=0.1, lr=0.01)
    runs = [CoTTA(edge, config, context=MethodContext(seed=seed)) for seed in (1, 1, 2)]
    for _ in range(3):
        first, same, other = (run.step(photos(8)).logits for run in runs)
        np.testing.assert_array_equal(first, same)
        assert not np.array_equal(first, other)


def test_the_source_model_is_left_alone_and_everything_of_the_copy_learns(
    edge: Model, photos: Photos
) -> None:
    source = {k: v.clone() for k, v in edge.module.state_dict().items()}
    cotta = CoTTA(edge, CoTTAConfig(lr=0.01, restore=0.0, views=0), context=MethodContext())
    cotta.step(photos(12))
    assert all(torch.equal(v, source[k]) for k, v in edge.module.state_dict().items())
    assert not any(torch.equal(p, source[k]) for k, p in cotta.student.module.named_parameters())
    statistics = [k for k in source if "running" in k]
    assert all(torch.equal(cotta.student.module.state_dict()[k], source[k]) for k in statistics)


def test_a_last_batch_of_one_image_is_answered_and_learned_from(edge: Model, photos: Photos) -> None:
    cotta = CoTTA(edge, CoTTAConfig(views=2, confidence=1.0), context=MethodContext())
    cotta.step(photos(8))
    outcome = cotta.step(photos(1))
    assert outcome.logits.shape == (1, 4)
    assert np.isfinite(outcome.logits).all()
    assert all(bool(torch.isfinite(p).all()) for p in cotta.student.module.parameters())


def test_a_grey_model_is_adapted() -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), dtype=np.uint8))
    cotta = CoTTA(resolve("digits-cnn"), CoTTAConfig(views=2, confidence=1.0), context=MethodContext())
    assert cotta.step(images).logits.shape == (8, 10)


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"ema": 1.5}, {"views": -1}, {"restore": math.nan}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        CoTTAConfig(**settings)


# The views.


def colours(count: int = 2, channels: int = 3, height: int = 6, width: int = 8) -> torch.Tensor:
    rng = np.random.default_rng(3)
    return torch.from_numpy(rng.random((count, channels, height, width)))


def luma(pixel: np.ndarray) -> float:
    return float(0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2])


def by_pixel(x: torch.Tensor, change: Callable[[np.ndarray], Any]) -> np.ndarray:
    return np.apply_along_axis(change, 1, x.numpy())


@pytest.mark.parametrize("shift", [-0.06, 0.0, 0.05, 0.4])
def test_hue_turns_as_in_the_standard_library(shift: float) -> None:
    def turn(pixel: np.ndarray) -> tuple[float, float, float]:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((h + shift) % 1.0, s, v)

    x = colours()
    x[0, :, 0, 0] = 0.3  # grey: no hue to turn
    x[0, :, 0, 1] = 0.0
    x[0, :2, 0, 2] = x[0, :2, 0, 2].max()  # two brightest channels
    np.testing.assert_allclose(adjust_hue(x, shift).numpy(), by_pixel(x, turn), atol=1e-9)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.4])
def test_brightness_saturation_contrast_and_gamma_are_their_formulas(factor: float) -> None:
    x = colours()
    numbers = x.numpy()
    np.testing.assert_allclose(adjust_brightness(x, factor).numpy(), np.minimum(factor * numbers, 1))
    saturated = by_pixel(x, lambda p: np.clip(factor * p + (1 - factor) * luma(p), 0, 1))
    np.testing.assert_allclose(adjust_saturation(x, factor).numpy(), saturated, atol=1e-12)
    means = by_pixel(x, luma).mean((1, 2)).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        adjust_contrast(x, factor).numpy(), np.clip(factor * numbers + (1 - factor) * means, 0, 1), atol=1e-12
    )
    np.testing.assert_allclose(adjust_gamma(x, factor).numpy(), numbers**factor)


def test_grey_images_have_neither_hue_nor_saturation() -> None:
    x = colours(channels=1)
    assert torch.equal(adjust_hue(x, 0.3), x)
    assert torch.equal(adjust_saturation(x, 0.3), x)
    contrast = adjust_contrast(x, 0.5)
    torch.testing.assert_close(contrast, 0.5 * x + 0.5 * x.mean((1, 2, 3), keepdim=True))


def test_a_view_that_changes_nothing_changes_nothing() -> None:
    for channels in (1, 3):
        x = colours(channels=channels).float()
        torch.testing.assert_close(apply_view(x, View(), None, noise=0.0), x)


def published(image: np.ndarray, view: View, border: Border = "edge") -> np.ndarray:
    """Border, affine map, blur, crop and flip of one channel, pixel by pixel, as the published pipeline has them."""
    height, width = image.shape
    rim_y, rim_x = height // 2, width // 2
    padded = np.pad(image, ((rim_y, rim_y), (rim_x, rim_x)), mode=border)
    rows, columns = padded.shape
    moved = np.zeros_like(padded)
    for i in range(rows):
        for j in range(columns):
            y, x = i - (rows - 1) / 2 - view.down, j - (columns - 1) / 2 - view.right
            c, s = math.cos(view.angle) / view.scale, math.sin(view.angle) / view.scale
            fy, fx = c * y - s * x + (rows - 1) / 2, c * x + s * y + (columns - 1) / 2
            for yy in (math.floor(fy), math.floor(fy) + 1):
                for xx in (math.floor(fx), math.floor(fx) + 1):
                    if 0 <= yy < rows and 0 <= xx < columns:
                        moved[i, j] += padded[yy, xx] * (1 - abs(fy - yy)) * (1 - abs(fx - xx))
    taps = np.exp(-0.5 * (np.arange(-2, 3) / view.sigma) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    around = np.pad(moved, 2, mode="reflect")
    blurred = np.array(
        [[(around[i : i + 5, j : j + 5] * kernel).sum() for j in range(columns)] for i in range(rows)]
    )
    cropped = blurred[rim_y : rim_y + height, rim_x : rim_x + width]
    return cropped[:, ::-1] if view.flip else cropped


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("border", ["edge", "reflect"])
def test_geometry_is_that_of_the_published_pipeline(seed: int, size: tuple[int, int], border: Border) -> None:
    view = draw_view(np.random.default_rng(seed), *size)
    # A gentle rotation where the image is oblong: its border of edge pixels is half as wide as it is.
    moves = View(
        angle=view.angle * min(size) / max(size) * 0.5,
        scale=view.scale,
        right=view.right,
        down=view.down,
        sigma=view.sigma,
        flip=view.flip,
    )
    x = colours(2, 3, *size)
    got = apply_view(x, moves, None, noise=0.0, border=border).numpy()
    for n in range(2):
        for c in range(3):
            np.testing.assert_allclose(got[n, c], published(x[n, c].numpy(), moves, border), atol=1e-9)


def test_rotation_by_a_quarter_and_whole_shifts_are_exact() -> None:
    x = colours(1, 1, 8, 8)
    turned = apply_view(x, View(angle=math.pi / 2), None, noise=0.0)
    assert any(torch.allclose(turned, x.rot90(k, (2, 3)), atol=1e-9) for k in (1, 3))
    moved = apply_view(x, View(right=2, down=-1), None, noise=0.0)
    torch.testing.assert_close(moved[:, :, :-1, 2:], x[:, :, 1:, :-2])
    torch.testing.assert_close(moved[:, :, :-1, 0], x[:, :, 1:, 0])  # the border repeats the edge


def test_a_mirrored_border_has_each_edge_pixel_once() -> None:
    x = colours(1, 1, 8, 8)
    moved = apply_view(x, View(right=2, down=-1), None, noise=0.0, border="reflect")
    torch.testing.assert_close(moved[:, :, :-1, 2:], x[:, :, 1:, :-2])
    torch.testing.assert_close(moved[:, :, :-1, :2], x[:, :, 1:, 1:3].flip(3))
    torch.testing.assert_close(moved[:, :, -1, 2:], x[:, :, -2, :-2])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_scene_gives_inputs_as_they_would_be_of_the_views_pixels(layout: torch.memory_format) -> None:
    images, view = pictures(3), View(brightness=0.8, right=1, flip=True)
    inputs = normalised(images).contiguous(memory_format=layout)
    seen = Scene(inputs, PIXELS).seen(view, None, noise=0.0, border="reflect")
    pixels = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2) / 255.0)
    expected = apply_view(pixels, view, None, noise=0.0, border="reflect")
    torch.testing.assert_close(seen, normalised(255.0 * expected.permute(0, 2, 3, 1).numpy()))
    assert seen.is_contiguous(memory_format=layout)


def test_noise_has_the_published_deviation_and_the_generators_seed() -> None:
    x = torch.full((4, 3, 32, 32), 0.5)
    first, same = (apply_view(x, View(), torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, same)
    assert float((first - x).std()) == pytest.approx(0.005, rel=0.03)
    assert float((first - x).mean()) == pytest.approx(0.0, abs=2e-4)


def test_views_are_drawn_from_the_published_ranges() -> None:
    rng = np.random.default_rng(0)
    views = [draw_view(rng, 32, 48) for _ in range(500)]
    ranges = {
        "brightness": (0.6, 1.4),
        "contrast": (0.7, 1.3),
        "saturation": (0.5, 1.5),
        "hue": (-0.06, 0.06),
        "gamma": (0.7, 1.3),
        "angle": (-math.radians(15), math.radians(15)),
        "scale": (0.9, 1.1),
        "right": (-6, 6),
        "down": (-4, 4),
        "sigma": (0.001, 0.5),
    }
    for name, (low, high) in ranges.items():
        values = [getattr(view, name) for view in views]
        assert low <= min(values) < low + 0.02 * (high - low), name
        assert high - 0.02 * (high - low) < max(values) <= high, name
    assert 0.4 < np.mean([view.flip for view in views]) < 0.6
    assert len({view.order for view in views}) > 100  # of 120


def test_pixels_stay_in_range_and_the_input_is_not_changed() -> None:
    x = colours().float()
    before, rng = x.clone(), np.random.default_rng(0)
    for _ in range(20):
        seen = apply_view(x, draw_view(rng, 6, 8), torch.Generator().manual_seed(0))
        assert seen.shape == x.shape
        assert 0.0 <= float(seen.min()) <= float(seen.max()) <= 1.0
    assert torch.equal(x, before)
