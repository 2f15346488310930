"""Measure what statistics of a device's own cost in memory, over a bare session of ONNX Runtime with the same model.

Every line is of a process of its own; each is measured several times, and the median told. In MB (10^6 bytes):

``start``: the most until the agent is there. ``rest``: resident memory once it predicts and nothing is left to do.
``read``: the most while the first images of a domain are read. ``fold``: the most from the last of them until they are
folded. A model whose weights are absent is left out with the reason. Linux only. Examples::

    python benchmarks/speed/measure_memory.py
    python benchmarks/speed/measure_memory.py --rounds 1 --models digits-cnn
"""

# ruff: noqa: PLC0415 - each of its processes loads what it measures, and nothing else
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("CEMA_SHARED_DATA", str(HERE.parents[2] / "shared" / "data")))
# By model: the weights file that it needs, the images that a device reads, and how many at a time.
MODELS = {
    "digits-cnn": (None, 512, (1, 32)),
    "cifar-resnet20": ("cifar10_resnet20.safetensors", 512, (1, 32)),
    "efficientnet-lite0": (None, 64, (1, 8)),
}
KINDS = ("session", "update", "own")
NAMED = {
    "session": "a bare session",
    "update": "an agent without own statistics",
    "own": "an agent with own statistics",
}


def main() -> None:
    """Measure the models asked for; print a line for each process, and everything as JSON last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--process", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        job, *rest = options.process
        print(json.dumps(_export(*rest) if job == "export" else _measure(*rest)))
        return
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            weights, reads, batches = MODELS[model]
            told = _in_a_process("export", model, str(DATA / weights) if weights else "", f"{folder}/{model}")
            if "absent" in told:
                print(f"{model}: left out: {told['absent']}")
                continue
            for batch in batches:
                for kind in KINDS:
                    arguments = (kind, f"{folder}/{model}", str(batch), str(reads))
                    rounds = [_in_a_process("measure", *arguments) for _ in range(options.rounds)]
                    line = found[f"{model} {batch} {kind}"] = _summary(rounds)
                    shown = ", ".join(f"{key} {value:.1f}" for key, value in line.items())
                    print(f"{model}, {batch} at a time, {NAMED[kind]}: {shown}", flush=True)
    print(json.dumps(found))


def _summary(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the medians, and how far apart the rounds were at most."""
    medians = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    apart = max(max(each[key] for each in rounds) - min(each[key] for each in rounds) for key in medians)
    return medians | {"apart": apart}


def _in_a_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--process", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def _export(model: str, weights: str, path: str) -> dict[str, str]:
    """Export a bundle, in a process of its own: the others are to stay without torch."""
    from cema.errors import ModelError
    from cema.export.bundle import export_bundle
    from cema.formats.keys import generate_key
    from cema.models.registry import resolve

    if weights and not Path(weights).exists():
        return {"absent": f"expected its weights at {weights}; name their folder in CEMA_SHARED_DATA"}
    try:
        resolved = resolve(model, weights=weights or None)
    except ModelError as error:
        return {"absent": str(error)}
    key = generate_key(Path(path).with_suffix(".pem"))
    export_bundle(resolved, path, public_keys=[key.public_key()])
    return {}


def _measure(kind: str, bundle: str, batch: str, reads: str) -> dict[str, float]:
    if kind == "session":
        return _of_a_session(Path(bundle), int(batch))
    with tempfile.TemporaryDirectory() as state:
        return _of_an_agent(kind, bundle, state, int(batch), int(reads))


def _of_a_session(bundle: Path, batch: int) -> dict[str, float]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    (entry,) = session.get_inputs()
    images = np.random.default_rng(0).standard_normal((batch, *entry.shape[1:])).astype(np.float32)
    start = _most()
    for _ in range(20):
        session.run(None, {entry.name: images})
    return {"start": start, "rest": _resident()}


def _of_an_agent(kind: str, bundle: str, state: str, batch: int, reads: int) -> dict[str, float]:
    from cema.edge.agent import EdgeAgent
    from cema.edge.config import EdgeConfig
    from cema.ondevice.own_statistics import StatisticsConfig

    source: Any = kind
    config = StatisticsConfig(source=source, samples=reads, read=min(64, reads), every=10**9)
    with EdgeAgent(EdgeConfig(bundle=bundle, state=state, statistics=config)) as agent:
        golden = agent.bundle.golden_images
        images = golden[[i % len(golden) for i in range(batch)]]
        found = {"start": _most()}
        if agent._own is not None:
            _forget_most()
            for _ in range(reads // batch - 1):
                agent.predict(images)
            found["read"] = _most()
            _forget_most()
            _until_folded(agent, images)
            found["fold"] = _most()
        for _ in range(20):
            agent.predict(images)
        agent.flush(10.0)
        return found | {"rest": _resident()}


def _until_folded(agent: Any, images: Any) -> None:
    agent.predict(images)
    deadline = time.monotonic() + 120
    while not agent._own.folded:
        time.sleep(0.01)
        if time.monotonic() > deadline:
            raise SystemExit("the agent's statistics were not folded within two minutes; see its status")


def _resident() -> float:
    return _status("VmRSS")


def _most() -> float:
    """Return the most resident memory since the start, or since `_forget_most`."""
    return _status("VmHWM")


def _forget_most() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _status(name: str) -> float:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name)) * 1024 / 1e6


if __name__ == "__main__":
    main()
