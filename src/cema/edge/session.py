"""Opening sessions of ONNX Runtime over graphs whose external files are given in memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from cema.errors import FormatError

__all__ = ["open_session", "releasing_options"]


def open_session(
    path: Path, files: Mapping[str, bytes | mmap.mmap], *, threads: int
) -> onnxruntime.InferenceSession:
    """Open a session over a graph.

    Parameters
    ----------
    path : Path
        The graph.
    files : mapping of str to bytes or mmap
        Every file that it refers to, by the name it has there; none of them is read from the disk. ONNX Runtime copies
        what it needs of them before this returns.
    threads : int
        Threads one operator may use.

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    FormatError
        When ONNX Runtime cannot load the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    contents = list(files.values())
    options.add_external_initializers_from_files_in_memory(list(files), contents, [len(c) for c in contents])
    try:
        # By its path: of bytes in memory ONNX Runtime keeps a copy for a moment, and the process its pages.
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise FormatError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}; export it again"
        ) from error


def releasing_options() -> onnxruntime.RunOptions:
    """Return options of a run that gives back the memory of intermediate results when it ends."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
