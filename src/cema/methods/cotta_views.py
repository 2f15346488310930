"""The augmented views of CoTTA, in plain torch.

The published pipeline: colour jitter with gamma, in random order; a border of edge pixels; rotation, shift and scale;
Gaussian blur; crop; horizontal flip; noise. Every view has one set of random parameters for its whole batch, as in the
authors' program, where transforms are given batches; so a view is a few operations on one tensor that stays in the
cache, and batch statistics are of one kind of image. RoTTA and ROID learn from such views too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from cema.ondevice.preprocess import Preprocessing

__all__ = [
    "Border",
    "Scene",
    "View",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_gamma",
    "adjust_hue",
    "adjust_saturation",
    "apply_view",
    "draw_view",
]

Border = Literal["edge", "reflect"]
"""What lies outside of an image: its nearest edge pixel, or the image mirrored at its edge pixels."""

# ITU-R 601, as torchvision rounds it.
_LUMA = (0.2989, 0.587, 0.114)
_NOISE = 0.005
_DEGREES, _LEAST_SCALE, _MOST_SCALE = 15.0, 0.9, 1.1
# A sixteenth of the image with its border, which is half the image on each side.
_SHIFT = 2 / 16
# Five taps.
_REACH = 2
# Values handled at a time on a CPU: 1 MiB of float32 stays in the cache.
_PIECE = 2**18


@dataclass(frozen=True)
class View:
    """The random parameters of one view.

    Attributes
    ----------
    order : tuple of str
        In which order the colours are adjusted.
    brightness, contrast, saturation, gamma : float
        Factors (gamma: an exponent) that change nothing at 1.
    hue : float
        Shift around the circle of hues, which has length 1.
    angle : float
        Rotation in radians.
    scale : float
        Enlargement.
    right, down : int
        Shift in pixels.
    sigma : float
        Deviation of the blur in pixels.
    flip : bool
        Whether to mirror left and right.
    """

    order: tuple[str, ...] = ("brightness", "contrast", "saturation", "hue", "gamma")
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    gamma: float = 1.0
    angle: float = 0.0
    scale: float = 1.0
    right: int = 0
    down: int = 0
    sigma: float = 0.001
    flip: bool = False


def draw_view(rng: np.random.Generator, height: int, width: int, flip: float = 0.5) -> View:
    """Draw the parameters of a view of images of that size, mirrored with probability `flip`."""
    names = View().order
    return View(
        order=tuple(names[i] for i in rng.permutation(len(names))),
        brightness=rng.uniform(0.6, 1.4),
        contrast=rng.uniform(0.7, 1.3),
        saturation=rng.uniform(0.5, 1.5),
        hue=rng.uniform(-0.06, 0.06),
        gamma=rng.uniform(0.7, 1.3),
        angle=math.radians(rng.uniform(-_DEGREES, _DEGREES)),
        scale=rng.uniform(_LEAST_SCALE, _MOST_SCALE),
        right=round(rng.uniform(-_SHIFT * width, _SHIFT * width)),
        down=round(rng.uniform(-_SHIFT * height, _SHIFT * height)),
        sigma=rng.uniform(0.001, 0.5),
        flip=bool(rng.random() < flip),
    )


def apply_view(
    pixels: torch.Tensor,
    view: View,
    generator: torch.Generator | None,
    noise: float = _NOISE,
    border: Border = "edge",
) -> torch.Tensor:
    """Return a batch as a view shows it.

    Parameters
    ----------
    pixels : torch.Tensor
        Shape (N, C, H, W) in 0..1; C is 1 or 3. Saturation and hue say nothing about grey images.
    view : View
        What to do.
    generator : torch.Generator, optional
        Of the noise, on the pixels' device.
    noise : float, default 0.005
        The noise's deviation.
    border : {"edge", "reflect"}
        What rotation and shift bring in from outside of the image.

    Returns
    -------
    torch.Tensor
        A new tensor of the same shape, in 0..1.
    """
    piece = max(1, _PIECE // pixels[0].numel()) if pixels.device.type == "cpu" else len(pixels)
    return torch.cat([_apply(part, view, generator, noise, border) for part in torch.split(pixels, piece)])


class Scene:
    """A model's inputs, to be seen in augmented views.

    Parameters
    ----------
    inputs : torch.Tensor
        As `cema.adapt.adaptable.AdaptableModel.inputs` returns them, (N, C, H, W).
    preprocessing : Preprocessing
        The model's; views are of the pixels before it.
    """

    def __init__(self, inputs: torch.Tensor, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        self._layout = torch.contiguous_format if inputs.is_contiguous() else torch.channels_last
        mean, std = _constants(preprocessing, inputs)
        self._pixels = (inputs * std + mean).div_(255.0).clamp_(0.0, 1.0).contiguous()

    def seen(
        self,
        view: View,
        generator: torch.Generator | None,
        noise: float = _NOISE,
        border: Border = "edge",
    ) -> torch.Tensor:
        """Return the inputs as a view shows them, (N, C, H, W); the parameters are those of `apply_view`."""
        pixels = apply_view(self._pixels, view, generator, noise, border)
        mean, std = _constants(self._preprocessing, pixels)
        inputs = (pixels - mean / 255.0).mul_(255.0 / std)
        return inputs.contiguous(memory_format=self._layout)


def _constants(preprocessing: Preprocessing, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (
        torch.tensor(values, dtype=like.dtype, device=like.device).reshape(1, -1, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return mean, std


def _apply(
    pixels: torch.Tensor, view: View, generator: torch.Generator | None, noise: float, border: Border
) -> torch.Tensor:
    adjust: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
        "brightness": adjust_brightness,
        "contrast": adjust_contrast,
        "saturation": adjust_saturation,
        "hue": adjust_hue,
        "gamma": adjust_gamma,
    }
    for name in view.order:
        pixels = adjust[name](pixels, getattr(view, name))
    pixels = _blur(_move(pixels, view, border), view.sigma)
    if view.flip:
        pixels = pixels.flip(3)
    if noise:
        draws = torch.empty(pixels.shape, dtype=pixels.dtype, device=pixels.device)
        pixels = draws.normal_(0.0, noise, generator=generator).add_(pixels)
    return pixels.clamp_(0.0, 1.0)


def adjust_brightness(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Return pixels (N, C, H, W) in 0..1, multiplied."""
    return (pixels * factor).clamp_(0.0, 1.0)


def adjust_contrast(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Return pixels (N, C, H, W) in 0..1, moved away from their image's mean grey."""
    mean = _grey(pixels).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, pixels, factor).clamp_(0.0, 1.0)


def adjust_saturation(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Return pixels (N, C, H, W) in 0..1, moved away from their own grey; grey images as they are."""
    if pixels.shape[1] == 1:
        return pixels
    return torch.lerp(_grey(pixels), pixels, factor).clamp_(0.0, 1.0)


def adjust_gamma(pixels: torch.Tensor, exponent: float) -> torch.Tensor:
    """Return pixels (N, C, H, W) in 0..1, raised to a power."""
    return pixels.clamp(1e-8, 1.0).pow_(exponent)


def adjust_hue(pixels: torch.Tensor, shift: float) -> torch.Tensor:
    """Return pixels (N, C, H, W) in 0..1, their hue turned; grey images as they are.

    With value v and chroma c, a channel is v - c (1 - w) where w, in 0..1, says how much there is of its colour in the
    hue h (in sixths of the circle): |h - 3| - 1 for red, 2 - |h - 2| for green and 2 - |h - 4| for blue.
    """
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.unbind(dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # How far from the brightest channel towards the next one, plus where the brightest is.
    hue = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    hue = hue.div_(chroma.clamp_min(1e-12)).add_(6.0 * shift).remainder_(6.0)
    shares = ((hue - 3.0).abs_().sub_(1.0), 2.0 - (hue - 2.0).abs_(), 2.0 - (hue - 4.0).abs_())
    channels = [value - chroma * (1.0 - share.clamp_(0.0, 1.0)) for share in shares]
    return torch.stack(channels, dim=1)


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _move(pixels: torch.Tensor, view: View, border: Border) -> torch.Tensor:
    """Rotate, scale and shift about the centre, with a rim as wide as the blur reaches."""
    count, _, height, width = pixels.shape
    kind = {"dtype": pixels.dtype, "device": pixels.device}
    x = torch.arange(width + 2 * _REACH, **kind) - ((width - 1) / 2 + _REACH + view.right)  # type: ignore[call-overload]
    y = torch.arange(height + 2 * _REACH, **kind) - ((height - 1) / 2 + _REACH + view.down)  # type: ignore[call-overload]
    cosine, sine = math.cos(view.angle) / view.scale, math.sin(view.angle) / view.scale
    # Where each pixel comes from, from the centre; grid_sample measures in halves of the image. Aligned to the centres
    # of the corner pixels, it mirrors at the centres of edge pixels, so that none of them is there twice.
    mirrored = border == "reflect"
    across = (cosine * x[None, :] + sine * y[:, None]) * (2 / max(1, width - mirrored))
    along = (cosine * y[:, None] - sine * x[None, :]) * (2 / max(1, height - mirrored))
    grid = torch.stack([across, along], dim=-1).expand(count, -1, -1, -1)
    outside = "reflection" if mirrored else "border"
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode=outside, align_corners=mirrored)


def _blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur with five by five taps and take the rim away."""
    for axis in (2, 3):
        size = pixels.shape[axis] - 2 * _REACH
        weights = [math.exp(-0.5 * (tap / sigma) ** 2) for tap in range(_REACH + 1)]
        total = weights[0] + 2 * sum(weights[1:])
        blurred = pixels.narrow(axis, _REACH, size)
        # A weight this small changes no bit of a float32.
        if weights[1] / total > 1e-8:
            blurred = blurred * (weights[0] / total)
            for tap in range(1, _REACH + 1):
                for start in (_REACH - tap, _REACH + tap):
                    blurred.add_(pixels.narrow(axis, start, size), alpha=weights[tap] / total)
        pixels = blurred
    return pixels
