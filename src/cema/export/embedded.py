"""Where the weights of a serialised ONNX model lie, so that another graph can refer to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cema.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["refer_to_weights"]

# Numbers of fields in ONNX's protobuf definitions.
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_SMALL = 1024


def refer_to_weights(proto: Any, model_bytes: bytes, model_file: str) -> int:
    """Make a graph take its weights from the file of another model that has them under the same names.

    Parameters
    ----------
    proto : onnx.ModelProto
        Changed in place: weights become external data at a byte offset inside the other model's file. Those of fewer
        than 1,024 bytes stay, and those that the file does not have.
    model_bytes : bytes
        The other model, as it is written to its file.
    model_file : str
        The file's name, in the folder of both.

    Returns
    -------
    int
        How many bytes of weights stay in the graph.

    Raises
    ------
    ExportError
        When the bytes are no ONNX model.
    """
    places, stays = _raw_data_places(model_bytes), 0
    view = memoryview(model_bytes)
    for tensor in proto.graph.initializer:
        size = len(tensor.raw_data)
        start, end = places.get(tensor.name, (0, 0))
        # Compared as bytes: a name alone proves nothing.
        if size < _SMALL or end - start != size or view[start:end] != tensor.raw_data:
            stays += size
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = 1  # onnx.TensorProto.EXTERNAL
        for key, value in (("location", model_file), ("offset", start), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    return stays


def _raw_data_places(model: bytes) -> dict[str, tuple[int, int]]:
    """Return where the raw bytes of each initializer begin and end, by its name."""
    places = {}
    try:
        for graph_field, *graph in _fields(model, 0, len(model)):
            for field, *tensor in _fields(model, *graph) if graph_field == _GRAPH else ():
                found = dict(_spans(model, *tensor)) if field == _INITIALIZER else {}
                if _NAME in found and _RAW_DATA in found:
                    start, end = found[_NAME]
                    places[model[start:end].decode()] = found[_RAW_DATA]
    except (IndexError, ValueError) as error:
        raise ExportError(f"expected a serialised ONNX model, got bytes that are none: {error}") from error
    return places


def _spans(data: bytes, start: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    for field, first, last in _fields(data, start, end):
        yield field, (first, last)


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, begin and end of each field with a length in a protobuf message; skip the others."""
    while start < end:
        tag, start = _varint(data, start)
        kind = tag & 7
        if kind == _VARINT:
            _, start = _varint(data, start)
        elif kind in (_FIXED64, _FIXED32):
            start += 8 if kind == _FIXED64 else 4
        elif kind == _DELIMITED:
            size, start = _varint(data, start)
            if start + size > end:
                raise ValueError(f"a field of {size} bytes at {start} ends beyond {end}")
            yield tag >> 3, start, start + size
            start += size
        else:
            raise ValueError(f"unknown wire type {kind} at {start}")


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """Return a number of variable length, and where the next byte is."""
    value = shift = 0
    while True:
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return value, start
