from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from written_bundles import KEY, PREPROCESSING, norm_state, write

from cema.errors import ExportError, FormatError
from cema.formats.bundle import Bundle, check_golden, norm_layout
from cema.formats.bundle_manifest import NormTensor
from cema.formats.keys import key_id


def test_a_bundle_is_written_and_read(tmp_path: Path) -> None:
    written = write(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.manifest == written.manifest
    assert bundle.manifest.base == hashlib.sha256(bundle.model_path.read_bytes()).hexdigest()
    assert bundle.manifest.labels == ("a", "b", "c", "d", "e")
    assert bundle.manifest.preprocessing == PREPROCESSING
    assert bundle.public_keys == {key_id(KEY): KEY}
    assert bundle.golden_images.dtype == np.uint8
    np.testing.assert_array_equal(bundle.golden_images, written.golden_images)
    np.testing.assert_array_equal(bundle.golden_logits, written.golden_logits)
    state = bundle.norm_state()
    assert state.keys() == norm_state().keys()
    for key, tensor in norm_state().items():
        np.testing.assert_array_equal(state[key], tensor)
    assert bundle.pack_norm(state) == bundle.norm_path.read_bytes()
    assert {entry.name for entry in tmp_path.iterdir()} == {"bundle"}


def test_every_tensor_lies_where_the_manifest_says(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")
    other = norm_state(7)
    packed = bundle.pack_norm({key: tensor.astype(np.float64) for key, tensor in other.items()})
    for tensor in bundle.manifest.norm:
        assert tensor.offset % 64 == 0
        found = np.frombuffer(packed[tensor.offset : tensor.offset + tensor.length], "<f4")
        np.testing.assert_array_equal(found, other[tensor.key])


def test_a_layout_of_one_s_own(tmp_path: Path) -> None:
    layout = (
        NormTensor(key="a.shift", offset=100, length=8, size=2),
        NormTensor(key="a.scale", offset=4, length=8, size=2),
    )
    state = {"a.scale": np.array([1, 2], np.float32), "a.shift": np.array([3, 4], np.float32)}
    bundle = write(tmp_path / "bundle", norm=layout, norm_state=state)
    data = bundle.norm_path.read_bytes()
    assert len(data) == 108
    assert np.frombuffer(data, "<f4").tolist()[1:3] == [1, 2]
    assert bundle.norm_state()["a.shift"].tolist() == [3, 4]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_layouts_do_not_overlap(sizes: list[int]) -> None:
    layout = norm_layout({f"layer{i}.scale": np.zeros(size, np.float32) for i, size in enumerate(sizes)})
    end = 0
    for tensor, size in zip(layout, sizes, strict=True):
        assert tensor.offset >= end
        assert tensor.size == size
        end = tensor.offset + tensor.length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("bn0.scale"), r"missing \['bn0.scale'\]"),
        (lambda state: state.update({"bn9.scale": np.ones(2, np.float32)}), r"unexpected \['bn9.scale'\]"),
        (lambda state: state.update({"bn0.scale": np.ones(4, np.float32)}), "expected 3 elements"),
        (lambda state: state.update({"bn0.scale": np.full(3, np.nan, np.float32)}), "finite"),
        (lambda state: state.clear(), "at least one"),
    ],
)
def test_a_norm_state_that_does_not_fit_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    bundle, state = write(tmp_path / "bundle"), norm_state()
    change(state)
    with pytest.raises(FormatError, match=message):
        bundle.pack_norm(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a"]}, "one label per class"),
        ({"classes": 1, "labels": None}, "at least 2 classes"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"upload_side": 0}, "upload_side"),
        ({"norm_state": {}}, "norm"),
        ({"golden_images": np.zeros((2, 8, 8, 3))}, "uint8"),
        ({"golden_images": np.zeros((0, 8, 8, 3), np.uint8)}, "uint8"),
        ({"golden_logits": np.zeros((2, 4), np.float32)}, r"\(2, 5\)"),
        ({"golden_logits": np.full((2, 5), np.nan, np.float32)}, "finite"),
        ({"norm": [NormTensor(key="bn0.scale", offset=0, length=12, size=3)]}, "unexpected"),
    ],
)
def test_parts_that_do_not_fit_are_refused_and_nothing_is_left(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        write(tmp_path / "bundle", **change)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "second",
    [
        NormTensor(key="a.shift", offset=4, length=8, size=2),
        NormTensor(key="a.scale", offset=8, length=8, size=2),
    ],
)
def test_overlapping_and_repeated_tensors_are_refused(tmp_path: Path, second: NormTensor) -> None:
    first = NormTensor(key="a.scale", offset=0, length=8, size=2)
    with pytest.raises(FormatError, match=r"overlaps|twice"):
        write(tmp_path / "bundle", norm=[first, second])


@pytest.mark.parametrize(
    "fields", [("a", 0, 4, 1), ("a.scale", -4, 4, 1), ("a.scale", 0, 4, 2), ("a.scale", 0, 0, 0)]
)
def test_impossible_places_are_refused(fields: tuple[str, int, int, int]) -> None:
    key, offset, length, size = fields
    with pytest.raises(ValueError, match="expected"):
        NormTensor(key=key, offset=offset, length=length, size=size)


def test_a_bundle_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    with pytest.raises(ExportError, match="not empty"):
        write(tmp_path / "bundle", model="second")
    assert Bundle.load(tmp_path / "bundle").manifest.model == "test"
    write(tmp_path / "bundle", model="second", overwrite=True)
    assert Bundle.load(tmp_path / "bundle").manifest.model == "second"
    assert {entry.name for entry in tmp_path.iterdir()} == {"bundle"}


def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    write(tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    for name in ("home", "file", "bundle", "link"):
        with pytest.raises(ExportError, match=r"exists|not a bundle"):
            write(tmp_path / name, overwrite=True)
    assert (tmp_path / "home" / "diary.txt").read_text() == "dear"
    assert (tmp_path / "bundle" / "notes.txt").read_text() == "mine"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    write(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "norm.bin", "golden.safetensors"])
def test_missing_truncated_and_damaged_files_are_format_errors(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "bundle").path / name
    whole = path.read_bytes()
    for content in (None, b"", whole[:-2], whole[: len(whole) // 2], b"\xff" * len(whole), b"[" * 100_000):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(FormatError, match=name.replace(".", r"\.")):
            Bundle.load(tmp_path / "bundle")


def test_a_damaged_key_is_a_format_error(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")
    (bundle.path / "keys" / "other.pub").write_text("garbage")
    with pytest.raises(FormatError, match=r"other\.pub"):
        Bundle.load(bundle.path)


def test_a_folder_that_is_none_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cema export"):
        Bundle.load(tmp_path / "absent")


def test_a_bundle_without_keys_loads(tmp_path: Path) -> None:
    assert write(tmp_path / "bundle", public_keys=()).public_keys == {}


@pytest.mark.parametrize(
    "change",
    [
        {"format": "cema.bundle/3"},
        {"format": "cema.bundle/1"},
        {"model_graph": None},
        {"model_graph": "x"},
        {"model_graph": "0" * 64},
        {"base": "0" * 64},
        {"norm_file": "../../etc/passwd"},
        {"base": "x"},
        {"classes": "5"},
        {"unknown": 1},
        {"norm": []},
        {"preprocessing": {"height": 8}},
        {"tolerance": 2.0},
    ],
)
def test_manifests_that_break_the_format_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write(tmp_path / "bundle").path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FormatError, match=r"manifest\.json"):
        Bundle.load(path.parent)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (None, r"does not follow cema\.bundle/2.*`format`"),
        ("cema.bundle/3", r"'cema\.bundle/2' or 'cema\.bundle/1', got 'cema\.bundle/3'"),
    ],
)
def test_a_manifest_without_the_right_format_says_what_was_expected(
    tmp_path: Path, found: str | None, told: str
) -> None:
    path = write(tmp_path / "bundle").path / "manifest.json"
    fields = json.loads(path.read_text())
    assert fields.pop("format") == "cema.bundle/2"
    path.write_text(json.dumps(fields if found is None else fields | {"format": found}))
    with pytest.raises(FormatError, match=told):
        Bundle.load(path.parent)


def test_a_norm_file_with_nan_is_refused(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")
    data = bytearray(bundle.norm_path.read_bytes())
    data[0:4] = np.array([np.nan], "<f4").tobytes()
    bundle.norm_path.write_bytes(data)
    with pytest.raises(FormatError, match="finite"):
        Bundle.load(bundle.path)


def test_foreign_golden_tensors_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bundle").path / "golden.safetensors"
    images = np.zeros((2, 8, 8, 3), np.uint8)
    for content in ({"images": images}, {"images": images, "logits": np.zeros((2, 5))}):
        path.write_bytes(safetensors.numpy.save(content))
        with pytest.raises(FormatError, match=r"golden\.safetensors"):
            Bundle.load(path.parent)


def test_golden_logits_are_compared_relative_to_the_largest() -> None:
    expected = np.array([[100.0, -200.0]])
    assert check_golden(expected + 0.1, expected, 1e-3) == pytest.approx(0.1 / 200)
    assert check_golden(np.array([[0.1]]), np.array([[0.2]]), 0.2) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"differ by 0\.0005"):
        check_golden(expected + 0.1, expected, 4e-4)
    for got in (np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]]), np.zeros((1, 3)), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="expected"):
            check_golden(got, expected, 1e9)
