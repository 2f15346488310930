"""A small real model with a NumPy twin, and a cloud on loopback that can misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper

from cema.edge.background import Clock
from cema.formats.bundle import Bundle, BundleStatistics, norm_layout, write_bundle
from cema.formats.keyring import encode_documents
from cema.formats.payload import encode_payload, round_norm_state
from cema.formats.report import DeviceReport, decode_report
from cema.formats.sample import Sample, decode_samples, sample_id
from cema.formats.update import UPDATE_FORMAT, UpdateManifest, sign_update
from cema.ondevice.folding import StatisticsLayer
from cema.ondevice.preprocess import Preprocessing

COHORT = "north"
CLASSES, SIDE, CHANNELS = 10, 12, (8, 16)
PREPROCESSING = Preprocessing(
    height=SIDE, width=SIDE, channels=3, mean=(120.0, 125.0, 130.0), std=(60.0, 65.0, 70.0)
)


def weights(seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes = {
        "w0": (CHANNELS[0], 3, 3, 3),
        "w1": (CHANNELS[1], CHANNELS[0], 3, 3),
        "fc": (CLASSES, CHANNELS[1]),
    }
    return {
        name: (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }


def norm_state(seed: int = 0, spread: float = 0.1) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(1000 + seed)
    return {
        f"bn{i}.{kind}": (base + spread * rng.standard_normal(size)).astype(np.float32)
        for i, size in enumerate(CHANNELS)
        for kind, base in (("scale", 1.0), ("shift", 0.1))
    }


def reference(
    state: Mapping[str, npt.NDArray[Any]], images: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """The model in float64 NumPy, independent of ONNX."""
    mean, inverse = np.array(PREPROCESSING.mean), np.array([1 / std for std in PREPROCESSING.std])
    x = ((images.astype(np.float64) - mean) * inverse).transpose(0, 3, 1, 2)
    w = weights()
    for i in range(2):
        x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
        x = np.einsum("nchwij,ocij->nohw", windows, w[f"w{i}"].astype(np.float64))
        scale, shift = (state[f"bn{i}.{k}"].astype(np.float64)[:, None, None] for k in ("scale", "shift"))
        x = np.maximum(x * scale + shift, 0)
    return 4 * x.mean(axis=(2, 3)) @ w["fc"].astype(np.float64).T


def onnx_bytes(state: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    epsilon = 1e-5
    w = weights()
    w["fc"] = 4 * w["fc"]
    tensors = [numpy_helper.from_array(value, name) for name, value in w.items()]
    for i, size in enumerate(CHANNELS):
        tensors.append(numpy_helper.from_array(np.zeros(size, np.float32), f"mean{i}"))
        tensors.append(numpy_helper.from_array(np.full(size, 1 - epsilon, np.float32), f"var{i}"))
    for entry in norm_layout(state):
        tensor = TensorProto(name=entry.key, data_type=TensorProto.FLOAT, dims=[entry.size])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "norm.bin"), ("offset", entry.offset), ("length", entry.length)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    nodes, last = [], "input"
    for i in range(2):
        parameters = [f"bn{i}.scale", f"bn{i}.shift", f"mean{i}", f"var{i}"]
        nodes += [
            helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", [f"c{i}", *parameters], [f"b{i}"], epsilon=epsilon),
            helper.make_node("Relu", [f"b{i}"], [f"r{i}"]),
        ]
        last = f"r{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def images(n: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)


# Not in the order of the network, nor in that of the norm state.
LAYERS = tuple(
    StatisticsLayer(layer=f"bn{i}", size=CHANNELS[i], eps=eps) for i, eps in ((1, 1e-3), (0, 1e-5))
)


def some_statistics(seed: int = 0) -> npt.NDArray[np.float32]:
    """Means and variances of `LAYERS`, (2, K)."""
    rng = np.random.default_rng(seed)
    total = sum(CHANNELS)
    return np.stack([rng.normal(0, 0.5, total), rng.uniform(0.3, 3, total)]).astype(np.float32)


def folded(
    affine: Mapping[str, npt.NDArray[Any]], statistics: npt.NDArray[Any]
) -> dict[str, npt.NDArray[np.float64]]:
    """Fold statistics of `LAYERS` by the formula, in float64."""
    state, start = {key: np.asarray(value, np.float64) for key, value in affine.items()}, 0
    for layer in LAYERS:
        mean, variance = np.asarray(statistics, np.float64)[:, start : start + layer.size]
        start += layer.size
        scale = state[f"{layer.layer}.scale"] / np.sqrt(variance + layer.eps)
        state[f"{layer.layer}.scale"] = scale
        state[f"{layer.layer}.shift"] = state[f"{layer.layer}.shift"] - mean * scale
    return state


def make_bundle(path: Path, key: Ed25519PrivateKey, statistics: BundleStatistics | None = None) -> Bundle:
    state = norm_state()
    golden = images(4, seed=99)
    return write_bundle(
        path,
        model="small",
        model_bytes=onnx_bytes(state),
        norm_state=state,
        golden_images=golden,
        golden_logits=reference(state, golden).astype(np.float32),
        preprocessing=PREPROCESSING,
        classes=CLASSES,
        input_name="input",
        output_name="logits",
        created_by="tests",
        public_keys=[key.public_key()],
        upload_side=SIDE,
        statistics=statistics,
    )


def make_bundle_with_statistics(path: Path, key: Ed25519PrivateKey) -> Bundle:
    """The same model, its norm state taken for folded with `some_statistics`, and a graph that nobody runs."""
    return make_bundle(path, key, BundleStatistics(LAYERS, b"observes nothing", some_statistics()))


@dataclass(frozen=True)
class Update:
    envelope: bytes
    payload: bytes
    manifest: UpdateManifest

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.envelope).hexdigest()}-{self.manifest.version}"'


def make_update(
    bundle: Bundle,
    key: Ed25519PrivateKey,
    version: int,
    *,
    golden: Any = None,
    payload: bytes | None = None,
    **changes: Any,
) -> Update:
    state = round_norm_state(norm_state(seed=version))
    logits = reference(state, bundle.golden_images) if golden is None else golden
    data = encode_payload(state, logits.astype(np.float32)) if payload is None else payload
    fields: dict[str, Any] = {
        "cohort": COHORT,
        "version": version,
        "base": bundle.manifest.base,
        "created": int(time.time()) - 10,
        "expires": int(time.time()) + 3600,
        "payload": hashlib.sha256(data).hexdigest(),
        "payload_bytes": len(data),
        "format": UPDATE_FORMAT,
    } | changes
    manifest = UpdateManifest(**fields)
    return Update(sign_update(manifest, key), data, manifest)


def make_sample(seed: int, size: int = 500) -> Sample:
    """A sample whose image has exactly `size` bytes (a raw image in name only, for tests of queues)."""
    image = np.random.default_rng(seed).bytes(size)
    return Sample(
        id=sample_id(image), image=image, entropy=0.5, label=seed % 10, version=0, captured_at=float(seed)
    )


@dataclass
class FakeTime:
    """Time that moves only when someone waits; every wait is remembered."""

    seconds: float = 1_000_000.0
    waits: list[float | None] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        return Clock(
            now=lambda: self.seconds,
            monotonic=lambda: self.seconds,
            wait=self._wait,
            uptime=lambda: ("one boot", self.seconds),
        )

    def _wait(self, event: threading.Event, seconds: float | None) -> bool:
        self.waits.append(seconds)
        self.seconds += seconds or 0.0
        return event.is_set()


@dataclass
class Answer:
    """What the cloud does with one request: a status, or something worse."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    reset: bool = False
    raw: bytes | None = None
    hold: threading.Event | None = None
    edit: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None


class Cloud:
    """The cloud's protocol over a real socket, storing samples by id; `script` makes it misbehave."""

    def __init__(self, token: str = "secret") -> None:
        self.token = token
        self.stored: dict[str, Sample] = {}
        self.received: list[list[str]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.queries: list[str] = []  # of the requests, in their order
        self.script: deque[Answer] = deque()
        self.update: Update | None = None
        self.artifacts: dict[str, bytes] = {}
        self.keys: list[bytes] | None = None  # the keys documents; None for a cloud that has no such thing
        self.keys_asked = 0
        self.reports: list[DeviceReport] | None = []  # None for a cloud that takes none
        self.notice: tuple[str, bytes] | None = (
            None  # the base that devices are to have, and the signed notice
        )
        self.bundle_files: dict[str, bytes] = {}  # by digest
        self.pieces: deque[Answer] = deque()  # what happens to the next requests for parts of these files
        self.updates: dict[str, Update] = {}  # by base, of a cohort that has had several
        self.changed = threading.Condition()
        self.entered = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def publish(self, update: Update) -> None:
        self.artifacts[update.manifest.payload] = update.payload
        self.update = update

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def wait_for(self, done: Callable[[], bool], timeout: float = 10.0) -> bool:
        with self.changed:
            return self.changed.wait_for(done, timeout)

    def store(self, body: bytes) -> list[dict[str, Any]]:
        verdicts = []
        samples = decode_samples(body)
        self.received.append([s.id for s in samples])
        for sample in samples:
            kind = "duplicate" if sample.id in self.stored else "stored"
            self.stored[sample.id] = sample
            verdicts.append({"id": sample.id, "verdict": kind, "reason": None})
        return verdicts

    def _handler(cloud) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def log_message(self, format: str, *args: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    super().handle()

            def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                if status not in (204, 304):
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if status not in (204, 304):
                    self.wfile.write(body)
                with cloud.changed:
                    cloud.changed.notify_all()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path.endswith("/reports"):
                    self.take_report(body)
                    return
                self.note()
                answer = cloud.script.popleft() if cloud.script else Answer()
                if self.misbehaved(answer):
                    return
                if self.headers["Authorization"] != f"Bearer {cloud.token}":
                    self.refuse()
                    return
                verdicts = cloud.store(body)
                if answer.edit is not None:
                    verdicts = answer.edit(verdicts)
                data = answer.body if answer.body is not None else json.dumps({"verdicts": verdicts}).encode()
                self.reply(200, data)

            def do_GET(self) -> None:
                if self.path.endswith("/keys"):
                    self.reply_keys()
                    return
                if self.path.partition("?")[0].endswith("/bundle") or "/bundles/" in self.path:
                    self.reply_bundle()
                    return
                self.note()
                answer = cloud.script.popleft() if cloud.script else Answer()
                if self.misbehaved(answer):
                    return
                if answer.body is not None:
                    self.reply(200, answer.body)
                elif "/artifacts/" in self.path:
                    data = cloud.artifacts.get(self.path.rsplit("/", 1)[1])
                    self.reply(404 if data is None else 200, data or b"")
                else:
                    self.reply_update()

            def reply_update(self) -> None:
                base = self.path.partition("base=")[2] or None
                update, told = cloud.update, {}
                if cloud.notice is not None and base is not None:
                    update, told = cloud.updates.get(base), {"CEMA_Base": cloud.notice[0]}
                if update is None:
                    self.reply(204, **told)
                elif self.headers["If-None-Match"] == update.etag:
                    self.reply(304, ETag=update.etag, **told)
                else:
                    self.reply(200, update.envelope, ETag=update.etag, **told)

            def reply_bundle(self) -> None:
                self.note()
                if "/bundles/" not in self.path:
                    self.reply(204) if cloud.notice is None else self.reply(200, cloud.notice[1])
                    return
                answer = cloud.pieces.popleft() if cloud.pieces else Answer()
                if self.misbehaved(answer):
                    return
                data = cloud.bundle_files.get(self.path.rsplit("/", 1)[1])
                if data is None:
                    self.reply(404, b"no such file")
                    return
                first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
                part = data[first : last + 1] if answer.body is None else answer.body
                where = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
                self.reply(206, part, Content_Range=where)

            def reply_keys(self) -> None:
                cloud.keys_asked += 1
                if cloud.keys is None:
                    self.reply(404, b"no such path")
                    return
                body = encode_documents(cloud.keys)
                tag = f'"{hashlib.sha256(body).hexdigest()}"'
                self.reply(304 if self.headers["If-None-Match"] == tag else 200, body, ETag=tag)

            def take_report(self, body: bytes) -> None:
                if cloud.reports is None:
                    self.reply(404, b"no such path")
                    return
                cloud.reports.append(decode_report(body))
                self.reply(204)

            def note(self) -> None:
                path, _, query = self.path.partition("?")
                cloud.requests.append((self.command, path, dict(self.headers.items())))
                cloud.queries.append(query)
                cloud.entered.set()

            def refuse(self) -> None:
                error = {"code": "token", "message": "the token is not known", "remedy": "enrol the device"}
                self.reply(401, json.dumps({"error": error}).encode())

            def misbehaved(self, answer: Answer) -> bool:
                if answer.hold is not None:
                    answer.hold.wait(20)
                if answer.reset:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return True
                if answer.raw is not None:
                    self.wfile.write(answer.raw)
                    self.close_connection = True
                    return True
                if answer.status != 200:
                    if answer.status == 401 and answer.body is None:
                        self.refuse()
                    else:
                        self.reply(
                            answer.status, b"no" if answer.body is None else answer.body, **answer.headers
                        )
                    return True
                return False

        return Handler
