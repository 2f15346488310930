"""Fashion-MNIST: 70,000 grey pictures of clothes, found in the usual folders or downloaded.

References
----------
.. [1] H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
   Algorithms", arXiv:1708.07747, 2017.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from cema._util.folders import user_cache
from cema.data.base import Dataset, DatasetOptions
from cema.data.npz import array_dataset
from cema.errors import ConfigError, ImageError

__all__ = [
    "FASHION_MNIST_MD5",
    "FASHION_MNIST_SHA256",
    "FASHION_MNIST_URLS",
    "FashionMnistReader",
    "dataset_folders",
    "load_fashion_mnist",
    "read_idx",
]

#: sha256 of what the files hold unpacked: some who pass them on have packed them anew.
FASHION_MNIST_SHA256: dict[str, str] = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

#: MD5 of the published files, as torchvision documents them; a download must be one of these.
FASHION_MNIST_MD5: dict[str, str] = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}

#: Where the publisher, Zalando, keeps them; tried in this order.
FASHION_MNIST_URLS: tuple[str, ...] = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)

_PARTS = {"train": "train", "test": "t10k"}
_SIDE = 28
_PADDED = 32
_TIMEOUT = 30.0
# The checksum is that of the compressed file, which no transport may unpack or pack again.
_HEADERS = {"Accept-Encoding": "identity"}


def load_fashion_mnist(
    part: Literal["train", "test"] = "test",
    *,
    folders: Sequence[Path] | None = None,
    download_to: Path | None = None,
    urls: Sequence[str] = FASHION_MNIST_URLS,
    md5: Mapping[str, str] = FASHION_MNIST_MD5,
    sha256: Mapping[str, str] = FASHION_MNIST_SHA256,
) -> tuple[np.ndarray, np.ndarray]:
    """Load one part of Fashion-MNIST.

    Parameters
    ----------
    part : {"train", "test"}
        60,000 or 10,000 images.
    folders : sequence of Path, optional
        Where to look for the files, compressed or not; by default `dataset_folders`.
    download_to : Path, optional
        The folder that keeps what is downloaded; by default ``fashion-mnist`` below ``$CEMA_DATA``, or in the
        user's cache.
    urls : sequence of str
        Where to download from, ending in a slash.
    md5 : mapping of str to str
        The MD5 of each compressed file as it is published.
    sha256 : mapping of str to str
        The sha256 of what each file holds unpacked.

    Returns
    -------
    images : ndarray of uint8, shape (N, 32, 32, 1)
        Grey images, 0 is background; the 28 x 28 originals with two pixels of background around them.
    labels : ndarray of int64, shape (N,)
        0 to 9: T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot.

    Raises
    ------
    ConfigError
        If the files are nowhere and cannot be downloaded.
    ImageError
        If a file is not what it should be; the message names it.
    """
    places = dataset_folders() if folders is None else folders
    target = _own_folder() if download_to is None else download_to
    names = [f"{_PARTS[part]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    files = [_locate(name, (*places, target), target, urls, md5) for name in names]
    images, labels = (read_idx(path, sha256=sha256[name]) for path, name in zip(files, names, strict=True))
    if images.ndim != 3 or images.shape[1:] != (_SIDE, _SIDE) or labels.shape != (len(images),):
        raise ImageError(
            f"{files[0]}: expected (images, {_SIDE}, {_SIDE}) and as many labels, got {images.shape} and "
            f"{labels.shape}; remove both files"
        )
    margin = (_PADDED - _SIDE) // 2
    padded = np.pad(images[..., None], ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return padded, labels.astype(np.int64)


def dataset_folders() -> tuple[Path, ...]:
    """Return the folders where Fashion-MNIST may lie already.

    Returns
    -------
    tuple of Path
        Below ``$CEMA_DATA``, ``./data``, ``~/data`` and ``~/.cache/torch`` as torchvision lays it out
        (``FashionMNIST/raw``) and plainly, Keras's folder, and ``/usr/share/datasets/fashion-mnist``, where Debian's
        package dataset-fashion-mnist puts it.
    """
    home = Path.home()
    roots = [Path("data"), home / "data", home / "datasets", home / ".cache" / "torch"]
    if given := os.environ.get("CEMA_DATA"):
        roots.insert(0, Path(given))
    below = ("FashionMNIST/raw", "fashion-mnist", "")
    keras = Path(os.environ.get("KERAS_HOME", home / ".keras"))
    system = [Path(prefix) / "share" / "datasets" / "fashion-mnist" for prefix in ("/usr/local", "/usr")]
    return (
        *(root / name for root in roots for name in below),
        keras / "datasets" / "fashion-mnist",
        *system,
    )


def _own_folder() -> Path:
    if given := os.environ.get("CEMA_DATA"):
        return Path(given) / "fashion-mnist"
    return user_cache("fashion-mnist")


def _locate(
    name: str, places: Sequence[Path], target: Path, urls: Sequence[str], md5: Mapping[str, str]
) -> Path:
    """Return a file that is there, packed or not, or download it."""
    packed = f"{name}.gz"
    for folder in places:
        for path in (folder / packed, folder / name):
            if path.is_file():
                return path
    failures = []
    for url in urls:
        try:
            return _download(url + packed, target, md5[packed])
        except ConfigError as error:
            failures.append(str(error))
    raise ConfigError(
        f"{packed} of Fashion-MNIST was not found and could not be downloaded ({'; '.join(failures)}); put the files "
        f"of Fashion-MNIST into {target}, or set CEMA_DATA to the folder that has them"
    )


def _download(url: str, folder: Path, md5: str) -> Path:
    """Download a file; it appears under its name only whole and with the expected checksum."""
    try:
        import pooch  # noqa: PLC0415 - only downloads need it
        import requests  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"{url}: downloads need pooch; pip install pooch") from error

    downloader = pooch.HTTPDownloader(headers=_HEADERS, timeout=_TIMEOUT)
    name = url.rpartition("/")[2]
    try:
        return Path(pooch.retrieve(url, f"md5:{md5}", fname=name, path=folder, downloader=downloader))
    except (requests.RequestException, ValueError, OSError) as error:
        raise ConfigError(f"{url}: {str(error) or type(error).__name__}") from error


def read_idx(path: Path, *, sha256: str | None = None) -> np.ndarray:
    """Read an array in the IDX format of MNIST, gzip-compressed where the name ends in ``.gz``.

    Parameters
    ----------
    path : Path
        Two zero bytes, the type (8: unsigned bytes), the number of dimensions, each as a big-endian 32-bit number,
        then the values.
    sha256 : str, optional
        The sha256 that all of this must have, in lowercase hexadecimal.

    Returns
    -------
    ndarray of uint8
        In the shape that the file gives.

    Raises
    ------
    ImageError
        If it is truncated, another format or has another checksum; the message names it.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{path}: cannot be read ({error}); remove the file") from error
    dimensions = data[3] if len(data) >= 4 else 0
    start = 4 + 4 * dimensions
    if data[:3] != b"\x00\x00\x08" or not dimensions or len(data) < start:
        raise ImageError(
            f"{path}: expected an IDX file of bytes, got one that begins with {data[:4].hex()!r}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != int(np.prod(shape, dtype=np.int64)):
        raise ImageError(
            f"{path}: expected {shape} values after the header, got {len(data) - start}; remove the file"
        )
    if sha256 is not None and (got := hashlib.sha256(data).hexdigest()) != sha256:
        raise ImageError(f"{path}: expected content with sha256 {sha256}, got {got}; remove the file")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


class FashionMnistReader:
    """Opens fashion-mnist; see `cema.data.base.DatasetReader`."""

    name = "fashion-mnist"
    expects = "fashion-mnist"
    needs_path = False

    def matches(self, path: Path) -> bool:
        """Tell whether a path is of this kind."""
        return False

    def open(self, path: Path | None, options: DatasetOptions) -> Dataset:
        """Open it."""
        folder = None if options.cache is None else options.cache / "fashion-mnist"
        images, labels = load_fashion_mnist(download_to=folder)
        return array_dataset("fashion-mnist", images, labels, classes=10, options=options)
