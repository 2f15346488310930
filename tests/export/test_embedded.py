"""Weights that lie inside the file of another model."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cema.errors import ExportError
from cema.export.embedded import refer_to_weights


def model_of(tensors: list[TensorProto], *, doc: str = "") -> onnx.ModelProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", [], [output], tensors, doc_string=doc
    )
    return helper.make_model(graph, producer_version=doc)


def tensor_of(name: str, size: int, seed: int) -> TensorProto:
    values = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return numpy_helper.from_array(values, name)


names = st.text(min_size=1, max_size=200)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(names, st.integers(0, 20_000), max_size=8), st.text(max_size=300))
def test_every_large_weight_is_found_where_it_lies(sizes: dict[str, int], doc: str) -> None:
    tensors = [tensor_of(name, size, seed) for seed, (name, size) in enumerate(sizes.items())]
    data = model_of(tensors, doc=doc).SerializeToString(deterministic=True)
    other = model_of(tensors)
    stays = refer_to_weights(other, data, "model.onnx")
    assert stays == sum(size for size in sizes.values() if size < 1024)
    for tensor, original in zip(other.graph.initializer, tensors, strict=True):
        if len(original.raw_data) < 1024:
            assert tensor == original
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        start, length = int(entries["offset"]), int(entries["length"])
        assert entries["location"] == "model.onnx"
        assert tensor.data_location == TensorProto.EXTERNAL
        assert not tensor.raw_data
        assert data[start : start + length] == original.raw_data


def test_a_weight_of_the_same_name_with_other_values_stays() -> None:
    data = model_of([tensor_of("w", 2000, 0), tensor_of("v", 2000, 1)]).SerializeToString(deterministic=True)
    others = [tensor_of("w", 2000, 2), tensor_of("v", 1999, 1), tensor_of("u", 2000, 0)]
    proto = model_of(others)
    assert refer_to_weights(proto, data, "model.onnx") == 5999
    assert list(proto.graph.initializer) == others


def test_weights_that_are_no_raw_data_stay() -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1000], np.arange(1000.0))
    proto = model_of([tensor])
    assert refer_to_weights(proto, proto.SerializeToString(), "model.onnx") == 0
    assert list(proto.graph.initializer) == [tensor]


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x3a\xff\x01", b"\x3b", b"\x3a\x80"])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(ExportError, match="expected a serialised ONNX model"):
        refer_to_weights(model_of([tensor_of("w", 2000, 0)]), data, "model.onnx")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_never_makes_a_weight_refer_to_other_bytes(data: st.DataObject) -> None:
    tensors = [tensor_of("w", 2000, 0), tensor_of("v", 1500, 1)]
    whole = bytearray(model_of(tensors).SerializeToString(deterministic=True))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    proto = model_of(tensors)
    with contextlib.suppress(ExportError):
        refer_to_weights(proto, damaged, "model.onnx")
    for tensor, original in zip(proto.graph.initializer, tensors, strict=True):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            start = int(entries["offset"])
            assert damaged[start : start + int(entries["length"])] == original.raw_data
        else:
            assert tensor == original
