"""What every model must return, and how it is said that it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from brought_models import CLASSES, PIXELS, SIDE, Then, keeps_features, model, net, old_weight_norm
from safetensors.torch import save_file
from torch import nn

from cema.errors import ModelError
from cema.models.checks import check_module
from cema.models.copying import copy_module
from cema.models.loading import finish
from cema.models.spec import Model


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.softmax(1),
        lambda y: y.sigmoid(),
        lambda y: 100 * y.softmax(1),
        lambda y: (y.softmax(1) + (2 * y).softmax(1)) / 2,
        lambda y: (y.tanh() + 1) / 2,
        lambda y: y.exp() / y.exp().sum(1, keepdim=True),
    ],
    ids=["softmax", "sigmoid", "percent", "ensemble", "tanh", "own"],
)
def test_probabilities_are_refused(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="returns probabilities; return the logits"):
        check_module("m", Then(function).eval(), PIXELS)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y,
        lambda y: y.log_softmax(1),
        lambda y: y.relu(),
        # Untrained models: small, positive, and almost the same for each image.
        lambda y: 0.5 + 1e-6 * y,
        lambda y: 0.2 + 1e-6 * y,
        lambda y: 3.0 + 1e-6 * y,
        lambda y: 0.0 * y,
    ],
)
def test_logits_that_look_like_probabilities_by_chance_are_not(
    function: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    assert check_module("m", Then(function).eval(), PIXELS, classes=CLASSES) == CLASSES


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda y: {"logits": y}, "got dict; it has the keys logits: wrap the model"),
        (
            lambda y: {"logits": y, "maps": y[:, :, None, None].expand(-1, -1, 4, 4)},
            "keys logits, maps: wrap",
        ),
        (lambda y: (y, y), "got tuple; wrap the model in a module that returns only the logits"),
        (lambda y: [], "got list; wrap the model"),
        (lambda y: [{"boxes": y, "labels": y}], "got list.*looks like detection, which is not supported"),
        (lambda y: {"pred_boxes": y}, "looks like detection"),
        (lambda y: y[:, :, None, None].expand(-1, -1, 4, 4), r"got \(1, 5, 4, 4\).*looks like segmentation"),
        (lambda y: {"out": y[:, :, None, None].expand(-1, -1, 4, 4)}, "got dict.*looks like segmentation"),
        (lambda y: {"logits": y[:, :, None, None].expand(-1, -1, 4, 4)}, "looks like segmentation"),
        (
            lambda y: (y[:, None].expand(-1, 7, -1), []),
            "got tuple.*per token or box.*detection are not supported",
        ),
        (lambda y: y[:, :, None, None], r"got \(1, 5, 1, 1\); flatten"),
        (lambda y: y[:, None].expand(-1, 7, -1), r"got \(1, 7, 5\).*per token or box"),
        (lambda y: y.argmax(1), r"got \(1,\) of torch.int64; return the logits, not the chosen class"),
        (lambda y: y.reshape(1, CLASSES), "fails on 4 inputs.*batch size is fixed.*x.shape"),
        (lambda y: y[:1], r"expected logits of shape \(4, classes\) for 4 images, got \(1, 5\)"),
        (lambda y: y * torch.nan, "expected finite logits, got NaN"),
    ],
)
def test_other_outputs_are_refused_with_what_they_seem_to_be(
    function: Callable[[torch.Tensor], Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_module("m", Then(function).eval(), PIXELS)


def test_a_lazy_layer_without_values_is_named_and_takes_weights(tmp_path: Path) -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(8, 3, 2, 1), *list(net())[1:])

    with pytest.raises(ModelError, match=r"0\.weight of LazyConv2d has no values yet; pass an image"):
        finish("m", lazy(), PIXELS)
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    loaded = finish("m", lazy(), PIXELS, weights=tmp_path / "w.safetensors").module
    x = torch.ones(1, 3, SIDE, SIDE)
    assert torch.equal(loaded(x), net()(x))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model."])
def test_a_prefix_of_all_keys_of_a_weights_file_is_removed(prefix: str, tmp_path: Path) -> None:
    state = {prefix + key: value + 1 for key, value in net().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    loaded = finish("m", net(), PIXELS, weights=tmp_path / "w.safetensors").module
    assert torch.equal(loaded[5].bias, net()[5].bias + 1)  # type: ignore[index]


def test_a_prefix_that_explains_nothing_or_that_the_model_has_is_told(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({f"module.{key}": value for key, value in list(net().state_dict().items())[1:]}, path)
    with pytest.raises(ModelError, match=r"1 missing|unexpected: module\.0\.bias"):
        finish("m", net(), PIXELS, weights=path)
    save_file(net().state_dict(), path)
    with pytest.raises(ModelError, match=r"The model's keys only begin with 'body\.' more"):
        finish("m", Then(lambda y: y), PIXELS, weights=path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda m: torch.compile(nn.DataParallel(m)),
        lambda m: nn.DataParallel(torch.compile(m)),
    ],
)
def test_wrappers_are_taken_off_a_model_and_its_parts(wrap: Callable[[nn.Module], nn.Module]) -> None:
    inner = net()
    assert model(wrap(inner)).module is inner
    outer = nn.Sequential(wrap(inner), nn.Identity())
    copied = copy_module(model(outer))
    assert list(copied.state_dict()) == [f"0.{key}" for key in inner.state_dict()]
    assert next(outer.children()) is not inner, "the model itself was changed"


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm:FutureWarning")
@pytest.mark.parametrize("make", [old_weight_norm, keeps_features])
def test_tensors_kept_from_a_pass_with_gradients_do_not_hinder_a_copy(make: Callable[[], nn.Module]) -> None:
    source = make()
    copied = copy_module(model(source))
    x = torch.ones(1, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(copied(x), source(x))


def test_what_cannot_be_copied_is_named() -> None:
    module = net()
    module[1].made = module[0].weight * 2  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"m: the model cannot be copied.*attribute 1\.made \(Tensor\)"):
        copy_module(Model("m", module, PIXELS, CLASSES))
    module[1].made = (i for i in range(3))
    with pytest.raises(ModelError, match=r"attribute 1\.made \(generator\).*outside of the model"):
        copy_module(Model("m", module, PIXELS, CLASSES))
