"""From what was asked for to a source of images."""

from __future__ import annotations

from pathlib import Path

from cema.edge.images.address import Kind, address_of
from cema.edge.images.array import ArraySource
from cema.edge.images.base import ImageSource
from cema.edge.images.folder import FolderSource, FollowedFolder
from cema.errors import ConfigError

__all__ = ["open_source"]

_FRAMES = {Kind.VIDEO, Kind.STREAM, Kind.CAMERA}


def open_source(source: Path | str, *, follow: bool = False, every: float = 0.0) -> ImageSource:
    """Open a folder of images, an array on disk, a video file, a stream or a camera.

    Parameters
    ----------
    source : Path or str
        A folder of images, subfolders included; a ``.npy`` file with uint8 (N, H, W, 1 or 3), which is mapped; a video
        file; the URL of a stream; ``camera:NUMBER`` or a camera's device file.
    follow : bool, default False
        Of a folder, also the files that come later, without end. Each is read when it has not changed for a second,
        and again when it is written anew.
    every : float, default 0.0
        Of a video, stream or camera, one frame in so many seconds at most; 0: all frames.

    Returns
    -------
    ImageSource
        Of a folder, the files sorted by path; those that come later, in the order of their times.

    Raises
    ------
    ImageError
        When the source is none of these, cannot be read, or is a folder without images that is not followed.
    ConfigError
        When something else than a folder is to be followed, `every` is not for such a source or below 0, or nothing
        installed can decode it.
    """
    if not 0 <= every < float("inf"):
        raise ConfigError(f"every: expected 0 seconds or more between two frames, got {every:g}")
    address = address_of(source)
    if follow and address.kind is not Kind.FOLDER:
        raise ConfigError(
            f"{address.name}: expected a folder to follow, got {address.kind.value}; leave out --follow"
        )
    if every and address.kind not in _FRAMES:
        raise ConfigError(
            f"{address.name}: expected a video, a stream or a camera to take some frames of, got "
            f"{address.kind.value}; leave out --every"
        )
    match address.kind:
        case Kind.FOLDER:
            return FollowedFolder(address.path) if follow else FolderSource(address.path)
        case Kind.ARRAY:
            return ArraySource(address.path)
        case Kind.VIDEO:
            from cema.edge.images.video import VideoSource  # noqa: PLC0415 - a device with a folder needs no more

            return VideoSource(address, every=every)
        case _:
            from cema.edge.images.live import LiveSource  # noqa: PLC0415

            return LiveSource(address, every=every)
