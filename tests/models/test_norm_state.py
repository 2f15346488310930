"""The norm state of a model: folded in float64, put back, refused when it does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cema.errors import FormatError
from cema.models.norm_state import (
    ensure_affine,
    folded_norm_state,
    has_running_statistics,
    load_folded,
    norm_layers,
)


class Frozen(nn.Module):
    """A BatchNorm in all but its class: parameters and statistics are buffers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(size) + 0.5)
        self.eps = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight / (self.running_var + self.eps).sqrt()
        return x * scale + (self.bias - self.running_mean * scale)


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 6),
        nn.BatchNorm1d(6, eps=1e-3),
        nn.LayerNorm(6),
        nn.GroupNorm(2, 6),
        Frozen(6),
        nn.BatchNorm1d(6, affine=False),
        nn.LayerNorm(6, elementwise_affine=False),
        nn.LayerNorm(6, bias=False),
    )
    with torch.no_grad():
        for layer in norm_layers(net).values():
            for name, tensor in layer.state_dict(keep_vars=True).items():
                if name != "num_batches_tracked":
                    tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return net.eval()


def test_norm_layers_are_found_in_order_whatever_their_class() -> None:
    assert list(norm_layers(make_net())) == ["1", "2", "3", "4", "5", "6", "7"]
    assert norm_layers(nn.Sequential(nn.Linear(3, 3), nn.PReLU(3), nn.Conv1d(1, 1, 1))) == {}
    assert has_running_statistics(nn.BatchNorm2d(2))
    assert not has_running_statistics(nn.BatchNorm2d(2, track_running_stats=False))
    assert not has_running_statistics(nn.LayerNorm(2))


@given(
    st.lists(
        st.tuples(
            st.floats(-10, 10, width=32),
            st.floats(-10, 10, width=32),
            st.floats(-100, 100, width=32),
            st.floats(0, 1000, width=32),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([1e-5, 1e-3]),
)
def test_folding_is_the_affine_map_of_the_running_statistics(
    channels: list[tuple[float, float, float, float]], eps: float
) -> None:
    layer = nn.BatchNorm1d(len(channels), eps=eps)
    weight, bias, mean, variance = (np.array(column) for column in zip(*channels, strict=True))
    with torch.no_grad():
        for tensor, values in (
            (layer.weight, weight),
            (layer.bias, bias),
            (layer.running_mean, mean),
            (layer.running_var, variance),
        ):
            tensor.copy_(torch.from_numpy(values))
    state = folded_norm_state(nn.Sequential(layer))
    scale = weight / np.sqrt(variance + eps)
    assert {key: value.dtype for key, value in state.items()} == {
        "0.scale": np.float32,
        "0.shift": np.float32,
    }
    # Below 1.2e-38 float32 has fewer bits: steps of 1.4e-45.
    np.testing.assert_allclose(state["0.scale"], scale, rtol=1e-6, atol=1.5e-45)
    np.testing.assert_allclose(state["0.shift"], bias - mean * scale, rtol=1e-6, atol=1e-5)


def test_a_loaded_norm_state_computes_what_the_model_did_and_folds_to_itself() -> None:
    net, x = make_net(), torch.randn(5, 6)
    with torch.no_grad():
        expected = net(x)
        state = folded_norm_state(net)
        load_folded(net, state)
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
    again = folded_norm_state(net)
    assert again.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_allclose(again[key], value, rtol=2e-7, err_msg=key)
    assert torch.count_nonzero(net[1].running_mean) == 0
    torch.testing.assert_close(net[1].running_var, torch.full((6,), 1 - 1e-3))


def test_ensure_affine_adds_what_is_missing_and_changes_no_output() -> None:
    net, x = make_net(), torch.randn(5, 6)
    with torch.no_grad():
        expected = net(x)
        assert ensure_affine(net) == ["5", "6", "7"]
        assert torch.equal(net(x), expected)
    assert ensure_affine(net) == []
    assert len(list(net[6].parameters())) == 2


def test_a_layer_norm_over_several_dimensions_is_flattened_and_restored() -> None:
    net = nn.Sequential(nn.LayerNorm((2, 3)))
    state = {"0.scale": np.arange(6, dtype=np.float32), "0.shift": np.ones(6, np.float32)}
    load_folded(net, state)
    assert net[0].weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    np.testing.assert_array_equal(folded_norm_state(net)["0.scale"], state["0.scale"])


def test_a_shared_layer_is_listed_once() -> None:
    layer = nn.LayerNorm(3)
    assert list(norm_layers(nn.Sequential(layer, nn.ReLU(), layer))) == ["0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.scale": None}, r"missing \['1.scale'\] \(1 in all\)"),
        ({"9.scale": np.ones(6)}, r"unknown \['9.scale'\]"),
        ({"1.scale": np.ones(5)}, r"1.scale: expected 6 values in one dimension, got shape \(5,\)"),
        ({"1.scale": np.ones((1, 6))}, r"got shape \(1, 6\)"),
        ({"1.shift": np.full(6, np.nan)}, "1.shift: expected finite values"),
    ],
)
def test_a_norm_state_that_does_not_fit_is_refused_and_nothing_changed(
    change: dict[str, np.ndarray | None], message: str
) -> None:
    net = make_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = folded_norm_state(net) | change
    with pytest.raises(FormatError, match=message):
        load_folded(net, {key: value for key, value in state.items() if value is not None})
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -2.0])
def test_broken_statistics_are_named(value: float) -> None:
    net = make_net()
    net[1].running_var[2] = value
    if value == float("inf"):
        net[1].running_mean[2] = value
    with (
        pytest.raises(FormatError, match=r"1\.(scale|shift): expected finite"),
        np.errstate(invalid="ignore"),
    ):
        folded_norm_state(net)
