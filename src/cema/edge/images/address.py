"""What the text after ``--source`` means, and how an address is shown without what is secret in it."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cema.errors import ImageError

__all__ = ["Address", "Kind", "address_of"]

_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "srt")
_URL = re.compile(
    r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)", re.DOTALL
)
_CAMERA = re.compile(r"camera:(?P<number>\d+)")
_VARIABLE = re.compile(r"env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)")
_VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".h264", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)


class Kind(Enum):
    """What there is to open."""

    FOLDER = "a folder"
    ARRAY = "an array"
    VIDEO = "a video file"
    STREAM = "a stream"
    CAMERA = "a camera"


@dataclass(frozen=True)
class Address:
    """Where images come from.

    Attributes
    ----------
    kind : Kind
    place : str
        What to open. Of a stream it may hold a password: show `name` in its place.
    name : str
        What it is called where people read it.
    """

    kind: Kind
    place: str
    name: str

    @property
    def path(self) -> Path:
        """The file or folder that it is."""
        return Path(self.place)


def address_of(source: Path | str) -> Address:
    """Tell what a source is by its text and, where it is a path, by what is there.

    Parameters
    ----------
    source : Path or str
        A folder, a ``.npy`` file, a video file, a URL, ``camera:NUMBER`` or a camera's device file; or ``env:NAME``:
        the environment variable of that name says which.

    Raises
    ------
    ImageError
        It is none of these, or there is nothing of that name.

    Examples
    --------
    >>> address_of("rtsp://admin:secret@10.0.0.7:554/main?channel=1").name
    'rtsp://10.0.0.7:554/main'
    >>> address_of("camera:0").place
    '0'
    """
    text = str(source)
    if variable := _VARIABLE.fullmatch(text):
        text = os.environ.get(variable["name"], "")
        if not text:
            raise ImageError(f"{source}: expected an address in this environment variable, got none; set it")
    if url := _URL.fullmatch(text):
        name = _without_secrets(url)
        if url["scheme"].lower() not in _SCHEMES:
            raise ImageError(
                f"{name}: expected a URL that begins with one of {', '.join(_SCHEMES)}; change it"
            )
        return Address(Kind.STREAM, text, name)
    if camera := _CAMERA.fullmatch(text):
        return Address(Kind.CAMERA, camera["number"], text)
    path = Path(text)
    kind = _kind_of_path(path)
    if kind is None and not path.exists():
        raise ImageError(
            f"{path}: there is no such file or folder; check the path, or name a URL or camera:NUMBER"
        )
    if kind is None:
        raise ImageError(
            f"{path}: expected a folder of images, a .npy file, a video file ({', '.join(_VIDEO_SUFFIXES)}), a URL "
            f"of a stream ({', '.join(_SCHEMES)}) or camera:NUMBER; check the path"
        )
    return Address(kind, text, text)


def _kind_of_path(path: Path) -> Kind | None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        # A camera may be plugged in later.
        return Kind.CAMERA if path.match("/dev/video*") else None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error}; check its permissions") from error
    if stat.S_ISDIR(mode):
        return Kind.FOLDER
    if stat.S_ISCHR(mode):
        return Kind.CAMERA
    if path.suffix.lower() == ".npy":
        return Kind.ARRAY
    return Kind.VIDEO if path.suffix.lower() in _VIDEO_SUFFIXES else None


def _without_secrets(url: re.Match[str]) -> str:
    """Return a URL without user, password, query and fragment: cameras take passwords in the query too."""
    # An unescaped "/", "?" or "#" in a password ends what looks like the host too early: then nothing is safe to show.
    if "@" in url["path"] + url["rest"]:
        return f"{url['scheme']}://***"
    return f"{url['scheme']}://{url['authority'].rpartition('@')[2]}{url['path']}"
