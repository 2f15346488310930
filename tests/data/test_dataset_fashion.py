"""Fashion-MNIST: the IDX format, where it is looked for, and a checked download from a server on loopback."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from cema.data.dataset import open_dataset
from cema.data.fashion_mnist import (
    FASHION_MNIST_MD5,
    FASHION_MNIST_SHA256,
    FASHION_MNIST_URLS,
    dataset_folders,
    load_fashion_mnist,
    read_idx,
)
from cema.errors import ConfigError, ImageError

COUNT = 12
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
LABELS = (np.arange(COUNT) % 10).astype(np.uint8)
IMAGE_FILE, LABEL_FILE = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


NAMES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
ARRAYS = dict(zip(NAMES, (IMAGES, LABELS), strict=True))


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


SHA256 = {name: hashlib.sha256(idx(array)).hexdigest() for name, array in ARRAYS.items()}
PACKED = {f"{name}.gz": gzip.compress(idx(array), mtime=0) for name, array in ARRAYS.items()}
MD5 = {name: hashlib.md5(packed).hexdigest() for name, packed in PACKED.items()}


def write(folder: Path, packed: dict[str, bytes] = PACKED) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in packed.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("packed", [True, False])
def test_found_and_padded(tmp_path: Path, packed: bool) -> None:
    if packed:
        write(tmp_path / "b")
    else:
        write(tmp_path / "b", {name: idx(array) for name, array in ARRAYS.items()})
    images, labels = load_fashion_mnist(folders=[tmp_path / "a", tmp_path / "b"], urls=(), sha256=SHA256)
    assert images.shape == (COUNT, 32, 32, 1)
    assert images.dtype == np.uint8
    assert np.array_equal(images[:, 2:30, 2:30, 0], IMAGES)
    assert images.sum() == IMAGES.sum()
    assert labels.tolist() == LABELS.tolist()
    assert labels.dtype == np.int64


def test_found_however_it_was_packed(tmp_path: Path) -> None:
    write(tmp_path, {f"{name}.gz": gzip.compress(idx(array), 1, mtime=5) for name, array in ARRAYS.items()})
    images, _ = load_fashion_mnist(folders=[tmp_path], urls=(), sha256=SHA256)
    assert len(images) == COUNT


def test_found_files_are_checked(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ImageError, match=r"t10k-images-idx3-ubyte\.gz: expected content with sha256"):
        load_fashion_mnist(folders=[tmp_path], urls=())


def test_downloaded_once(tmp_path: Path, serve: Callable[[Path], str]) -> None:
    url = serve(write(tmp_path / "publisher"))
    images, labels = load_fashion_mnist(
        folders=(), download_to=tmp_path / "kept", urls=["http://127.0.0.1:1/", url], md5=MD5, sha256=SHA256
    )
    assert np.array_equal(images[:, 2:30, 2:30, 0], IMAGES)
    assert labels.tolist() == LABELS.tolist()
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == PACKED
    again, _ = load_fashion_mnist(folders=(), download_to=tmp_path / "kept", urls=(), sha256=SHA256)
    assert np.array_equal(images, again)


def test_download_of_something_else_leaves_nothing(tmp_path: Path, serve: Callable[[Path], str]) -> None:
    url = serve(write(tmp_path / "publisher"))
    kept = tmp_path / "kept"
    with pytest.raises(ConfigError, match=r"could not be downloaded .*MD5 hash.*known hash.*CEMA_DATA"):
        load_fashion_mnist(folders=(), download_to=kept, urls=[url])
    with pytest.raises(
        ConfigError, match=r"absent/t10k-images.*404.*http://127\.0\.0\.1:1/t10k-images.*refused"
    ):
        load_fashion_mnist(folders=(), download_to=kept, urls=[url + "absent/", "http://127.0.0.1:1/"])
    assert list(kept.iterdir()) == []


def test_usual_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEMA_DATA", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", "/somewhere/keras")
    places = dataset_folders()
    assert places[:3] == (tmp_path / "FashionMNIST/raw", tmp_path / "fashion-mnist", tmp_path)
    assert Path("/somewhere/keras/datasets/fashion-mnist") in places
    assert Path("/usr/share/datasets/fashion-mnist") in places
    monkeypatch.delenv("CEMA_DATA")
    assert tmp_path not in dataset_folders()


def test_published_files_are_known() -> None:
    parts = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    assert sorted(FASHION_MNIST_SHA256) == sorted(parts)
    assert sorted(FASHION_MNIST_MD5) == sorted(f"{name}.gz" for name in parts)
    assert all(url.endswith("/") for url in FASHION_MNIST_URLS)


@pytest.mark.parametrize("part", ["test", "train"])
def test_real_files_where_they_are_installed(part: Literal["test", "train"]) -> None:
    try:
        images, labels = load_fashion_mnist(part, urls=())
    except ConfigError:
        pytest.skip("Fashion-MNIST is not in any of the usual folders")
    count = 10_000 if part == "test" else 60_000
    assert images.shape == (count, 32, 32, 1)
    assert np.bincount(labels).tolist() == [count // 10] * 10


def test_opened_as_a_data_set_where_it_is_installed(tmp_path: Path) -> None:
    try:
        load_fashion_mnist(urls=())
    except ConfigError:
        pytest.skip("Fashion-MNIST is not in any of the usual folders")
    data = open_dataset("fashion-mnist", cache=tmp_path, limit=5)
    assert (data.name, data.classes, data.family, data.corruptions) == ("fashion-mnist", 10, "digits", None)
    assert data.clean().images[0].shape == (32, 32, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "IDX file of bytes"),
        (b"\x00\x00\x08\x02\x00\x00", "IDX file of bytes"),
        (idx(LABELS)[:-1], "12,.*got 11"),
        (idx(LABELS) + b"\x00", "12,.*got 13"),
    ],
)
def test_wrong_idx(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "array"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"array: .*{message}"):
        read_idx(path)


def test_wrong_gzip_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "array.gz"
    path.write_bytes(gzip.compress(idx(IMAGES))[:-20])
    with pytest.raises(ImageError, match=r"array\.gz: cannot be read"):
        read_idx(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(ImageError, match=r"array\.gz: cannot be read"):
        read_idx(path)
    short = dict(zip(NAMES, (idx(IMAGES[1:]), idx(LABELS)), strict=True))
    write(tmp_path, short)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in short.items()}
    with pytest.raises(ImageError, match=r"t10k-images.*as many labels, got \(11, 28, 28\) and \(12,\)"):
        load_fashion_mnist(folders=[tmp_path], urls=(), sha256=sums)
