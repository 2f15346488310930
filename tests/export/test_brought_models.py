"""Models as people bring them, through the API's door."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from brought_models import (
    CLASSES,
    PIXELS,
    Alias,
    GammaBeta,
    InPlace,
    OwnLayerNorm,
    OwnRms,
    ResponseNorm,
    Then,
    Tied,
    Tokens,
    WithoutEps,
    keeps_features,
    model,
    net,
    old_weight_norm,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from cema.errors import ExportError, ModelError
from cema.export.bundle import ExportReport, export_bundle
from cema.formats.bundle import check_golden
from cema.models.copying import copy_module
from cema.models.loading import finish
from cema.models.norm_state import load_folded
from cema.models.spec import Model

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()


def export(module: nn.Module, folder: Path) -> ExportReport:
    return export_bundle(model(module.eval()), folder / "bundle", public_keys=[KEY])


def check_update(module: nn.Module, report: ExportReport) -> None:
    """An update changes the exported graph as it changes the model."""
    bundle, rng = report.bundle, np.random.default_rng(3)
    state = {
        key: np.float32(value * rng.uniform(0.7, 1.3, value.shape) + 0.1)
        for key, value in bundle.norm_state().items()
    }
    options = onnxruntime.SessionOptions()
    data = bundle.pack_norm(state)
    options.add_external_initializers_from_files_in_memory(["norm.bin"], [data], [len(data)])
    session = onnxruntime.InferenceSession(bundle.model_path.read_bytes(), options)
    inputs = PIXELS(bundle.golden_images)
    got = session.run(["logits"], {"images": inputs.copy()})[0]
    changed = copy_module(model(module))
    load_folded(changed, state)
    with torch.no_grad():
        check_golden(got, changed(torch.from_numpy(inputs.copy())).numpy(), 1e-4)
    assert np.abs(got - bundle.golden_logits).max() > 1e-3


def twice_registered() -> nn.Module:
    module = Then(lambda y: y)
    module.kept = nn.ParameterList([module.body[1].weight])  # type: ignore[list-item]
    return module


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script_method:DeprecationWarning", "ignore:.*torch.nn.utils.weight_norm:FutureWarning"
)
@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (Alias, ["bn1.scale", "bn1.shift"]),
        (
            Tied,
            ["body.1.scale", "body.1.shift", "second.scale", "second.shift", "first.scale", "first.shift"],
        ),
        (twice_registered, ["body.1.scale", "body.1.shift"]),
        (InPlace, ["body.1.scale", "body.1.shift"]),
        (old_weight_norm, ["1.scale", "1.shift"]),
        (keeps_features, ["1.scale", "1.shift"]),
        (lambda: nn.DataParallel(net()), ["1.scale", "1.shift"]),
        (lambda: torch.compile(net()), ["1.scale", "1.shift"]),
        (lambda: nn.Sequential(nn.DataParallel(net())), ["0.1.scale", "0.1.shift"]),
        (lambda: net(OwnLayerNorm()), ["1.scale", "1.shift"]),
        (lambda: net(GammaBeta()), ["1.scale", "1.shift"]),
        (lambda: Tokens(nn.RMSNorm(8)), ["norm.scale"]),
        (lambda: Tokens(OwnRms(), mixed=True), ["norm.scale", "last.scale", "last.shift"]),
    ],
)
def test_it_is_exported_and_follows_an_update(
    make: Callable[[], nn.Module], keys: list[str], tmp_path: Path
) -> None:
    module = make()
    report = export(module, tmp_path)
    assert [tensor.key for tensor in report.bundle.manifest.norm] == keys
    assert report.left_out == {}
    assert report.norm_layers == len({key.rpartition(".")[0] for key in keys})
    check_update(module, report)


def test_normalisation_that_is_left_out_is_reported(tmp_path: Path) -> None:
    module = nn.Sequential(*list(net())[:3], ResponseNorm(), *list(net())[3:])
    assert export(module, tmp_path).left_out == {"3": "ResponseNorm"}
    for left, kind in ((WithoutEps(), "WithoutEps"), (ResponseNorm(), "ResponseNorm")):
        with pytest.raises(ExportError, match=rf"no BatchNorm.*cannot be adapted, 1 layer: 1 \({kind}\)"):
            export(net(left), tmp_path / "none")


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(*net(), nn.Softmax(1)),
        lambda: nn.Sequential(*net(), nn.Sigmoid()),
        lambda: Then(lambda y: {"logits": y}),
        lambda: Then(lambda y: (y, y)),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Conv2d(8, CLASSES, 1)),
        lambda: nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), *list(net())[1:]),
        lambda: nn.Sequential(nn.LazyConv2d(8, 3, 2, 1), *list(net())[1:]),
        lambda: nn.Sequential(*net(), nn.Linear(CLASSES, 7)),
    ],
    ids=["softmax", "sigmoid", "dict", "tuple", "segmentation", "channels", "lazy", "classes"],
)
def test_both_doors_refuse_it_with_the_same_words(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    with pytest.raises(ExportError) as api:
        export_bundle(Model("m", make().eval(), PIXELS, CLASSES), tmp_path / "b", public_keys=[KEY])
    with pytest.raises(ModelError) as command:
        finish("m", make(), PIXELS, classes=CLASSES)
    assert str(api.value) == str(command.value)
    assert not (tmp_path / "b").exists()


def test_a_scripted_module_is_refused_with_what_to_give(tmp_path: Path) -> None:
    class Scripted(torch.jit.ScriptModule):
        """Is one without being compiled, which torch warns about."""

    with pytest.raises(ExportError, match=r"is a TorchScript module.*give the torch\.nn\.Module"):
        export(Scripted(), tmp_path)


def test_the_model_given_is_not_changed(tmp_path: Path) -> None:
    module = Tied().eval()
    export(module, tmp_path)
    assert module.first.weight is module.second.weight
    assert not module._forward_pre_hooks
    in_place = InPlace()
    export(in_place, tmp_path / "second")
    assert not in_place._forward_pre_hooks


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return y if y.sum() > 0 else -y


def test_what_torch_prints_before_a_refusal_is_kept_off_the_screen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ExportError, match="cannot trace"):
        export(Branching(), tmp_path)
    out, err = capfd.readouterr()
    assert out + err == ""
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
