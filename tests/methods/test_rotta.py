"""RoTTA against the same steps written out in float64, and its memory against plain lists."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from two_layers import CLASSES, PIXELS, SIDE, WIDTH, TwoLayers, normalised, pictures

from cema.methods.base import MethodContext, Uplink
from cema.methods.cotta_views import apply_view, draw_view
from cema.methods.rotta import RoTTA, RoTTAConfig
from cema.methods.rotta_memory import BalancedMemory
from cema.models.registry import resolve
from cema.models.spec import Model

Photos = Callable[..., list[np.ndarray]]
Item = tuple[Any, float, int]


class ListedMemory:
    """The same memory as a list of [sample, uncertainty, age] for every class, aged one by one."""

    def __init__(self, capacity: int, classes: int, age_weight: float = 1.0, entropy_weight: float = 1.0):
        self.lists: list[list[list[Any]]] = [[] for _ in range(classes)]
        self.capacity, self.weights = capacity, (age_weight, entropy_weight)

    def score(self, item: list[Any]) -> float:
        timeliness = 1 / (1 + math.exp(-item[2] / self.capacity))
        return self.weights[0] * timeliness + self.weights[1] * item[1] / math.log(len(self.lists))

    def offer(self, sample: Any, label: int, uncertainty: float) -> None:
        new, sizes = [sample, uncertainty, 0], [len(items) for items in self.lists]
        if sizes[label] >= self.capacity / len(self.lists):
            rivals = self.lists[label]
        elif sum(sizes) == self.capacity:
            rivals = [i for items in self.lists if len(items) == max(sizes) for i in items]
        else:
            rivals = []
        worst = max(rivals, key=self.score, default=None)
        if worst is None or self.score(worst) > self.score(new):
            for items in self.lists:
                items[:] = [item for item in items if item is not worst]
            self.lists[label].append(new)
        for items in self.lists:
            for item in items:
                item[2] += 1

    def items(self) -> list[list[Any]]:
        return [item for items in self.lists for item in items]


@pytest.mark.parametrize(("capacity", "classes"), [(64, 10), (8, 4), (5, 3), (6, 20), (2, 4)], ids=str)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (3.0, 0.5)])
def test_the_memory_is_that_of_plain_lists(capacity: int, classes: int, weights: tuple[float, float]) -> None:
    rng = np.random.default_rng(capacity + classes)
    memory = BalancedMemory[int](capacity, classes, age_weight=weights[0], entropy_weight=weights[1])
    listed = ListedMemory(capacity, classes, *weights)
    refused = 0
    for number in range(300):
        # Runs of one class, as in a correlated stream, and others in between.
        label = number // 40 % classes if rng.random() < 0.6 else int(rng.integers(classes))
        uncertainty = float(rng.uniform(0, math.log(classes)))
        refused += not memory.offer(number, label, uncertainty)
        listed.offer(number, label, uncertainty)
        kept = memory.kept()
        assert [one.sample for one in kept] == [item[0] for item in listed.items()]
        assert [memory.age(one) for one in kept] == [item[2] / capacity for item in listed.items()]
        assert len(kept) <= capacity
    assert 0 < refused < 300


def test_a_stream_of_one_class_fills_its_share_of_the_memory_only() -> None:
    memory = BalancedMemory[int](8, 4)
    for number in range(50):
        memory.offer(number, 2, 0.5)
    assert [one.sample for one in memory.kept()] == [48, 49]  # as sure as each other: the latest
    assert memory.offer(50, 0, 1.3)  # another class has its place
    for number in range(51, 60):
        memory.offer(number, 0, 0.1)
    assert len(memory.kept()) == 4


def test_a_full_memory_gives_up_what_is_most_uncertain_of_the_class_with_most() -> None:
    memory = BalancedMemory[str](4, 3, age_weight=0.0)
    for name, label, uncertainty in (("a", 0, 0.9), ("b", 0, 0.2), ("c", 1, 0.1), ("d", 1, 0.3)):
        assert memory.offer(name, label, uncertainty)
    assert not memory.offer("e", 2, 1.0)
    assert memory.offer("f", 2, 0.5)
    assert [one.sample for one in memory.kept()] == ["b", "c", "d", "f"]


class Net(TwoLayers):
    """With statistics of its own, or with GroupNorm, which has none."""

    def __init__(self, norm: str) -> None:
        super().__init__(4, bias=False)
        with torch.random.fork_rng():
            torch.manual_seed(6)
            self.norm.running_mean.normal_(0.0, 0.2)  # type: ignore[union-attr, operator]
            self.norm.running_var.uniform_(0.2, 0.6)  # type: ignore[union-attr, operator]
        if norm == "group":
            group = nn.GroupNorm(1, WIDTH)
            group.weight, group.bias = self.norm.weight, self.norm.bias
            self.norm = group  # type: ignore[assignment]


def net(norm: str = "batch") -> Model:
    return Model(name=f"net-{norm}", module=Net(norm).eval(), preprocessing=PIXELS, classes=CLASSES)


class Written:
    """Student, teacher and memory in float64, robust normalisation and Adam spelled out."""

    def __init__(self, config: RoTTAConfig, norm: str, seed: int) -> None:
        self.config, self.norm = config, norm
        self.fixed = {k: v.double() for k, v in Net(norm).state_dict().items()}
        start = [self.fixed["norm.weight"], self.fixed["norm.bias"]]
        self.student, self.teacher = [p.clone() for p in start], [p.clone() for p in start]
        self.statistics = {
            who: [self.fixed.get(f"norm.running_{what}", torch.zeros(())) for what in ("mean", "var")]
            for who in ("student", "teacher")
        }
        self.moments = [[torch.zeros_like(p) for p in start] for _ in range(2)]
        self.memory = ListedMemory(config.capacity, CLASSES, config.age_weight, config.entropy_weight)
        self.rng, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.count = self.updates = 0

    def logits(self, who: str, affine: list[torch.Tensor], x: torch.Tensor, move: bool) -> torch.Tensor:
        y = nn.functional.conv2d(x, self.fixed["conv.weight"])
        if self.norm == "group":
            mean, var = (
                f((1, 2, 3), keepdim=True) for f in (y.mean, lambda *a, **k: y.var(*a, **k, correction=0))
            )
        else:
            mean, var = self.statistics[who]
            if move:
                a = self.config.alpha
                mean = (1 - a) * mean + a * y.mean((0, 2, 3))
                var = (1 - a) * var + a * ((y - y.mean((0, 2, 3), keepdim=True)) ** 2).mean((0, 2, 3))
                self.statistics[who] = [mean.detach(), var.detach()]
            mean, var = (s.reshape(1, -1, 1, 1) for s in (mean, var))
        gamma, beta = (t.reshape(1, -1, 1, 1) for t in affine)
        z = torch.relu((y - mean) / torch.sqrt(var + 1e-5) * gamma + beta).mean((2, 3))
        return z @ self.fixed["linear.weight"].T + self.fixed["linear.bias"]

    def step(self, images: list[np.ndarray]) -> torch.Tensor:
        answers = self.logits("teacher", self.teacher, normalised(images), move=False)
        for image, p in zip(images, answers.softmax(1), strict=True):
            self.memory.offer(image, int(p.argmax()), float(-(p * p.log()).sum()))
            self.count += 1
            if self.count % self.config.every == 0:
                self.update()
        return answers

    def update(self) -> None:
        images = [item[0] for item in self.memory.items()]
        pixels = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2) / 255.0).float()
        view = draw_view(self.rng, SIDE, SIDE, self.config.flip)
        seen = apply_view(pixels, view, self.generator).double().permute(0, 2, 3, 1).numpy()
        q = self.logits("teacher", self.teacher, normalised(images), move=True).softmax(1)
        theta = [p.clone().requires_grad_() for p in self.student]
        p = self.logits("student", theta, normalised(255.0 * seen), move=True).softmax(1)
        loss = torch.zeros((), dtype=torch.float64)
        for i, item in enumerate(self.memory.items()):
            age = math.exp(-item[2] / self.config.capacity)
            loss = loss - age / (1 + age) * (q[i] * p[i].log()).sum() / len(images)
        self.updates += 1
        beta, keep = self.config.momentum, self.config.ema
        for k, g in enumerate(torch.autograd.grad(loss, theta)):
            self.moments[0][k] = beta * self.moments[0][k] + (1 - beta) * g
            self.moments[1][k] = 0.999 * self.moments[1][k] + 0.001 * g * g
            mean = self.moments[0][k] / (1 - beta**self.updates)
            size = torch.sqrt(self.moments[1][k] / (1 - 0.999**self.updates)) + 1e-8
            self.student[k] = self.student[k] - self.config.lr * mean / size
            self.teacher[k] = keep * self.teacher[k] + (1 - keep) * self.student[k]


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("size", [12, 1])
def test_three_batches_are_the_written_out_algorithm(norm: str, size: int) -> None:
    config = RoTTAConfig(lr=0.02, ema=0.7, alpha=0.3, capacity=7, every=8, age_weight=0.8, momentum=0.8)
    rotta, written = RoTTA(net(norm), config, context=MethodContext(seed=3)), Written(config, norm, 3)
    for seed in range(3):
        images = pictures(12, seed)
        for start in range(0, 12, size):
            batch = images[start : start + size]
            outcome = rotta.step(batch)
            np.testing.assert_allclose(outcome.logits, written.step(batch).numpy(), rtol=1e-3, atol=1e-4)
    assert written.updates == 4
    for who, model in (("student", rotta.student), ("teacher", rotta.teacher)):
        for name, expected in zip(("norm.weight", "norm.bias"), getattr(written, who), strict=True):
            got = model.parameters[name].detach().double()
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
            assert (got - Net(norm).state_dict()[name]).abs().max() > 1e-3
        for layer in model.layers.values():
            for got, expected in zip(
                (layer.running_mean, layer.running_var), written.statistics[who], strict=True
            ):
                torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


def test_images_are_uploaded_that_are_learned_from_or_wait_for_it() -> None:
    config = RoTTAConfig(capacity=6, every=8)
    images = pictures(20)
    rotta, memory = RoTTA(net(), config, context=MethodContext()), ListedMemory(6, CLASSES)
    frozen = RoTTA(net(), replace_settings(config, lr=0.0, alpha=0.0), context=MethodContext())
    with torch.no_grad():
        p = net().module(normalised(images).float()).double().softmax(1)
    sent: set[int] = set()
    learned = 0
    for number in range(20):
        memory.offer(number, int(p[number].argmax()), float(-(p[number] * p[number].log()).sum()))
        if number + 1 in (8, 16, 20):
            sent |= {item[0] for item in memory.items()}
            learned += len(memory.items()) * (number + 1 < 20)
    outcome = frozen.step(images)
    assert 0 < len(sent) < 20
    assert outcome.uploads == len(sent)
    assert outcome.bytes_up == Uplink().count([images[number] for number in sorted(sent)])
    # Two updates, each of which passes the memory through the teacher, and a view of it through the student.
    assert (outcome.forwards, outcome.backwards) == (20 + 2 * learned, learned)
    # A batch is predicted before anything is learned from it.
    assert rotta.step(images).uploads == len(sent)


def replace_settings(config: RoTTAConfig, **changes: Any) -> RoTTAConfig:
    fields = {name: getattr(config, name) for name in config.__struct_fields__}
    return RoTTAConfig(**{**fields, **changes})


def test_the_teacher_predicts_and_nothing_moves_before_the_first_update(edge: Model, photos: Photos) -> None:
    rotta = RoTTA(edge, RoTTAConfig(every=10, lr=0.1, ema=0.5, alpha=0.5), context=MethodContext())
    before = copy.deepcopy(rotta.teacher.module.state_dict())
    with torch.no_grad():
        expected = edge.module(torch.from_numpy(edge.preprocessing(photos(9)))).numpy()
    np.testing.assert_allclose(rotta.step(photos(9)).logits, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in rotta.teacher.module.state_dict().items())
    outcome = rotta.step(photos(1, seed=1))
    assert outcome.backwards > 0
    moved = {
        key for key, value in rotta.teacher.module.state_dict().items() if not torch.equal(value, before[key])
    }
    statistics = {f"{name}.running_{what}" for name in rotta.teacher.layers for what in ("mean", "var")}
    assert statistics <= moved <= statistics | set(rotta.teacher.parameters)


def test_a_model_without_batch_norm_learns_and_has_no_statistics(edge: Model, photos: Photos) -> None:
    module = copy.deepcopy(edge.module)
    module.bn1, module.bn2, module.blocks[0][1] = nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.GroupNorm(4, 8)
    model = replace(edge, module=module.eval())
    rotta = RoTTA(model, RoTTAConfig(every=6, lr=0.05, ema=0.5), context=MethodContext())
    assert not rotta.teacher.layers
    source = {name: p.detach().clone() for name, p in rotta.teacher.parameters.items()}
    rotta.step(photos(12))
    assert all(not torch.equal(p, source[name]) for name, p in rotta.student.parameters.items())
    assert all(not torch.equal(p, source[name]) for name, p in rotta.teacher.parameters.items())


def test_a_memory_of_one_image_leaves_statistics_without_values_alone(edge: Model, photos: Photos) -> None:
    rotta = RoTTA(edge, RoTTAConfig(capacity=1, every=1, alpha=0.5), context=MethodContext())
    pooled = rotta.teacher.layers["bn2"]
    before = pooled.running_var.clone()
    for seed in range(3):
        outcome = rotta.step(photos(1, seed=seed))
        assert np.isfinite(outcome.logits).all()
    assert torch.equal(pooled.running_var, before)
    assert not torch.equal(rotta.teacher.layers["bn1"].running_var, edge.module.bn1.running_var)


def test_the_seed_decides_about_views(edge: Model, photos: Photos) -> None:
    config = RoTTAConfig(every=8, lr=0.05, ema=0.5)
    runs = [RoTTA(edge, config, context=MethodContext(seed=seed)) for seed in (1, 1, 2)]
    for _ in range(2):
        first, same, other = (run.step(photos(8)).logits for run in runs)
        np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_grey_model_is_adapted_in_bfloat16_too() -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), dtype=np.uint8))
    for dtype in ("float32", "bfloat16"):
        context = MethodContext(dtype=dtype)  # type: ignore[arg-type]
        rotta = RoTTA(resolve("digits-cnn"), RoTTAConfig(every=8, ema=0.5), context=context)
        before = {name: p.detach().clone() for name, p in rotta.teacher.parameters.items()}
        assert rotta.step(images).logits.shape == (8, 10)
        assert any(not torch.equal(p, before[name]) for name, p in rotta.teacher.parameters.items())


@pytest.mark.parametrize(
    "settings", [{"lr": -1.0}, {"ema": 1.5}, {"alpha": -0.1}, {"capacity": 0}, {"every": 0}, {"flip": 2.0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RoTTAConfig(**settings)
