"""LAME against the same iteration written out in plain numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cema.methods.base import MethodContext, NotApplicable
from cema.methods.lame import Lame, LameConfig, affinity_matrix, laplacian_adjusted
from cema.models.registry import resolve
from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

Photos = Callable[[int], list[np.ndarray]]
CLASSES, SIDE = 3, 6
PIXELS = Preprocessing(height=SIDE, width=SIDE, channels=3, mean=(128.0,) * 3, std=(64.0,) * 3)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv = nn.Conv2d(3, 5, 3)
            self.norm = nn.BatchNorm2d(5)
            self.linear = nn.Linear(5, CLASSES)
            self.norm.running_mean.normal_(0, 0.2)
            self.norm.running_var.uniform_(0.3, 0.8)
            nn.init.ones_(self.norm.bias)  # no image without features
            nn.init.normal_(self.linear.weight)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.features(x))
        return logits


def model() -> Model:
    return Model(name="two", module=TwoLayers().eval(), preprocessing=PIXELS, classes=CLASSES)


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    # Of different brightness and colour, so that some are neighbours and others are not.
    tints = rng.integers(0, 200, (count, 1, 1, 3))
    return list((tints + rng.integers(0, 56, (count, SIDE, SIDE, 3))).astype(np.uint8))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def likeness_by_loops(features: np.ndarray, kind: str, k: int) -> np.ndarray:
    n = len(features)
    unit = [f / np.sqrt((f * f).sum()) for f in features]
    distance = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in unit] for a in unit])
    w = np.zeros((n, n))
    if kind == "rbf":
        width = np.mean([sorted(row)[k - 1] for row in distance])
        return np.exp(-(distance**2) / (2 * width**2))
    for i in range(n):
        if kind == "linear":
            w[i] = [unit[i] @ other for other in unit]
        else:
            others = sorted((j for j in range(n) if j != i), key=lambda j: distance[i, j])
            w[i, others[:k]] = 1.0
    return w


def fixed_point(p: np.ndarray, w: np.ndarray) -> np.ndarray:
    z = softmax(np.log(p))
    for _ in range(5000):
        z = softmax(np.log(p) + w @ z)
    return z


@pytest.mark.parametrize("kind", ["knn", "rbf", "linear"])
def test_the_answers_are_the_fixed_point(kind: str) -> None:
    images, source = pictures(24), model()
    lame = Lame(source, LameConfig(affinity=kind, max_steps=2000), context=MethodContext())  # type: ignore[arg-type]
    outcome = lame.step(images)
    x = torch.from_numpy((np.stack(images).transpose(0, 3, 1, 2) - 128.0) / 64.0)
    net = TwoLayers().double().eval()
    features, logits = net.features(x).detach().numpy(), net(x).detach().numpy()
    w = likeness_by_loops(features, kind, 5)
    expected = fixed_point(softmax(logits), w)
    np.testing.assert_allclose(softmax(outcome.logits.astype(np.float64)), expected, atol=2e-4)
    assert outcome.logits.dtype == np.float32
    assert (outcome.uploads, outcome.bytes_up, outcome.forwards, outcome.backwards) == (0, 0, 24, 0)
    assert np.abs(expected - softmax(logits)).max() > 0.01  # it has something to correct


@pytest.mark.parametrize("kind", ["knn", "rbf", "linear"])
def test_affinities_are_those_of_a_plain_loop(kind: str) -> None:
    features = np.random.default_rng(1).normal(size=(9, 4))
    got = affinity_matrix(torch.from_numpy(features), kind, 3)  # type: ignore[arg-type]
    np.testing.assert_allclose(got.numpy(), likeness_by_loops(features, kind, 3), atol=1e-12)


def test_an_image_is_no_neighbour_of_itself_even_beside_its_copy() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]], dtype=torch.float64)
    w = affinity_matrix(features, "knn", 1)
    assert w.diagonal().tolist() == [0.0] * 4
    assert w.argmax(dim=1).tolist() == [1, 0, 3, 2]


def test_images_that_are_all_alike_have_affinities() -> None:
    same = torch.ones(4, 3, dtype=torch.float64)
    for kind in ("knn", "rbf", "linear"):
        assert torch.isfinite(affinity_matrix(same, kind, 2)).all()  # type: ignore[arg-type]


def test_a_lone_dissenter_among_its_likes_is_outvoted() -> None:
    p = torch.tensor([[0.9, 0.1]] * 5 + [[0.45, 0.55]], dtype=torch.float64)
    w = affinity_matrix(torch.eye(2, dtype=torch.float64)[[0] * 6], "knn", 5)
    z = laplacian_adjusted(p, w, 100)
    assert z.argmax(dim=1).tolist() == [0] * 6
    torch.testing.assert_close(z.sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_one_image_and_a_batch_smaller_than_k_are_answered() -> None:
    lame = Lame(model(), context=MethodContext())
    images = pictures(3)
    alone = lame.step(images[:1])
    with torch.no_grad():
        expected = model().module(torch.from_numpy(PIXELS(images[:1]))).softmax(1).numpy()
    np.testing.assert_allclose(softmax(alone.logits), expected, atol=1e-5)
    assert np.isfinite(lame.step(images).logits).all()


def test_nothing_is_remembered_from_batch_to_batch() -> None:
    lame, images = Lame(model(), context=MethodContext()), pictures(12)
    first = lame.step(images).logits
    lame.step(pictures(7, seed=4))
    np.testing.assert_array_equal(lame.step(images).logits, first)
    np.testing.assert_array_equal(Lame(model(), context=MethodContext(seed=5)).step(images).logits, first)


def test_of_several_heads_the_last_called_counts(edge: Model, photos: Photos) -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(CLASSES, CLASSES)
            self.body = TwoLayers()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.body(x))
            return logits

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TwoHeads().eval()
    lame = Lame(
        Model(name="heads", module=module, preprocessing=PIXELS, classes=CLASSES), context=MethodContext()
    )
    images = pictures(8)
    with torch.no_grad():
        x = torch.from_numpy(PIXELS(images))
        features, p = module.body(x).double().numpy(), module(x).double().softmax(1).numpy()
    expected = fixed_point(p, likeness_by_loops(features, "knn", 5))
    np.testing.assert_allclose(softmax(lame.step(images).logits), expected, atol=1e-3)


def test_a_model_that_does_not_end_in_a_linear_layer_is_told_so() -> None:
    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.head = nn.Conv2d(3, CLASSES, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.norm(x)).mean((2, 3))
            return logits

    convolutional = Model(
        name="convolutional", module=Convolutional().eval(), preprocessing=PIXELS, classes=CLASSES
    )
    with pytest.raises(NotApplicable, match="no linear layer with 3 outputs"):
        Lame(convolutional, context=MethodContext())


def test_a_grey_model_is_answered() -> None:
    digits = resolve("digits-cnn")
    images = list(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 1), dtype=np.uint8))
    assert Lame(digits, context=MethodContext()).step(images).logits.shape == (6, 10)


@pytest.mark.parametrize("settings", [{"neighbours": 0}, {"max_steps": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        LameConfig(**settings)  # type: ignore[arg-type]
