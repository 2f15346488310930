"""Batch renormalisation and preparation of a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cema.adapt.norm import AdaptiveBatchNorm, normalising, prepare
from cema.errors import ModelError
from cema.models.norm_state import folded_norm_state
from cema.models.spec import Model


def layer(kind: type, channels: int, seed: int) -> AdaptiveBatchNorm:
    source = kind(channels, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        source.running_mean.copy_(torch.randn(channels, generator=generator))
        source.running_var.copy_(torch.rand(channels, generator=generator) + 0.3)
        source.weight.copy_(torch.randn(channels, generator=generator))
        source.bias.copy_(torch.randn(channels, generator=generator))
    return AdaptiveBatchNorm(source)


def manual(x: torch.Tensor, norm: AdaptiveBatchNorm, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Ioffe (2017), algorithm 1, in plain operations, without clipping r and d."""
    dims, shape = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
    mean = x.mean(dims).reshape(shape)
    sigma = torch.sqrt(((x - mean) ** 2).mean(dims) + norm.eps).reshape(shape)
    running = torch.sqrt(norm.running_var + norm.eps).reshape(shape)
    r = (sigma / running).detach()
    d = ((mean - norm.running_mean.reshape(shape)) / running).detach()
    return ((x - mean) / sigma * r + d) * gamma.reshape(shape) + beta.reshape(shape)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, (6, 3)),
        (nn.BatchNorm1d, (4, 3, 5)),
        (nn.BatchNorm2d, (4, 3, 2, 5)),
        (nn.BatchNorm3d, (2, 3, 2, 2, 3)),
    ],
)
def test_value_and_gradients_of_batch_renormalisation(kind: type, shape: tuple[int, ...]) -> None:
    norm = layer(kind, shape[1], 0)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 + 0.7
    seed_grad = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    with normalising([norm], "renorm"):
        value = norm(a)
        value.backward(seed_grad)
    gamma, beta = (p.detach().clone().requires_grad_() for p in (norm.weight, norm.bias))
    expected = manual(b, norm, gamma, beta)
    expected.backward(seed_grad)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(value, norm(x), rtol=1e-10, atol=1e-10)  # the value of running statistics
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(norm.weight.grad, gamma.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(norm.bias.grad, beta.grad, rtol=1e-10, atol=1e-10)


def test_the_gradient_is_not_that_of_running_statistics() -> None:
    norm = layer(nn.BatchNorm2d, 3, 0)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    with normalising([norm], "renorm"):
        norm(x).pow(2).sum().backward()
    through_batch = x.grad
    x.grad = None
    norm(x).pow(2).sum().backward()
    assert not torch.allclose(through_batch, x.grad)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.lists(st.integers(1, 4), min_size=0, max_size=2),
    st.integers(0, 99),
)
def test_renormalisation_keeps_shape_and_value_for_any_batch(
    n: int, channels: int, rest: list[int], seed: int
) -> None:
    norm = layer(nn.BatchNorm2d, channels, seed)
    x = torch.randn(n, channels, *rest, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with normalising([norm], "renorm"):
        value = norm(x)
    torch.testing.assert_close(value, norm(x), rtol=1e-7, atol=1e-7)
    values = n * int(np.prod(rest, dtype=int))
    assert (norm.observed is None) == (values == 1)


def test_batch_mode_is_ordinary_batch_normalisation_and_observes() -> None:
    norm = layer(nn.BatchNorm2d, 3, 0)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    with normalising([norm], "batch"):
        value = norm(x)
    expected = nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True, eps=norm.eps)
    torch.testing.assert_close(value, expected)
    assert norm.observed is not None
    torch.testing.assert_close(norm.observed[0], x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.observed[1], x.transpose(0, 1).reshape(3, -1).var(dim=1))


def test_forward_never_moves_running_statistics_and_the_mode_is_restored_after_an_error() -> None:
    norm = layer(nn.BatchNorm2d, 3, 0)
    before = norm.running_mean.clone(), norm.running_var.clone()
    with pytest.raises(RuntimeError), normalising([norm], "renorm"):
        norm(torch.randn(2, 4, 4, 4, dtype=torch.float64))  # four channels, not three
    assert norm.mode == "running"
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])


def test_prepare_trains_norm_affine_parameters_only(edge: Model) -> None:
    before = folded_norm_state(edge.module)
    x = torch.randn(3, 3, 8, 8)
    expected = edge.module(x)
    parameters, layers = prepare(edge.module)
    names = {"bn1", "blocks.0.1", "blocks.1.1", "bn2", "ln"}
    assert set(parameters) == {f"{name}.{key}" for name in names for key in ("weight", "bias")}
    assert set(layers) == {"bn1", "blocks.0.1", "bn2"}
    trainable = {id(p) for p in edge.module.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in parameters.values()}
    assert torch.equal(edge.module(x), expected)
    after = folded_norm_state(edge.module)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_prepare_gives_affine_parameters_to_layers_without() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.LayerNorm(5, bias=False))
    parameters, _ = prepare(module)
    assert set(parameters) == {"1.weight", "1.bias", "2.weight", "2.bias"}


def test_prepare_keeps_a_shared_layer_shared() -> None:
    shared = nn.BatchNorm2d(3)
    module = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    parameters, _ = prepare(module)
    assert module["a"][0] is module["b"][0]  # type: ignore[index]
    assert len(parameters) == 2


class Listed(nn.Module):
    """Goes through its layers by lists of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.BatchNorm2d(3) for _ in range(3))
        self.inside = [self.first]
        self.pair = (self.second, torch.relu)
        self.named = {"third": self.third}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.named["third"](self.pair[1](self.pair[0](self.inside[0](x))))
        return y


def test_prepare_replaces_layers_that_forward_takes_from_lists() -> None:
    module = Listed()
    _, layers = prepare(module)
    with normalising(layers.values(), "batch"):
        module(torch.randn(4, 3, 5, 5))
    assert [name for name, layer in layers.items() if layer.observed is not None] == [
        "first",
        "second",
        "third",
    ]


class NormAct(nn.BatchNorm2d):
    """As timm writes it: a BatchNorm with dropout and activation behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[no-any-return]


class OwnForward(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(("kind", "replaced"), [(NormAct, True), (OwnForward, False)])
def test_subclasses_of_batch_norm_keep_their_value(kind: type, replaced: bool) -> None:
    module = nn.Sequential(kind(3)).eval()
    x = torch.randn(4, 3, 5, 5)
    expected = module(x)
    parameters, layers = prepare(module)
    assert torch.equal(module(x), expected)
    assert set(parameters) == {"0.weight", "0.bias"}
    assert bool(layers) is replaced


def test_prepare_refuses_what_cannot_be_adapted() -> None:
    with pytest.raises(ModelError, match="found none"):
        prepare(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ModelError, match="track_running_stats"):
        prepare(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
