"""What ``cema edge run`` prints: an event a line, as JSON for programs or as text for people."""

from __future__ import annotations

import errno
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO

import msgspec

from cema._util.units import human_bytes
from cema.formats.sample import Sample

__all__ = ["Form", "Lines", "as_json", "as_text"]

logger = logging.getLogger(__name__)

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
# A status comes about once a second: among the lines for images that people read, so often is too often.
_STATUS_SECONDS = 10.0

Form = Callable[[str, Mapping[str, Any]], Iterator[str]]
"""From the name and the fields of an event to its lines, if it has any."""


class Lines:
    """The lines of one run; whole ones, although two threads write them.

    Parameters
    ----------
    out : TextIO
    form : Form
        `as_json`, or what `as_text` returns.
    """

    def __init__(self, out: TextIO, form: Form) -> None:
        self._out, self._form, self._lock = out, form, threading.Lock()
        self._refused = False  # whether the disk under `out` took no line the last time

    def emit(self, event: str, **fields: Any) -> None:
        """Write the lines of an event.

        Raises
        ------
        OSError
            The reader went away. A disk that takes no line is told of once, and the run goes on.
        """
        with self._lock:
            refused = False
            try:
                for line in self._form(event, fields):
                    self._write(line)
            except OSError as error:
                if error.errno not in _DISK_ERRORS:
                    raise
                refused = True
                if not self._refused:
                    logger.warning(
                        "the lines of this program cannot be written: %s; it goes on without", error
                    )
            self._refused = refused

    def delivered(self, samples: Sequence[Sample]) -> None:
        """Tell which samples the cloud has."""
        # A reader that went away ends the run through the main thread's next line.
        with suppress(BrokenPipeError):
            moments = [sample.captured_at for sample in samples]
            self.emit("uploaded", captured_at=moments, bytes=[len(sample.image) for sample in samples])

    def _write(self, line: str) -> None:
        try:
            self._out.write(line + "\n")
        except UnicodeEncodeError:  # the terminal's encoding has no such letters
            self._out.write(_ascii(line) + "\n")
        self._out.flush()


def as_json(event: str, fields: Mapping[str, Any]) -> Iterator[str]:
    r"""Yield an event as one JSON object; text that is no UTF-8, as names of files may be, with escapes.

    Examples
    --------
    >>> [line[:19] for line in as_json("swap", {"version": 3})]
    ['{"event":"swap","ti']
    """
    whole = {"event": event, "time": time.time(), **fields}
    try:
        yield msgspec.json.encode(whole).decode()
    except UnicodeEncodeError:
        yield msgspec.json.encode(_escaped(whole)).decode()


def as_text() -> Form:
    """Return the form for people: a line for each image, and short lines for what else happens.

    Examples
    --------
    >>> fields = {"files": ["a.png"], "indices": [0], "labels": [7], "probabilities": [0.981]}
    >>> list(as_text()("prediction", fields))
    ['a.png  class 7  98.1 %']
    """
    texts = _Texts()
    return lambda event, fields: (_escaped(line) for line in texts.of(event, fields))


class _Texts:
    """Events as text; it knows when the last status was written, and which error it told of."""

    def __init__(self) -> None:
        self._due = time.monotonic() + _STATUS_SECONDS
        self._error: str | None = None

    def of(self, event: str, fields: Mapping[str, Any]) -> Iterator[str]:
        match event:
            case "prediction":
                yield from _image_lines(fields)
            case "started":
                count = f"{fields['images']} images, " if fields["images"] else ""
                yield (
                    f"started: {fields['source']}, {count}model {fields['model']}, version {fields['version']}"
                    f"{_passed_over(fields['passed_over'])}"
                )
            case "uploaded":
                yield f"uploaded: {len(fields['bytes'])} images, {human_bytes(sum(fields['bytes']))}"
            case "error":
                yield f"error: {fields['message']}"
            case "bundle":
                yield f"bundle: the model {fields['model']} serves now"
            case "swap":
                yield (
                    f"update: version {fields['version']} serves now (before: {fields['previous']}), "
                    f"{human_bytes(fields['bytes'])}"
                )
            case "waiting":
                yield f"waiting for uploads, {fields['seconds']:.0f} s at most; after Ctrl-C they go on next time"
            case "status":
                yield from self._status(fields)
            case "finished":
                yield f"finished ({fields['reason']}): {fields['images']} images; {_counts(fields)}"
                if fields["last_error"]:  # again, if it was told: many lines may stand between
                    yield f"error: {fields['last_error']}"

    def _status(self, fields: Mapping[str, Any]) -> Iterator[str]:
        error = fields["last_error"]
        if error != self._error:
            yield f"error: {error}" if error else "what was wrong has passed"
            self._error = error
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _STATUS_SECONDS
            yield f"status: {_counts(fields)}"


def _image_lines(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield file (or frame, or row), name of the class and probability of each image."""
    for i, label in enumerate(fields["labels"]):
        name = fields["class_names"][i] if "class_names" in fields else f"class {label}"
        yield f"{_place(fields, i)}  {name}  {100 * fields['probabilities'][i]:.1f} %"


def _place(fields: Mapping[str, Any], i: int) -> str:
    index = fields["indices"][i]
    if "files" not in fields:
        return f"row {index}"
    file = fields["files"][i]
    if "positions" in fields:
        return f"{file} {fields['positions'][i]:.2f} s"
    return f"{file} frame {index}" if "frames_dropped" in fields else f"{file}"


def _counts(status: Mapping[str, Any]) -> str:
    """Return what a device did, in words."""
    parts = [f"{status['predicted']} predicted in all"]
    parts += [f"{status['selected']} selected", f"{status['uploaded']} uploaded"]
    waiting = status["queued"] + status["spooled"]
    parts += [f"{waiting} wait to be sent"] if waiting else []
    parts += [f"{count} not sent ({reason})" for reason, count in status["dropped"].items() if count]
    return ", ".join([*parts, f"version {status['version']}"])


def _passed_over(counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    told = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in counts.items())
    return f"; no images: {told}"


def _escaped(value: Any) -> Any:
    """Replace what UTF-8 cannot hold in every text of a value."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    return value


def _ascii(line: str) -> str:
    """Return a line without letters that an encoding may lack; of an object, JSON's escapes."""
    try:
        return json.dumps(json.loads(line))
    except ValueError:
        return line.encode("ascii", "backslashreplace").decode()
