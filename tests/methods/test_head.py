"""Which layer makes a model's logits, and what the features are that go into it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from headed_models import (
    CLASSES,
    WIDTH,
    Body,
    convolution,
    convolved,
    headed,
    linear,
    of_places,
    pictures,
    pooled,
    then_averaged,
    written_features,
    written_head,
)
from torch import nn

from cema.adapt.adaptable import AdaptableModel
from cema.methods.base import MethodContext, NotApplicable
from cema.methods.head import Head, find_head
from cema.methods.registry import make_adapter
from cema.models.registry import resolve
from cema.models.spec import Model

HEADS = {
    "linear": (linear, pooled),
    "without a bias": (lambda: linear(bias=False), pooled),
    "of places, then averaged": (linear, of_places),
    "convolution": (convolution, convolved),
    "convolution, then averaged": (convolution, then_averaged),
}
Use = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def run(model: AdaptableModel, head: Head, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the head's features and the model's logits."""
    kept: list[torch.Tensor] = []
    hook = head.layer.register_forward_pre_hook(lambda _, inputs: kept.append(head.features(inputs[0])))
    with torch.no_grad():
        logits = model.forward(images)
    hook.remove()
    return kept[-1].numpy(), logits.numpy()


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_makes_the_logits_from_the_features(kind: str) -> None:
    source, images = headed(*HEADS[kind]), pictures(7)
    model = AdaptableModel(source)
    head = find_head(model, "NEO")
    features, logits = run(model, head, images)
    np.testing.assert_allclose(features, written_features(source, images), atol=1e-5)
    weight, bias = written_head(source)
    np.testing.assert_array_equal(head.weight.numpy(), weight.astype(np.float32))
    np.testing.assert_array_equal(head.bias.numpy(), bias.astype(np.float32))
    np.testing.assert_allclose(features @ weight.T + bias, logits, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_a_vector_is_subtracted_from_the_features_at_each_place(kind: str) -> None:
    model = AdaptableModel(headed(*HEADS[kind]))
    head = find_head(model, "NEO")
    features, logits = run(model, head, pictures(4))
    vector = torch.arange(1.0, WIDTH + 1)
    head.layer.register_forward_pre_hook(lambda _, inputs: (head.less(inputs[0], vector),))
    expected = (torch.from_numpy(features) - vector) @ head.weight.T + head.bias
    np.testing.assert_allclose(run(model, head, pictures(4))[1], expected.numpy(), atol=1e-4)
    assert not np.allclose(expected.numpy(), logits, atol=0.1)


def test_finding_leaves_no_hook_and_counts_no_pass() -> None:
    model = AdaptableModel(headed())
    find_head(model, "NEO")
    assert (model.forwards, model.backwards) == (0, 0)
    assert not any(layer._forward_pre_hooks for layer in model.module.modules())


def test_of_several_layers_of_the_right_width_the_last_called_counts() -> None:
    class Chained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(CLASSES, CLASSES)  # stands first, and is called last
            self.body, self.first = Body(), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.last(pooled(self.first, self.body(x)))
            return logits

    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = Model("chained", Chained().eval(), headed().preprocessing, CLASSES)
    model = AdaptableModel(source)
    assert find_head(model, "NEO").layer is model.module.last


def with_dropout(head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(pooled(head, x), training=False).reshape(len(x), -1)


def test_what_changes_nothing_may_stand_behind_the_head() -> None:
    model = AdaptableModel(headed(linear, with_dropout))
    assert find_head(model, "NEO").layer is model.module.head


class Cosine(nn.Linear):
    """A linear layer by its class alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 4 * nn.functional.normalize(x) @ nn.functional.normalize(self.weight).T


UNFIT: dict[str, tuple[Callable[[], nn.Module], Use]] = {
    "an activation behind it": (linear, lambda head, x: torch.relu(pooled(head, x))),
    "another scale": (linear, lambda head, x: 1.5 * pooled(head, x)),
    "of the largest place": (convolution, lambda head, x: head(x).amax((2, 3))),
    "of the first place": (linear, lambda head, x: head(x.flatten(2).transpose(1, 2))[:, 0]),
    "no linear function": (lambda: Cosine(WIDTH, CLASSES), pooled),
    "a convolution of places": (
        lambda: nn.Conv2d(WIDTH, CLASSES, 3),
        lambda head, x: head(x).mean((2, 3)),
    ),
    "no layer": (nn.Identity, lambda head, x: x.mean((2, 3))[:, :CLASSES]),
    "not used": (linear, lambda head, x: x.mean((2, 3))[:, :CLASSES]),
    "two heads": (
        lambda: nn.ModuleList([linear(), linear()]),
        lambda heads, x: (pooled(heads[0], x) + pooled(heads[1], x)) / 2,  # type: ignore[index]
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_that_does_not_end_in_such_a_layer_is_told_so(kind: str) -> None:
    source = headed(*UNFIT[kind])
    with pytest.raises(
        NotApplicable, match=r"NEO works on .* headed has no linear layer and no 1 x 1 convolution"
    ):
        find_head(AdaptableModel(source), "NEO")
    for method in ("neo", "t3a"):
        with pytest.raises(NotApplicable, match=rf"{method.upper()} works on .*of 3 outputs"):
            make_adapter(method, source, {}, MethodContext())


@pytest.mark.parametrize("name", ["digits-cnn", "digits-vit"])
def test_the_heads_of_the_shipped_models_are_found(name: str) -> None:
    model = AdaptableModel(resolve(name))
    assert find_head(model, "NEO").weight.shape[0] == 10
