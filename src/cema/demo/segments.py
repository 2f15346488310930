"""Streams: what devices see one after another, clean at first and then corrupted in one way after another."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cema.data.corruptions import check_corruption, corrupt_images
from cema.errors import ImageError

__all__ = ["DIGITS_SEGMENTS", "PHOTOGRAPH_SEGMENTS", "RandomView", "Segment", "Stream"]


@dataclass(frozen=True)
class Segment:
    """A part of a stream under one condition.

    Attributes
    ----------
    name : str
        What to call it in tables.
    corruption : str or None
        One of `cema.data.corruptions.CORRUPTIONS` or the validation ones; None for clean images.
    severity : int
        1 (mild) to 5 (strong); 0 for clean images.

    Raises
    ------
    ValueError
        If corruption and severity are unknown or do not go together.
    """

    name: str
    corruption: str | None = None
    severity: int = 0

    def __post_init__(self) -> None:
        if self.corruption is not None:
            check_corruption(self.corruption, self.severity)
        elif self.severity != 0:
            raise ValueError(
                f"segment {self.name!r} has severity {self.severity} but no corruption; use 0, or name one"
            )


#: Embedded digits: clean, then a noise, a blur, lost contrast and weather.
DIGITS_SEGMENTS: tuple[Segment, ...] = (
    Segment("clean"),
    Segment("gaussian noise", "gaussian_noise", 4),
    Segment("motion blur", "motion_blur", 3),
    Segment("fog", "fog", 3),
    Segment("snow", "snow", 5),
)

#: Photographs of ImageNet's size: the same families; a noise, a blur, weather and lost contrast.
PHOTOGRAPH_SEGMENTS: tuple[Segment, ...] = (
    Segment("clean"),
    Segment("gaussian noise", "gaussian_noise", 3),
    Segment("motion blur", "motion_blur", 4),
    Segment("snow", "snow", 3),
    Segment("contrast", "contrast", 4),
)


@dataclass(frozen=True)
class RandomView:
    """Another view of the same photograph: a part cut out at random and scaled back, maybe mirrored.

    Attributes
    ----------
    min_side : float
        Smallest share of each side that is kept, above 0 and at most 1.
    flip : bool
        Whether half of the views are mirrored left to right.

    Raises
    ------
    ValueError
        If `min_side` is out of range.
    """

    min_side: float = 0.8
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.min_side <= 1:
            raise ValueError(f"min_side must be above 0 and at most 1, got {self.min_side}")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a view of an image of uint8, shape (H, W, C), in the same shape."""
        from PIL import Image  # noqa: PLC0415 - only photographs need it

        height, width, channels = image.shape
        share = rng.uniform(self.min_side, 1.0)
        tall, wide = max(1, round(share * height)), max(1, round(share * width))
        top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        cut = image[top : top + tall, left : left + wide]
        if self.flip and rng.random() < 0.5:
            cut = cut[:, ::-1]
        if cut.shape != image.shape:
            picture = Image.fromarray(np.ascontiguousarray(cut[:, :, 0] if channels == 1 else cut))
            resized = picture.resize((width, height), Image.Resampling.BICUBIC)
            cut = np.asarray(resized).reshape(image.shape)
        return np.ascontiguousarray(cut)


class Stream:
    """An ordered stream of images made from labelled test images.

    Each segment has the same number of samples. Its order is a seeded shuffle, another one for every segment
    and every edge; when a segment is longer than the images are many, it goes through them again in a new
    order, and a repeated image gets a new view (if asked for) and a new draw of the corruption.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, H, W, C), or sequence of ndarray of uint8, shape (H, W, C)
        The source. A sequence may read its images when indexed.
    labels : sequence of int
        One label for each image.
    segments : sequence of Segment
        The conditions in their order.
    length : int, optional
        Samples in each segment; by default as many as there are images.
    seed : int
        Seed of everything random; the same seed and edge give the same stream.
    edge : int
        Which edge this is, 0 or more.
    view : RandomView, optional
        How repeated images differ from their first showing; by default not at all.

    Raises
    ------
    ValueError
        If there are no images or segments, labels do not match, or length or edge is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> stream = Stream(np.zeros((4, 32, 32, 1), np.uint8), [0, 1, 2, 3], [Segment("clean")], length=6)
    >>> len(stream), len(stream.images(2, 5))
    (6, 3)
    """

    def __init__(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        labels: Sequence[int] | np.ndarray,
        segments: Sequence[Segment],
        *,
        length: int | None = None,
        seed: int = 0,
        edge: int = 0,
        view: RandomView | None = None,
    ) -> None:
        if not len(images) or not segments:
            raise ValueError(f"a stream needs images and segments, got {len(images)} and {len(segments)}")
        if len(labels) != len(images):
            raise ValueError(f"expected one label for each of {len(images)} images, got {len(labels)}")
        self.length = len(images) if length is None else length
        if self.length < 1 or edge < 0 or seed < 0:
            raise ValueError(
                f"length must be at least 1, edge and seed at least 0; got {self.length}, {edge} and {seed}"
            )
        self.segments = tuple(segments)
        self._images, self._view = images, view
        self._seed, self._edge = seed, edge
        source = np.asarray(labels, dtype=np.int64)
        #: Index of the source image at each place, int64 (segments * length,).
        self.order = np.concatenate([self._shuffled(index) for index in range(len(self.segments))])
        #: Label at each place, int64 (segments * length,).
        self.labels = source[self.order]

    def __len__(self) -> int:
        return len(self.order)

    def images(
        self,
        start: int,
        stop: int,
        *,
        processes: int = 1,
        progress: Callable[[int, int], object] | None = None,
    ) -> list[np.ndarray]:
        """Make the images at places ``start`` to ``stop - 1``.

        Parameters
        ----------
        start, stop : int
            Range of places; may run over several segments.
        processes, progress
            As for `cema.data.corruptions.corrupt_images`; the progress is over this call.

        Returns
        -------
        list of ndarray of uint8, shape (H, W, C)
            The same whatever range they are asked for in.

        Raises
        ------
        IndexError
            If the range leaves the stream.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"the stream has {len(self)} places, got the range {start} to {stop}")
        made: list[np.ndarray] = []
        while start < stop:
            segment, repeat = self.segments[start // self.length], self._repeat(start)
            # Up to the end of this segment or of this pass through the images: one seed is for both.
            pass_end = start // self.length * self.length + (repeat + 1) * len(self._images)
            end = min(stop, (start // self.length + 1) * self.length, pass_end)
            plain = [self._seen(place) for place in range(start, end)]
            if segment.corruption is None:
                made += plain
            else:
                made += corrupt_images(
                    plain,
                    segment.corruption,
                    segment.severity,
                    seed=self._draw(start // self.length, repeat),
                    processes=processes,
                )
            start = end
            if progress is not None:
                progress(len(made), len(made) + stop - start)
        return made

    def save(
        self, path: Path, *, processes: int = 1, progress: Callable[[int, int], object] | None = None
    ) -> None:
        """Write all images into one ``.npy`` file (uint8, NHWC) without holding them in memory at once.

        Parameters
        ----------
        path : Path
            The file; it appears whole or not at all.
        processes : int
            As for `images`.
        progress : callable, optional
            Called with the samples written and their number in all.

        Raises
        ------
        ImageError
            If the images are not all of one shape.
        """
        shape = self._images[0].shape
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        try:
            # Rows of the file are filled as they are made; numpy writes the header.
            table = np.lib.format.open_memmap(name, mode="w+", dtype=np.uint8, shape=(len(self), *shape))
            # Each call starts its processes anew, so with several it has to be worth their while.
            step = 256 if processes == 1 else 2048
            for start in range(0, len(self), step):
                stop = min(start + step, len(self))
                for place, image in enumerate(self.images(start, stop, processes=processes), start):
                    if image.shape != shape:
                        raise ImageError(
                            f"expected every image as {shape} to fit one file, got {image.shape} at place "
                            f"{place}; resize the source images to one size"
                        )
                    table[place] = image
                if progress is not None:
                    progress(stop, len(self))
            table.flush()
            del table
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _repeat(self, place: int) -> int:
        return place % self.length // len(self._images)

    def _shuffled(self, segment: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, self._edge, segment))
        passes = -(-self.length // len(self._images))
        order = np.concatenate([rng.permutation(len(self._images)) for _ in range(passes)])
        return order[: self.length].astype(np.int64)

    def _draw(self, segment: int, repeat: int) -> int:
        state = np.random.SeedSequence((self._seed, self._edge, segment, repeat)).generate_state(2, np.uint64)
        return int(state[0])

    def _seen(self, place: int) -> np.ndarray:
        index, segment, repeat = int(self.order[place]), place // self.length, self._repeat(place)
        image = self._images[index]
        if self._view is None or repeat == 0:
            return image
        return self._view(image, np.random.default_rng((self._seed, self._edge, segment, repeat, index)))
