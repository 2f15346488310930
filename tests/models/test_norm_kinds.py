"""Which layers count as normalisation, known by class or found by trying them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brought_models import GammaBeta, OwnLayerNorm, OwnRms, ResponseNorm, Tied, Tokens, WithoutEps, net
from torch import nn

from cema.models.left_out import left_out_layers, left_out_text
from cema.models.norm_kinds import affine_names, is_norm
from cema.models.norm_state import ensure_affine, folded_norm_state, load_folded, norm_layers, restrict_to


class Scaled(nn.Module):
    """ConvNeXt's layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class OverBatch(nn.Module):
    """Normalises with the statistics of the batch: one image's answer depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, training=True)


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (nn.RMSNorm(8), {"scale": "weight"}),
        (nn.RMSNorm(8, elementwise_affine=False), {"scale": "weight"}),
        (OwnLayerNorm(), {"scale": "weight", "shift": "bias"}),
        (OwnLayerNorm(3), {"scale": "weight", "shift": "bias"}),
        (GammaBeta(), {"scale": "gamma", "shift": "beta"}),
        (OwnRms(), {"scale": "weight"}),
        (nn.BatchNorm2d(8, affine=False), {"scale": "weight", "shift": "bias"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_normalise_are_known_by_what_they_do(layer: nn.Module, names: dict[str, str]) -> None:
    assert is_norm(layer)
    assert affine_names(layer) == names


@pytest.mark.parametrize(
    "layer",
    [nn.PReLU(8), nn.Linear(1, 8), Scaled(), OverBatch(), ResponseNorm(), WithoutEps(), nn.LazyLinear(3)],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_do_not_are_not_taken_for_it(layer: nn.Module) -> None:
    assert not is_norm(layer)


def test_trying_a_layer_changes_nothing_of_it() -> None:
    layer, seen = OwnLayerNorm(), []
    layer.register_forward_hook(lambda *_: seen.append(1))
    before = layer.weight.detach().clone()
    assert is_norm(layer)
    assert torch.equal(layer.weight, before)
    assert not seen


@pytest.mark.parametrize(
    "module",
    [net(OwnLayerNorm()), net(GammaBeta()), Tokens(nn.RMSNorm(8), mixed=True), Tokens(OwnRms())],
    ids=["own", "gamma", "mixed", "rms"],
)
def test_a_norm_state_of_such_layers_goes_out_and_back(module: nn.Module) -> None:
    state = folded_norm_state(module)
    changed = {key: value + np.float32(0.25) for key, value in state.items()}
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = module(x)
        load_folded(module, changed)
        assert not torch.equal(module(x), before)
        load_folded(module, state)
        assert torch.equal(module(x), before)
    assert ("norm.shift" in state) == ("norm.bias" in dict(module.named_parameters()))


def test_layers_that_share_a_parameter_get_their_own() -> None:
    module = Tied().eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(x)
        assert ensure_affine(module) == ["first"]
        load_folded(module, folded_norm_state(module))
        torch.testing.assert_close(module(x), expected)


def test_what_is_left_out_is_named_with_its_class_or_function() -> None:
    module = net(WithoutEps())
    module.append(nn.BatchNorm1d(5).eval())
    x = torch.zeros(1, 3, 16, 16)
    assert left_out_layers(module) == {"1": "WithoutEps"}
    assert left_out_layers(module, x) == {"1": "WithoutEps"}
    assert left_out_layers(net(ResponseNorm())) == {"1": "ResponseNorm"}
    assert left_out_layers(Calls(), x) == {"": "layer_norm"}
    assert left_out_layers(Calls()) == {}
    assert left_out_text({"": "layer_norm"}) == "1 layer: the model itself (layer_norm)"
    for layer in (nn.RMSNorm(8), OwnRms(), nn.LayerNorm(8)):
        assert left_out_layers(Tokens(layer), x) == {}


class Calls(nn.Module):
    """Calls torch's function beside a layer that adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(self.bn(x), x.shape[1:])


def test_a_bundle_from_before_such_layers_were_known_decides_which_adapt() -> None:
    module = Tokens(nn.RMSNorm(8), mixed=True)
    assert list(norm_layers(module)) == ["norm", "last"]
    restrict_to(module, ["last.scale", "last.shift"])
    assert list(norm_layers(module)) == ["last"]
    restrict_to(module, ["norm.scale"])
    assert list(norm_layers(module)) == ["last"], "a layer that bundles always had is never left out"
