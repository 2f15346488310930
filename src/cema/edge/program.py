r"""The agent as a program: images in, JSON lines (or text, see `cema.edge.lines`) out.

Every line is an object with ``event`` and ``time`` (unix seconds):

=============  ========================================================================================
event          further keys
=============  ========================================================================================
`started`      `source`, `images` (known number of images), `passed_over` (by ending, how many files of a folder
                 are no images by their names), and the agent's status
`prediction`   `index` (of the first), `captured_at`, `labels`, `entropy`, `selected`, `drawn`, `version`,
                 `guarded`, `seconds`; for each image of the batch its place in the source (`indices`) and the
                 probability of its label (`probabilities`); where it is from (`files`), but for rows of an array;
                 of a video file its seconds from the start (`positions`); and where the bundle has names for its
                 classes, `class_names`. Of a stream or camera also `frames_dropped`: how many frames gave way to newer
                 ones or were damaged, since the start
`uploaded`     `captured_at` and `bytes` (as encoded) of each sample that the cloud answered it has
`error`        `file`, `message`, `index`: an image that cannot be read is reported and skipped, and keeps its place
                 in the source; for a folder that cannot be read and a stream that breaks, `index` is null
`bundle`       `base`, `model`, `previous`: the model of another bundle serves, as it came
`swap`         `version`, `digest`, `previous`: another version serves; `bytes` downloaded since the last one
`status`       the agent's status, about once a second
`waiting`      `seconds`: all images are predicted, and the program waits for uploads for so long at most
`finished`     `reason` (``end``, ``signal`` or ``closed``), `images`, the agent's status, and of a stream or
                 camera `frames_dropped`
=============  ========================================================================================

Nothing printed has the user, the password or the query of a URL.
Names of files that are no UTF-8 have escapes such as ``\udce9`` in place of what cannot be shown.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import msgspec
import numpy as np
import numpy.typing as npt

from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig
from cema.edge.images.base import ImageSource, Picture
from cema.edge.images.opened import open_source
from cema.edge.lines import Form, Lines, as_json
from cema.edge.status import Prediction
from cema.errors import ConfigError

__all__ = ["run"]

_STATUS_SECONDS = 1.0
_TICK_SECONDS = 0.2


def run(
    config: EdgeConfig,
    source: Path | str,
    *,
    rate: float | None = None,
    batch: int | None = None,
    linger: float = 0.0,
    follow: bool = False,
    every: float = 0.0,
    out: TextIO | None = None,
    form: Form = as_json,
    permits: threading.Semaphore | None = None,
) -> int:
    """Predict every image of a source, and report a line for each event.

    SIGTERM and SIGINT end it cleanly after the batch in work; so does a reader that goes away.

    Parameters
    ----------
    config : EdgeConfig
    source : Path or str
        A folder of images (sorted by path, subfolders included; see `cema.ondevice.image_folder.list_images`); a
        ``.npy`` file with uint8 (N, H, W, C), which is read piece by piece; a video file; the URL of a stream;
        ``camera:NUMBER``. Files with 16 bits per channel are scaled down to 8; transparency is ignored, the colours
        below it are what is predicted. Of a stream or camera the newest frame is predicted, and one that breaks is
        opened again.
    rate : float, optional
        Images per second; as fast as possible when left out.
    batch : int, optional
        Images per prediction; `config.batch` when left out.
    linger : float, default 0.0
        Seconds to wait, at most, after the last image until every selected or drawn sample is delivered.
    follow : bool, default False
        Go on with files that come into the folder, each when it has not changed for a second, until a signal. A
        file that is written anew is predicted again. Batches are not waited for: what is there is predicted.
    every : float, default 0.0
        Of a video, stream or camera, one frame in so many seconds at most; 0: all frames.
    out : TextIO, optional
        Standard output when left out.
    form : Form, optional
        `cema.edge.lines.as_json`, or what `cema.edge.lines.as_text` returns.
    permits : threading.Semaphore, optional
        Acquired once before each prediction: another thread decides when the next batch is due. Updates are installed
        and reported while it waits.

    Returns
    -------
    int
        Exit status: 0, or 1 when the reader of `out` went away.

    Raises
    ------
    ImageError
        When the source is none of these, cannot be read, or holds no images.
    ConfigError
        When `rate` or `batch` is not positive, or `linger` or `every` negative, `follow` or `every` is not for such a
        source, or no package that decodes videos is installed.
    """
    size = config.batch if batch is None else batch
    if size < 1:
        raise ConfigError(f"batch: expected at least 1 image per prediction, got {size}")
    if rate is not None and not rate > 0:
        raise ConfigError(
            f"rate: expected more than 0 images per second, got {rate:g}; leave it out for no limit"
        )
    if not linger >= 0:
        raise ConfigError(f"linger: expected 0 seconds or more, got {linger:g}")
    images = open_source(source, follow=follow, every=every)
    stream = sys.stdout if out is None else out
    stop = threading.Event()
    lines = Lines(stream, form)
    with _signals(stop), EdgeAgent(config, on_delivered=lines.delivered) as agent:
        session = _Session(agent, lines, stop)
        try:
            known = {"images": len(images), "passed_over": images.passed_over}
            session.emit("started", source=images.name, **known, **_status(agent))
            session.predict_all(images, size, rate, permits)
            session.linger(linger)
            agent.close()
            session.report()  # a swap of the last moment has its line too
            reason = "signal" if stop.is_set() else "end"
            dropped = {} if images.dropped is None else {"frames_dropped": images.dropped}
            session.emit("finished", reason=reason, images=session.seen, **dropped, **_status(agent))
        except BrokenPipeError:
            _discard(stream)
            return 1
    return 0


class _Session:
    """One run: what was seen so far, and when the next line is due."""

    def __init__(self, agent: EdgeAgent, lines: Lines, stop: threading.Event) -> None:
        self._agent, self._stop = agent, stop
        self.emit = lines.emit
        status = agent.status()
        self._version, self._bytes_down = status.version, status.bytes_down
        self._base = status.base
        self._status_due = time.monotonic() + _STATUS_SECONDS
        self.seen = 0

    def predict_all(
        self, images: ImageSource, size: int, rate: float | None, permits: threading.Semaphore | None
    ) -> None:
        started = time.monotonic()
        waiting: list[Picture] = []
        with closing(images.read(self._unreadable)) as pictures:
            for picture in pictures:
                if self._stop.is_set():
                    return
                if picture is not None:
                    waiting.append(picture)
                idle = picture is None and not waiting
                if idle:
                    self.report()
                    if rate is not None:  # time without images is not made up for by a burst
                        started = max(started, time.monotonic() - self.seen / rate)
                elif picture is None or len(waiting) == size:
                    if not self._permitted(permits):
                        return
                    self._predict(waiting, images.dropped)
                    waiting = []
                    if rate is not None and not self._pause_until(started + self.seen / rate):
                        return
        if waiting and self._permitted(permits):
            self._predict(waiting, images.dropped)

    def linger(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        told = False
        while not self._stop.is_set() and time.monotonic() < deadline:
            delivered = self._agent.flush(min(_TICK_SECONDS, max(0.0, deadline - time.monotonic())))
            self.report()
            if delivered:
                return
            if not told:
                self.emit("waiting", seconds=max(0.0, deadline - time.monotonic()))
                told = True

    def _permitted(self, permits: threading.Semaphore | None) -> bool:
        """Report until the next prediction may be made; return False when the run is to stop."""
        while not self._stop.is_set():
            if permits is None or permits.acquire(timeout=_TICK_SECONDS):
                return True
            self.report()
        return False

    def _pause_until(self, moment: float) -> bool:
        """Report until then; return False when the run is to stop."""
        while not self._stop.is_set():
            left = moment - time.monotonic()
            if left <= 0:
                return True
            self._stop.wait(min(left, _TICK_SECONDS))
            self.report()
        return False

    def _predict(self, pictures: list[Picture], dropped: int | None) -> None:
        started = time.monotonic()
        prediction = self._agent.predict([picture.pixels for picture in pictures])
        seconds = time.monotonic() - started
        # Which version is installed; that the guard keeps it from serving is no swap.
        self.report(None if prediction.guarded else prediction.version)
        self.emit(
            "prediction",
            index=pictures[0].index,
            captured_at=prediction.captured_at,
            labels=prediction.labels.tolist(),
            entropy=prediction.entropy.tolist(),
            selected=prediction.selected.tolist(),
            drawn=prediction.drawn.tolist(),
            version=prediction.version,
            guarded=prediction.guarded,
            seconds=seconds,
            indices=[picture.index for picture in pictures],
            probabilities=_probabilities(prediction.logits).tolist(),
            **_names(pictures, prediction),
            **({} if dropped is None else {"frames_dropped": dropped}),
        )
        self.seen += len(pictures)

    def report(self, version: int | None = None) -> None:
        status = self._agent.status()
        version = status.version if version is None else version
        if status.base != self._base:
            self.emit("bundle", base=status.base, model=status.model, previous=self._base)
            self._base = status.base
        if version != self._version:
            digest = status.digest if version == status.version else None
            down = status.bytes_down - self._bytes_down
            self.emit("swap", version=version, digest=digest, previous=self._version, bytes=down)
            self._version, self._bytes_down = version, status.bytes_down
        if time.monotonic() >= self._status_due:
            self._status_due = time.monotonic() + _STATUS_SECONDS
            self.emit("status", **msgspec.to_builtins(status))

    def _unreadable(self, index: int | None, file: Path | str, error: Exception) -> None:
        self.emit("error", file=str(file), message=str(error) or type(error).__name__, index=index)


def _names(pictures: list[Picture], prediction: Prediction) -> dict[str, list[Any]]:
    """Return the names of files and classes, and the positions in a video, as far as there are any."""
    names: dict[str, list[Any]] = {}
    files = [str(picture.file) for picture in pictures if picture.file is not None]
    if files:
        names["files"] = files
    positions = [picture.position for picture in pictures if picture.position is not None]
    if positions:
        names["positions"] = positions
    if prediction.class_names is not None:
        names["class_names"] = [prediction.class_names[label] for label in prediction.labels.tolist()]
    return names


def _probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the softmax of each row's greatest logit."""
    values = logits.astype(np.float64)
    below = values - values.max(axis=1, keepdims=True)
    return np.asarray(1 / np.exp(below).sum(axis=1))


def _status(agent: EdgeAgent) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(agent.status())
    return fields


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT set `stop`, where this thread may decide about signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _discard(out: TextIO) -> None:
    """Point a broken stream at nothing, or the interpreter would complain about it once more at its exit."""
    try:
        descriptor = out.fileno()
    except (OSError, ValueError):
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, descriptor)
    finally:
        os.close(nothing)
