"""A device with a small model of its own, the publisher's key, and a cloud on loopback that does as it is told."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper

from _parts import eventually
from cema.edge.agent import EdgeAgent
from cema.edge.background import Clock
from cema.edge.config import CloudLink, EdgeConfig, UpdateConfig, UploadConfig
from cema.edge.retry import Backoff
from cema.formats.bundle import Bundle, norm_layout, write_bundle
from cema.formats.payload import encode_payload, round_norm_state
from cema.formats.sample import Sample, decode_samples
from cema.formats.update import UPDATE_FORMAT, UpdateManifest, sign_update
from cema.ondevice.preprocess import Preprocessing
from cema.ondevice.selection.config import SelectionConfig

COHORT = "north"
YEAR = 365 * 86_400.0
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIDE, CLASSES = 12, 10
PREPROCESSING = Preprocessing(height=SIDE, width=SIDE, channels=3, mean=(127.0,) * 3, std=(64.0,) * 3)
HEAD = (4 * np.random.default_rng(0).standard_normal((CLASSES, 3))).astype(np.float32)
# Failures are followed by the next attempt almost at once, so that an attack takes seconds and not minutes.
QUICK = Backoff(base=0.01, cap=0.05, slow=0.05, soon=0.05)
NormState = Mapping[str, np.ndarray]


def norm_state(version: int) -> dict[str, np.ndarray]:
    """Return the norm state of a version: 0 is the bundle's own."""
    rng = np.random.default_rng(version)
    values = {"bn.scale": rng.normal(1.0, 0.1, 3), "bn.shift": rng.normal(0.2, 0.1, 3)}
    return round_norm_state({key: value.astype(np.float32) for key, value in values.items()})


def answers(state: NormState, images: np.ndarray) -> np.ndarray:
    """Return what the model answers with a norm state, computed without ONNX."""
    x = PREPROCESSING(images).astype(np.float64)
    scale, shift = (state[f"bn.{kind}"].astype(np.float64)[:, None, None] for kind in ("scale", "shift"))
    return np.maximum(x * scale + shift, 0).mean((2, 3)) @ HEAD.T.astype(np.float64)


def photographs(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def make_bundle(folder: Path) -> Bundle:
    """Write a bundle that trusts `KEY`."""
    state, golden = norm_state(0), photographs(4, seed=99)
    return write_bundle(
        folder / "bundle", model="small", model_bytes=_graph(state), norm_state=state, golden_images=golden,
        golden_logits=answers(state, golden).astype(np.float32), preprocessing=PREPROCESSING, classes=CLASSES,
        input_name="x", output_name="y", created_by="attacks", public_keys=[KEY.public_key()],
    )  # fmt: skip


def make_other_bundle(folder: Path, *, number: int, **changes: Any) -> Bundle:
    """Write a bundle with another base: the norm state is that of a version, and the graph has another name."""
    state, golden = norm_state(number), photographs(4, seed=99)
    given: dict[str, Any] = {
        "model": f"other {number}", "model_bytes": _graph(state, f"other {number}"), "norm_state": state,
        "golden_images": golden, "golden_logits": answers(state, golden).astype(np.float32),
        "preprocessing": PREPROCESSING, "classes": CLASSES, "input_name": "x", "output_name": "y",
        "created_by": "attacks", "public_keys": [KEY.public_key()],
    }  # fmt: skip
    return write_bundle(folder, **(given | changes))


def _graph(state: NormState, name: str = "small") -> bytes:
    epsilon = 1e-5
    constants = {"head": HEAD, "mean": np.zeros(3, np.float32), "var": np.full(3, 1 - epsilon, np.float32)}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    for entry in norm_layout(state):
        tensor = TensorProto(name=entry.key, data_type=TensorProto.FLOAT, dims=[entry.size])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "norm.bin"), ("offset", entry.offset), ("length", entry.length)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    nodes = [
        helper.make_node("BatchNormalization", ["x", "bn.scale", "bn.shift", "mean", "var"], ["n"], epsilon=epsilon),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "head"], ["y"], transB=1),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])]
    ends.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES]))
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


@dataclass(frozen=True)
class Update:
    """A version as its publisher made it."""

    manifest: UpdateManifest
    envelope: bytes
    payload: bytes


def make_update(bundle: Bundle, version: int, *, key: Ed25519PrivateKey = KEY, **changes: Any) -> Update:
    """Sign a version for a year.

    The changes are to its manifest, or the version whose norm state (`payload_of`) or
    golden logits (`golden_of`) it has.
    """
    state = norm_state(changes.pop("payload_of", version))
    golden = norm_state(changes.pop("golden_of")) if "golden_of" in changes else state
    payload = encode_payload(state, answers(golden, bundle.golden_images).astype(np.float32))
    fields: dict[str, Any] = {
        "cohort": COHORT, "version": version, "base": bundle.manifest.base, "created": int(time.time()),
        "expires": int(time.time() + YEAR), "payload": hashlib.sha256(payload).hexdigest(),
        "payload_bytes": len(payload), "format": UPDATE_FORMAT,
    }  # fmt: skip
    manifest = UpdateManifest(**(fields | changes))
    return Update(manifest, sign_update(manifest, key), payload)


class Cloud:
    """The protocol over a real socket, in the hands of whoever attacks.

    `envelope` is the newest update offered, `keys` the answer about keys, `artifacts` are the payloads by digest.
    `instead` is asked first, for every other request: what it returns true for, it has answered itself. `verdicts`
    makes the answer to an upload.
    """

    def __init__(self) -> None:
        self.envelope: bytes | None = None
        self.artifacts: dict[str, bytes] = {}
        self.stored: dict[str, Sample] = {}
        self.keys: bytes | None = None
        self.polls = self.uploads = self.asked_keys = 0
        self.instead: Callable[[BaseHTTPRequestHandler], bool] = lambda _: False
        self.verdicts: Callable[[list[Sample]], bytes] = self.honest
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def offer(self, update: Update, *, payload: bytes | None = None) -> None:
        """Offer an update, perhaps with another payload than its own under its digest."""
        self.artifacts[update.manifest.payload] = update.payload if payload is None else payload
        self.envelope = update.envelope

    def honest(self, samples: list[Sample]) -> bytes:
        self.stored |= {sample.id: sample for sample in samples}
        return verdicts_of(sample.id for sample in samples)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def verdicts_of(ids: Any, verdict: str = "stored") -> bytes:
    """Return the answer that gives all of these ids one verdict."""
    return json.dumps({"verdicts": [{"id": id_, "verdict": verdict, "reason": None} for id_ in ids]}).encode()


def _handler(cloud: Cloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def handle(self) -> None:
            with contextlib.suppress(OSError):
                super().handle()

        def reply(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("/reports"):
                self.reply(204)
                return
            cloud.uploads += 1
            if not cloud.instead(self):
                self.reply(200, cloud.verdicts(list(decode_samples(body))))

        def do_GET(self) -> None:
            if self.path.endswith("/keys"):
                cloud.asked_keys += 1
                self.reply(204 if cloud.keys is None else 200, cloud.keys or b"")
                return
            artifact = self.path.rpartition("/artifacts/")[2] if "/artifacts/" in self.path else None
            cloud.polls += artifact is None
            if cloud.instead(self):
                return
            body = cloud.envelope if artifact is None else cloud.artifacts.get(artifact)
            self.reply(204 if body is None else 200, body or b"")

    return Handler


class Device:
    """A real agent that polls all the time, whose clock can be set, and that can be restarted."""

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        bundle: Bundle | None = None,
        token: str = "secret",
        timeout: float = 0.5,
    ) -> None:
        self.timeout = timeout
        self.bundle = bundle or make_bundle(folder)
        self.folder, self.url, self.token = folder / "state", url, token
        self.ahead = 0.0  # seconds by which its clock is wrong
        self.start()

    def start(self, cohort: str = COHORT) -> None:
        config = EdgeConfig(
            bundle=str(self.bundle.path), state=str(self.folder),
            selection=SelectionConfig(e_min=0.0, e_max=1.0),  # nearly every image is sent
            upload=UploadConfig(
                linger_seconds=0.0, timeout_seconds=self.timeout, batch_samples=8, random_share=0.0
            ),
            update=UpdateConfig(poll_seconds=0.01),
            cloud=CloudLink(url=self.url, cohort=cohort, token=self.token),
        )  # fmt: skip
        clock = Clock(now=lambda: time.time() + self.ahead)
        self.agent = EdgeAgent(config, clock=clock, backoff=QUICK)

    def restart(self, cohort: str = COHORT) -> None:
        self.agent.close()
        self.start(cohort)

    def serves(self, version: int) -> bool:
        """Tell whether the model of that version answers, judged by its logits."""
        images = photographs(6, 5)
        got = self.agent.predict(images)
        wanted = answers(norm_state(version), images)
        return got.version == version and np.allclose(got.logits, wanted, rtol=1e-3, atol=1e-3)

    def see(self, count: int, seed: int = 0) -> int:
        """Predict images; return how many of them were selected."""
        return int(self.agent.predict(photographs(count, seed)).selected.sum())

    def installs(self, cloud: Cloud, version: int, **changes: Any) -> None:
        """Offer an honest version and wait until it serves."""
        cloud.offer(make_update(self.bundle, version, **changes))
        eventually(
            lambda: self.serves(version),
            f"version {version} was never installed: {self.agent.status().last_error}",
        )

    def has_considered(self, cloud: Cloud) -> None:
        """Wait until what the cloud offers now was certainly looked at: the second poll from here begins after it."""
        before = cloud.polls
        eventually(lambda: cloud.polls >= before + 3, "the device asks for updates no more")


@dataclass(frozen=True)
class Pair:
    """A device, and the cloud that it asks."""

    device: Device
    cloud: Cloud


@contextmanager
def device_and_cloud(folder: Path, *, timeout: float = 0.5) -> Iterator[Pair]:
    """Start a cloud and a device of it, with its `timeout_seconds`."""
    cloud = Cloud()
    device = Device(folder, cloud.url, timeout=timeout)
    try:
        yield Pair(device, cloud)
    finally:
        device.agent.close()
        cloud.close()
