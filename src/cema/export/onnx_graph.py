"""From a torch module to an ONNX graph whose norm parameters lie in an external file."""

from __future__ import annotations

import importlib.util
import io
import logging
import re
import sys
import warnings
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cema.errors import ExportError
from cema.formats.bundle_manifest import NormTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

__all__ = ["INPUT_NAME", "OUTPUT_NAME", "build_graph", "move_norm_parameters"]

INPUT_NAME, OUTPUT_NAME = "images", "logits"


def build_graph(module: nn.Module, example: torch.Tensor) -> Any:
    """Export a module with a dynamic batch, keeping every normalisation node and every parameter's name.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode, float32, on the CPU.
    example : torch.Tensor
        An input (N, C, H, W) with N >= 2: torch takes a size of 1 for a constant.

    Returns
    -------
    onnx.ModelProto
        With the input ``images`` and the output ``logits``; without traces of the machine it was made on.

    Raises
    ------
    ExportError
        When a package is missing or torch cannot export the module; it names the layer and the operation.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"exporting needs {' and '.join(missing)}; pip install 'cema[cloud]'")
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
        except Exception as error:  # the tracer raises whatever the model's own code raises
            raise _not_traceable(module, error) from error
        try:
            # Unoptimised, because the optimiser folds BatchNorm into the convolution before it.
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                verbose=False,
            )
        except Exception as error:  # torch.onnx has many errors, most of them private
            raise _not_convertible(program, error) from error
    if exported is None:
        raise ExportError("torch.onnx.export returned nothing; use torch >= 2.6")
    proto = exported.model_proto
    _anonymise(proto)
    return proto


def move_norm_parameters(
    proto: Any, layout: Sequence[NormTensor], names: Mapping[str, Sequence[str]], norm_file: str
) -> list[str]:
    """Make the graph take its norm parameters from an external file.

    Parameters
    ----------
    proto : onnx.ModelProto
        Changed in place.
    layout : sequence of NormTensor
        Where each norm parameter lies in the file.
    names : mapping of str to sequence of str
        All names that each norm parameter has in the module, by norm key; the exporter keeps one of them.
    norm_file : str
        The file's name.

    Returns
    -------
    list of str
        The keys that the graph has no parameter for, because the model does not use it or it was folded away.
    """
    parameters = {tensor.name: tensor for tensor in proto.graph.initializer}
    absent = []
    for place in layout:
        found = [parameters[name] for name in names[place.key] if name in parameters]
        if not found:
            absent.append(place.key)
        for tensor in found:
            _move(tensor, place, norm_file)
    return absent


def _move(tensor: Any, place: NormTensor, norm_file: str) -> None:
    import onnx  # noqa: PLC0415 - checked by build_graph

    shape = list(tensor.dims)
    if tensor.data_type != onnx.TensorProto.FLOAT or torch.Size(shape).numel() != place.size:
        raise ExportError(
            f"{place.key}: expected {place.size} float32 values in the graph, got shape {shape} of type "
            f"{onnx.TensorProto.DataType.Name(tensor.data_type)}; cast the model to float32 first"
        )
    for field in ("raw_data", "float_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", norm_file), ("offset", place.offset), ("length", place.length)):
        tensor.external_data.add(key=key, value=str(value))


def _anonymise(proto: Any) -> None:
    """Drop what the exporter notes on every node: source lines with paths of this machine, and much of it."""
    graph = proto.graph
    del graph.value_info[:]
    for item in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
        item.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch says about itself, and keep what it prints before a refusal off the screen."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(
            ("torchvision is not installed", "Unable to find user code")
        )

    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx._internal.exporter._registration", "torch.fx.experimental.symbolic_shapes")
    ]
    printed = io.StringIO()
    for logger in loggers:
        logger.addFilter(keep)
    try:
        with warnings.catch_warnings(), redirect_stderr(printed):
            # torch copies a tree of its own and warns about the class that it made it of.
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            # A layer that keeps its features for somebody else does no harm.
            warnings.filterwarnings(
                "ignore", r"The tensor attributes? .* assigned during export", UserWarning
            )
            yield
        # Without a refusal it is the model's own forward, or a library, that has something to say.
        sys.stderr.write(printed.getvalue())
    finally:
        for logger in loggers:
            logger.removeFilter(keep)


def _not_traceable(module: nn.Module, error: Exception) -> ExportError:
    text = str(error)
    if "static shape" in text or "Constraints violated" in text or "specialized" in text.lower():
        return ExportError(
            "the model computes with a fixed batch size, a device's batches vary; in forward, replace the "
            f"number by x.shape[0] or -1 (torch says: {_summary(text)})"
        )
    layer = _innermost_layer(module, error.__traceback__)
    code = re.search(r'File "[^"]*", line \d+, in \w+\n\s*(\S.*)', text)
    where = f" at `{code.group(1).strip()}`" if code else ""
    return ExportError(
        f"torch cannot trace {layer}{where}: {type(error).__name__}: {_summary(text)}; a forward may not "
        "branch on values, nor leave torch: rewrite it with torch.where and tensor operations"
    )


def _not_convertible(program: Any, error: Exception) -> ExportError:
    messages = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(messages)
    operation = re.search(r"op='([\w.:]+)'", text) or re.search(r"target=torch\.ops\.([\w.]+)", text)
    node = re.search(r"translating node %(\w+)", text)
    layer = next((_layer_of(n) for n in program.graph.nodes if node and n.name == node.group(1)), None)
    if operation is None:
        return ExportError(
            f"torch.onnx.export failed: {_summary(messages[-1])}; try a newer torch and onnxscript, or "
            "replace the layer it names"
        )
    return ExportError(
        f"{layer or 'the model'}: the operation {operation.group(1)} has no ONNX form; "
        "replace it in the layer's forward by operations that have one"
    )


def _layer_of(node: Any) -> str | None:
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(path).removeprefix("L['self'].") for path, _ in stack.values()]
    return names[-1] if names and names[-1] else None


def _innermost_layer(module: nn.Module, traceback: TracebackType | None) -> str:
    names = {id(layer): name for name, layer in module.named_modules()}
    found = ""
    while traceback is not None:
        found = names.get(id(traceback.tb_frame.f_locals.get("self")), found)
        traceback = traceback.tb_next
    return f"the layer {found!r}" if found else "the model"


def _summary(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "no message")[:300]
