"""The graph with which a device observes the statistics of its own inputs.

Every BatchNorm of `model.onnx` whose statistics can be observed becomes

    n        = values per channel of its input x
    m, v     = their mean and unbiased variance
    r        = rate * min(n - 1, 1)
    mean     = (1 - r) * known mean + r * m
    variance = (1 - r) * known variance + r * v + r * (1 - r) * (m - known mean)^2
    y        = BatchNormalization(x, weight, bias, (1 - s) * mean + s * source mean,
                                  (1 - s) * variance + s * source variance)

so that a layer sees what the layers before it make of the same blend. Mean and variance are those of a mixture of what
is known and of the batch; s is `source_share`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cema.errors import ExportError
from cema.export.embedded import refer_to_weights
from cema.formats.bundle_files import MODEL_FILE
from cema.formats.bundle_manifest import NORM_FILE, layout_bytes
from cema.ondevice.folding import StatisticsLayer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cema.formats.bundle_manifest import NormTensor

__all__ = [
    "KNOWN_NAME",
    "NORM_NAME",
    "OBSERVED_NAME",
    "RATE_NAME",
    "SHARE_NAME",
    "SOURCE_NAME",
    "statistics_graph",
]

NORM_NAME, KNOWN_NAME, RATE_NAME, OBSERVED_NAME = "norm", "known", "rate", "observed"
SOURCE_NAME, SHARE_NAME = "source_statistics", "source_share"
# From here on the axes of a reduction are an input.
_OPSET = 18
_FLOAT = 4  # bytes


def statistics_graph(
    model_bytes: bytes, layout: Sequence[NormTensor], eps: Mapping[str, float]
) -> tuple[bytes, tuple[StatisticsLayer, ...]]:
    """Make the graph that observes statistics from an exported model.

    Parameters
    ----------
    model_bytes : bytes
        ``model.onnx``, its norm parameters in the external file ``norm.bin``.
    layout : sequence of NormTensor
        Where each of them lies in that file.
    eps : mapping of str to float
        The eps of every layer that may be observed, by its name.

    Returns
    -------
    graph : bytes
        ``statistics.onnx``. Beside the inputs and outputs of ``model.onnx`` it has the inputs ``norm``, float32 (F,),
        ``known``, float32 (2, K), ``rate``, float32 (), ``source_statistics``, float32 (2, K), and ``source_share``,
        float32 (), the last two 0 when they are not given. It has the output ``observed``, float32 (2, K): mean and
        unbiased variance of what each layer was last given, or what was known where that was one value per channel.
        ``norm`` has the parameters as they lie in ``norm.bin``, with weight and bias for the observed layers. Its
        weights lie in the file ``model.onnx``.
    layers : tuple of StatisticsLayer
        The layers observed, in the order of `layout`: those that are all BatchNormalization in the graph. Those that
        are not keep what is folded into their parameters.

    Raises
    ------
    ExportError
        When no layer can be observed, or the model is of an opset before 18.
    """
    import onnx  # noqa: PLC0415 - not needed to import the package

    proto = onnx.load_from_string(model_bytes)
    opset = next((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset < _OPSET:
        raise ExportError(f"expected a model of ONNX opset {_OPSET} or later, got {opset}; use a newer torch")
    found = _observable(proto.graph, layout, eps)
    if not found:
        raise ExportError("no layer with running statistics is a BatchNormalization in the exported graph")
    sizes = {place.key: place.size for place in layout}
    layers = tuple(StatisticsLayer(layer=name, size=sizes[f"{name}.scale"], eps=eps[name]) for name in found)
    _Builder(onnx, proto.graph).observe({layer: found[layer.layer] for layer in layers}, layout)
    refer_to_weights(proto, model_bytes, MODEL_FILE)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data, layers


def _observable(graph: Any, layout: Sequence[NormTensor], eps: Mapping[str, float]) -> dict[str, list[int]]:
    """Return the places of the nodes of each layer whose parameters only go into BatchNormalization."""
    keys = _norm_keys(graph, layout)
    inside = {name for node in graph.node for name in _names_inside(node)}
    nodes: dict[str, list[int]] = {name: [] for name in eps}
    spoilt = {key.rpartition(".")[0] for name, key in keys.items() if name in inside}
    for place, node in enumerate(graph.node):
        used = {slot: keys[name] for slot, name in enumerate(node.input) if name in keys}
        for name in {key.rpartition(".")[0] for key in used.values()} & nodes.keys():
            plain = node.op_type == "BatchNormalization" and node.domain == "" and len(node.output) == 1
            if plain and used == {1: f"{name}.scale", 2: f"{name}.shift"}:
                nodes[name].append(place)
            else:
                spoilt.add(name)
    order = dict.fromkeys(place.key.rpartition(".")[0] for place in layout)
    return {name: nodes[name] for name in order if nodes.get(name) and name not in spoilt}


def _norm_keys(graph: Any, layout: Sequence[NormTensor]) -> dict[str, str]:
    """Return which initializer is which norm parameter, from where it lies in the file."""
    places = {str(place.offset): place.key for place in layout}
    keys = {}
    for tensor in graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("location") == NORM_FILE:
            keys[tensor.name] = places[entries["offset"]]
    return keys


def _names_inside(node: Any) -> set[str]:
    """Return the names that a node's subgraphs use."""
    names: set[str] = set()
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                names |= {*inner.input, *inner.output} | _names_inside(inner)
    return names


@dataclass
class _Builder:
    """Writes nodes and constants into a graph, under names that nothing else has."""

    onnx: Any
    graph: Any

    def __post_init__(self) -> None:
        self._names = self._all_names()
        self._free_names()
        self._prefix = "statistics"
        while any(name.startswith(self._prefix) for name in self._names):
            self._prefix += "_"
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._taken: set[str] = set()
        self._count = 0

    def observe(self, layers: Mapping[StatisticsLayer, Sequence[int]], layout: Sequence[NormTensor]) -> None:
        """Let the nodes at some places normalise with a blend, and put out what they observe."""
        tensor = self.onnx.TensorProto.FLOAT
        total = sum(layer.size for layer in layers)
        make = self.onnx.helper.make_tensor_value_info
        self._take_norm(layout)
        sizes = [layer.size for layer in layers]
        known, source = self._split(KNOWN_NAME, sizes), self._split(SOURCE_NAME, sizes)
        parts = dict(zip(layers, zip(known, source, strict=True), strict=True))
        one = self._constant(np.array(1, np.float32))
        others = self._add("Sub", [one, SHARE_NAME])
        owners = {place: layer for layer, places in layers.items() for place in places}
        observed = {}
        for place, node in enumerate(self.graph.node):
            layer = owners.get(place)
            if layer is not None:
                node, observed[layer] = self._blend(node, layer, *parts[layer], others)  # noqa: PLW2901 - put in its place
            self._nodes.append(node)
        self._add("Concat", [observed[layer] for layer in layers], outputs=[OBSERVED_NAME], axis=1)
        size = layout_bytes(layout) // _FLOAT
        self.graph.input.extend([make(NORM_NAME, tensor, [size])])
        for statistics, scalar in ((KNOWN_NAME, RATE_NAME), (SOURCE_NAME, SHARE_NAME)):
            self.graph.input.extend([make(statistics, tensor, [2, total]), make(scalar, tensor, [])])
        # Devices from before there was a share do not feed it: with these defaults they need not.
        for name, shape in ((SOURCE_NAME, (2, total)), (SHARE_NAME, ())):
            self._constants[name] = self.onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name)
        self.graph.output.append(make(OBSERVED_NAME, tensor, [2, total]))
        nodes = [self._copy(node) for node in self._nodes]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._replace_initializers()

    def _blend(
        self, node: Any, layer: StatisticsLayer, known: str, source: str, others: str
    ) -> tuple[Any, str]:
        """Return a BatchNormalization with blended statistics, and the name of what it observes."""
        x = node.input[0]
        add, one = self._add, self._constant(np.array(1, np.int64))
        flat = add("Reshape", [x, self._constant(np.array([0, 0, -1], np.int64))])
        axes = self._constant(np.array([0, 2], np.int64))
        mean = add("ReduceMean", [flat, axes], keepdims=1)
        # In two passes: the mean of the squares less the square of the mean would lose a small variance.
        squares = add("ReduceSumSquare", [add("Sub", [flat, mean]), axes], keepdims=1)
        values = add("Div", [add("Size", [x]), self._constant(np.array(layer.size, np.int64))])
        freedom = add("Sub", [values, one])
        variance = add("Div", [squares, self._as_float(add("Max", [freedom, one]))])
        seen = add("Concat", [mean, variance], axis=0)
        seen = add("Squeeze", [seen, self._constant(np.array([2], np.int64))])
        rate = add("Mul", [RATE_NAME, self._as_float(add("Min", [freedom, one]))])
        rest = add("Sub", [self._constant(np.array(1, np.float32)), rate])
        blend = self._mix(known, seen, rate, rest)
        first, second = (self._constant(np.array(i, np.int64)) for i in (0, 1))
        apart = add("Sub", [add("Gather", [seen, first]), add("Gather", [known, first])])
        between = add("Mul", [add("Mul", [rate, rest]), add("Mul", [apart, apart])])
        blended = add("Gather", [blend, first]), add("Add", [add("Gather", [blend, second]), between])
        made = self._copy(node)
        for slot, (index, value) in enumerate(zip((first, second), blended, strict=True), start=3):
            made.input[slot] = self._mix(value, add("Gather", [source, index]), SHARE_NAME, others)
        several = add("Greater", [freedom, self._constant(np.array(0, np.int64))])
        return made, add("Where", [several, seen, known])

    def _mix(self, first: str, second: str, share: str, rest: str) -> str:
        """Return the name of ``rest * first + share * second``, where rest is 1 - share."""
        # Not first + share * (second - first), which at a share of 1 keeps the rounding of the first.
        return self._add("Add", [self._add("Mul", [rest, first]), self._add("Mul", [share, second])])

    def _take_norm(self, layout: Sequence[NormTensor]) -> None:
        """Take norm parameters from an input in place of a file, so that a session serves every update."""
        keys, places = _norm_keys(self.graph, layout), {place.key: place for place in layout}
        for tensor in self.graph.initializer:
            if tensor.name not in keys:
                continue
            place = places[keys[tensor.name]]
            start = place.offset // _FLOAT
            bounds = [self._constant(np.array([at], np.int64)) for at in (start, start + place.size)]
            flat = self._add("Slice", [NORM_NAME, *bounds])
            shape = self._constant(np.array(tensor.dims, np.int64))
            self._add("Reshape", [flat, shape], outputs=[tensor.name])
            self._taken.add(tensor.name)

    def _split(self, statistics: str, sizes: Sequence[int]) -> list[str]:
        outputs = [self._name() for _ in sizes]
        self._add("Split", [statistics, self._constant(np.array(sizes, np.int64))], outputs=outputs, axis=1)
        return outputs

    def _as_float(self, name: str) -> str:
        return self._add("Cast", [name], to=self.onnx.TensorProto.FLOAT)

    def _add(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str] | None = None, **attributes: int
    ) -> str:
        outputs = outputs or [self._name()]
        self._nodes.append(self.onnx.helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    def _name(self) -> str:
        self._count += 1
        return f"{self._prefix}.{self._count}"

    def _constant(self, value: np.ndarray) -> str:
        """Return the name of a constant; equal ones are stored once."""
        name = f"{self._prefix}.constant.{value.dtype}.{'x'.join(map(str, value.ravel()))}.{value.ndim}"
        self._constants.setdefault(name, self.onnx.numpy_helper.from_array(value, name))
        return name

    def _copy(self, node: Any) -> Any:
        copy = type(node)()
        copy.CopyFrom(node)
        return copy

    def _replace_initializers(self) -> None:
        """Drop the statistics that nothing uses any more, and add the constants."""
        used = {name for node in self.graph.node for name in (*node.input, *_names_inside(node))}
        used |= {output.name for output in self.graph.output}
        used -= self._taken
        kept = [self._copy(tensor) for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend([*kept, *self._constants.values()])

    def _all_names(self) -> set[str]:
        names = {tensor.name for tensor in self.graph.initializer}
        for node in self.graph.node:
            names |= {*node.input, *node.output} | _names_inside(node)
        return names

    def _free_names(self) -> None:
        """Refuse a model with values that are called as the new inputs and outputs are."""
        new = {NORM_NAME, KNOWN_NAME, RATE_NAME, SOURCE_NAME, SHARE_NAME, OBSERVED_NAME}
        taken = sorted(self._names & new)
        if taken:
            raise ExportError(
                f"the model has something of its own called {' and '.join(taken)}, as an input or output of the graph "
                "that observes statistics; give it another name"
            )
