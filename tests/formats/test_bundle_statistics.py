"""What bundles say about statistics, and bundles from before they did."""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded_folders import RECORDED
from written_bundles import GRAPH, LAYERS, SIZES, norm_state, statistics, write, write_with_statistics

from cema.errors import ExportError, FormatError
from cema.formats.bundle import Bundle, BundleStatistics
from cema.formats.bundle_manifest import BundleManifest, base_digest
from cema.ondevice.folding import StatisticsLayer, fold

NEWER = ("model_graph", "statistics", "statistics_graph", "mean_logits")


def manifest_fields(bundle: Bundle) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((bundle.path / "manifest.json").read_bytes())
    return fields


def test_statistics_are_written_and_read(tmp_path: Path) -> None:
    bundle = write_with_statistics(tmp_path / "bundle", mean_logits=[1, 0.1, -2.5, 0, 1e-30])
    assert bundle.manifest.format == "cema.bundle/2"
    assert bundle.manifest.statistics == LAYERS
    assert bundle.manifest.mean_logits == (1.0, 0.1, -2.5, 0.0, 1e-30)
    assert bundle.statistics_path.read_bytes() == GRAPH
    got = bundle.statistics()
    assert got is not None
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, statistics().astype(np.float32))
    assert (bundle.path / "statistics.bin").read_bytes() == statistics().astype("<f4").tobytes()


def test_base_names_both_graphs_and_that_of_the_model_is_checked_by_itself(tmp_path: Path) -> None:
    plain, observing = write(tmp_path / "plain"), write_with_statistics(tmp_path / "observing")
    model, graph = (hashlib.sha256(data) for data in (plain.model_path.read_bytes(), GRAPH))
    assert plain.manifest.base == plain.manifest.model_digest == model.hexdigest()
    assert observing.manifest.model_graph == observing.manifest.model_digest == model.hexdigest()
    assert observing.manifest.statistics_graph == graph.hexdigest()
    context = b"cema.bundle/2" + bytes(1)
    assert observing.manifest.base == hashlib.sha256(context + model.digest() + graph.digest()).hexdigest()
    other = write_with_statistics(tmp_path / "other", graph=b"another")
    assert len({plain.manifest.base, observing.manifest.base, other.manifest.base}) == 3
    observing.model_path.write_bytes(b"changed")
    with pytest.raises(FormatError, match=rf"model\.onnx: hashes to .* says {model.hexdigest()}"):
        Bundle.load(observing.path)


def test_affine_parameters_are_what_folds_to_the_norm_state(tmp_path: Path) -> None:
    bundle = write_with_statistics(tmp_path / "bundle")
    affine, folded = bundle.affine_state(), bundle.norm_state()
    mean, variance = statistics()
    start = 0
    for layer in LAYERS:
        part = slice(start, start + layer.size)
        start += layer.size
        scale, shift = (folded[f"{layer.layer}.{kind}"].astype(np.float64) for kind in ("scale", "shift"))
        weight = scale * np.sqrt(variance[part] + layer.eps)
        np.testing.assert_allclose(affine[f"{layer.layer}.scale"], weight, rtol=1e-6)
        np.testing.assert_allclose(affine[f"{layer.layer}.shift"], shift + mean[part] * scale, rtol=1e-5)
    np.testing.assert_array_equal(affine["bn1.scale"], folded["bn1.scale"], "it has no statistics")
    for key, value in fold(affine, statistics(), LAYERS).items():
        np.testing.assert_allclose(value, folded[key], rtol=1e-5, atol=1e-6)


def test_without_statistics_there_are_none_and_the_norm_state_is_affine(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle", mean_logits=(0.0,) * 5)
    assert bundle.statistics() is None
    assert (bundle.manifest.statistics, bundle.manifest.statistics_graph) == ((), None)
    assert not bundle.statistics_path.exists()
    for key, value in bundle.affine_state().items():
        np.testing.assert_array_equal(value, norm_state()[key])


names = st.text(string.ascii_letters + "._ä", min_size=1, max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_statistics_come_back_as_they_were(tmp_path: Path, data: st.DataObject) -> None:
    sizes = data.draw(st.dictionaries(names, st.integers(1, 9), min_size=1, max_size=6))
    layers = tuple(
        StatisticsLayer(layer=name, size=size, eps=data.draw(st.floats(1e-12, 1.0)))
        for name, size in sizes.items()
        if data.draw(st.booleans())
    ) or (StatisticsLayer(layer=next(iter(sizes)), size=next(iter(sizes.values())), eps=1e-5),)
    total = sum(layer.size for layer in layers)
    values = np.array(
        [
            data.draw(st.lists(st.floats(low, 1e6, width=32), min_size=total, max_size=total))
            for low in (-1e6, 0.0)
        ]
    )
    state = {
        f"{name}.{part}": np.full(size, 0.5) for name, size in sizes.items() for part in ("scale", "shift")
    }
    graph = data.draw(st.binary(max_size=20))
    logits = data.draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=5, max_size=5))
    bundle = write(
        tmp_path / "bundle",
        norm_state=state,
        statistics=BundleStatistics(layers, graph, values),
        mean_logits=logits,
        overwrite=True,
    )
    assert bundle.manifest.statistics == layers
    assert bundle.manifest.mean_logits == tuple(logits)
    assert bundle.statistics_path.read_bytes() == graph
    np.testing.assert_array_equal(bundle.statistics(), values.astype(np.float32))
    assert bundle.affine_state().keys() == state.keys()


@pytest.mark.parametrize("name", ["statistics.onnx", "statistics.bin"])
def test_missing_truncated_and_damaged_files_are_format_errors(tmp_path: Path, name: str) -> None:
    path = write_with_statistics(tmp_path / "bundle").path / name
    whole = path.read_bytes()
    for content in (None, b"", whole[:-2], whole[: len(whole) // 2], b"\xff" * len(whole), whole + b"\0"):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(FormatError, match=name.replace(".", r"\.")):
            Bundle.load(path.parent)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_part_and_no_damage_of_any_file_does_more_than_a_format_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "bundle"
    if not path.exists():
        write_with_statistics(path, mean_logits=[1, 0.1, -2.5, 0, 1e-30])
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    assert {"statistics.onnx", "statistics.bin", "norm.bin", "manifest.json"} <= set(names)
    file = path / data.draw(st.sampled_from(names))
    whole = file.read_bytes()
    damaged = bytearray(whole)
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged[place] ^= data.draw(st.integers(1, 255))
    else:
        del damaged[place:]
    file.write_bytes(damaged)
    message, loaded = str(path), None
    try:
        loaded = Bundle.load(path)
    except FormatError as error:
        message = str(error)
    file.write_bytes(whole)
    assert str(path) in message
    if loaded is not None:
        assert file.name not in {"model.onnx", "statistics.onnx"}, "their digests are in the manifest"
        source = loaded.statistics()
        assert source is not None
        assert (source[1] >= 0).all()
        known = [source, *loaded.norm_state().values(), *loaded.affine_state().values()]
        assert all(np.isfinite(values).all() for values in known)
    assert Bundle.load(path).manifest.statistics == LAYERS


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-3])
def test_statistics_that_cannot_be_are_refused(tmp_path: Path, bad: float) -> None:
    source = statistics()
    source[1, -1] = bad
    with pytest.raises(FormatError, match="variance"):
        write_with_statistics(tmp_path / "new", source=source)
    assert list(tmp_path.iterdir()) == []
    path = write_with_statistics(tmp_path / "bundle").path
    (path / "statistics.bin").write_bytes(source.astype("<f4").tobytes())
    with pytest.raises(FormatError, match=r"statistics\.bin: .*provision it again"):
        Bundle.load(path)


def test_affine_parameters_beyond_float32_are_refused(tmp_path: Path) -> None:
    state, source = norm_state(), statistics()
    state["bn0.scale"][0], source[1, -3] = 3e38, 100.0
    with pytest.raises(FormatError, match=r"bn0\.s"):
        write_with_statistics(tmp_path / "bundle", norm_state=state, source=source)
    path = write_with_statistics(tmp_path / "bundle", norm_state=state, source=statistics() * 0).path
    (path / "statistics.bin").write_bytes(source.astype("<f4").tobytes())
    with pytest.raises(FormatError, match=r"norm\.bin: .*bn0\.s"):
        Bundle.load(path)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((StatisticsLayer(layer="bn9", size=3, eps=1e-5),), r"'bn9\.scale' of 3 elements, got none"),
        ((StatisticsLayer(layer="bn0", size=4, eps=1e-5),), r"'bn0\.scale' of 4 elements, got one of 3"),
        ((*LAYERS, LAYERS[0]), "'bn2' is listed twice"),
        ((), "exactly where there are layers"),
    ],
)
def test_layers_that_do_not_fit_are_refused(
    tmp_path: Path, layers: tuple[StatisticsLayer, ...], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        write_with_statistics(tmp_path / "new", layers=layers)
    path = write_with_statistics(tmp_path / "bundle").path / "manifest.json"
    fields = json.loads(path.read_text()) | {"statistics": msgspec.to_builtins(layers)}
    path.write_text(json.dumps(fields))
    with pytest.raises(FormatError, match=rf"manifest\.json.*{message}"):
        Bundle.load(path.parent)


def test_a_layer_without_a_shift_has_no_statistics(tmp_path: Path) -> None:
    state = norm_state()
    del state["bn0.shift"]
    with pytest.raises(FormatError, match=r"'bn0\.shift' of 3 elements, got none"):
        write_with_statistics(tmp_path / "bundle", norm_state=state)


@pytest.mark.parametrize(
    "change",
    [
        {"statistics_graph": None},
        {"statistics_graph": "0" * 63},
        {"statistics_graph": "0" * 64},
        {"base": "MODEL"},
        {"statistics": [{"layer": "bn0", "size": 3, "eps": 0.0}, {"layer": "bn2", "size": 13, "eps": 1e-5}]},
        {"statistics": [{"layer": "bn0", "size": 3}]},
        {"statistics": [{"layer": "bn0", "size": 3, "eps": 1e-5, "more": 1}]},
        {"mean_logits": [0.0] * 4},
        {"mean_logits": [0.0] * 4 + [1e999]},
        {"mean_logits": 1.0},
    ],
)
def test_manifests_that_break_the_format_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    bundle = write_with_statistics(tmp_path / "bundle")
    changed = {
        name: bundle.manifest.model_graph if value == "MODEL" else value for name, value in change.items()
    }
    (bundle.path / "manifest.json").write_text(json.dumps(manifest_fields(bundle) | changed))
    with pytest.raises(FormatError, match=r"manifest\.json"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_mean_logits_that_are_not_finite_are_not_written(tmp_path: Path, value: float) -> None:
    for logits in ([0.0, value, 0, 0, 0], [0.0] * 6):
        with pytest.raises(FormatError, match="5 finite mean_logits"):
            write(tmp_path / "bundle", mean_logits=logits)


def test_a_bundle_with_statistics_is_replaced_by_one_without(tmp_path: Path) -> None:
    write_with_statistics(tmp_path / "bundle")
    with pytest.raises(ExportError, match="not empty"):
        write(tmp_path / "bundle")
    replaced = write(tmp_path / "bundle", overwrite=True)
    assert not replaced.statistics_path.exists()
    assert not (replaced.path / "statistics.bin").exists()
    assert {entry.name for entry in tmp_path.iterdir()} == {"bundle"}


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_no_two_pairs_of_graphs_have_one_base(model: bytes, graph: bytes) -> None:
    both = base_digest(model.hex(), graph.hex())
    assert both not in {model.hex(), graph.hex(), base_digest(model.hex(), None)}
    assert (both == base_digest(graph.hex(), model.hex())) == (model == graph)


# --- bundles from before


def test_a_recorded_bundle_of_the_first_format_is_read_as_before() -> None:
    fields = json.loads((RECORDED / "bundle" / "manifest.json").read_bytes())
    assert fields["format"] == "cema.bundle/1"
    assert not set(NEWER) & fields.keys()
    bundle = Bundle.load(RECORDED / "bundle")
    digest = hashlib.sha256(bundle.model_path.read_bytes()).hexdigest()
    assert bundle.manifest.base == bundle.manifest.model_digest == digest == fields["base"]
    assert bundle.statistics() is None
    state = bundle.norm_state()
    assert {key: value.size for key, value in state.items()} == {
        tensor["key"]: tensor["size"] for tensor in fields["norm"]
    }
    for key, value in bundle.affine_state().items():
        np.testing.assert_array_equal(value, state[key])


def test_updates_of_the_first_format_fit_a_new_bundle_of_the_same_model_without_statistics(
    tmp_path: Path,
) -> None:
    older = Bundle.load(RECORDED / "bundle")
    newer = write(
        tmp_path / "bundle",
        model_bytes=older.model_path.read_bytes(),
        norm_state=older.norm_state(),
        golden_images=older.golden_images,
        golden_logits=older.golden_logits,
        preprocessing=older.manifest.preprocessing,
        classes=older.manifest.classes,
        labels=None,
    )
    assert newer.manifest.format == "cema.bundle/2"
    assert newer.manifest.base == older.manifest.base


@pytest.mark.parametrize("name", NEWER)
def test_the_first_format_has_none_of_the_newer_members(tmp_path: Path, name: str) -> None:
    bundle = write_with_statistics(tmp_path / "bundle", mean_logits=(0.0,) * 5)
    fields = manifest_fields(bundle)
    older = {key: value for key, value in fields.items() if key not in NEWER}
    older |= {"format": "cema.bundle/1", "base": fields["model_graph"]}
    (bundle.path / "manifest.json").write_text(json.dumps(older))
    assert Bundle.load(bundle.path).manifest.base == fields["model_graph"]
    (bundle.path / "manifest.json").write_text(json.dumps(older | {name: fields[name]}))
    with pytest.raises(FormatError, match=f"no member {name} in cema.bundle/1"):
        Bundle.load(bundle.path)


def test_what_is_in_a_manifest_survives_encoding() -> None:
    manifest = msgspec.json.decode((RECORDED / "bundle" / "manifest.json").read_bytes(), type=BundleManifest)
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=BundleManifest) == manifest
    assert {layer.layer: layer.size for layer in LAYERS} | {"bn1": 8} == SIZES
