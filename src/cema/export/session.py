"""Running an exported graph, to check it."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from cema.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["open_session"]


def open_session(graph: bytes, files: Mapping[str, bytes]) -> Any:
    """Open a session of ONNX Runtime.

    Parameters
    ----------
    graph : bytes
        The model.
    files : mapping of str to bytes
        All files that it refers to, by their names.

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    ExportError
        When ONNX Runtime is missing or refuses the graph.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise ExportError("checking an export needs onnxruntime; pip install 'cema[cloud]'")
    import onnxruntime  # noqa: PLC0415 - only here

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    contents = list(files.values())
    options.add_external_initializers_from_files_in_memory(list(files), contents, [len(c) for c in contents])
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class of their own
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} refuses the exported graph: {error}; "
            "try a newer onnxruntime"
        ) from error
