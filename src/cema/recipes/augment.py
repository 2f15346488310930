"""Random changes to images of digits that the built-in models are trained with (torch).

They change shape, tone curve, texture and background. Nothing here adds pixel noise, defocuses, smears,
fogs, scales contrast or brightness as such, paints weather or compresses: what the models can do against
the default streams, they can without having seen those corruptions. Two changes have kin among the
corruptions that the default streams leave out: the elastic geometry (``elastic_transform``), and a random
3 x 3 convolution that happens to smooth (``gaussian_blur``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["AUGMENTATIONS", "Augmenter", "structured_pictures"]

#: What `Augmenter` does, in words for the record beside the weights.
AUGMENTATIONS: tuple[str, ...] = (
    "affine geometry: rotation, scale, shear, translation",
    "smooth elastic geometry",
    "tone curves: gamma, inversion, posterisation, solarisation",
    "random 3x3 convolution per image, rescaled to the full range",
    "mixing with structured pictures: gratings, mosaics, strokes, other digits enlarged and cropped",
    "cutout",
)

_SIDE = 32


def structured_pictures(count: int, generator: torch.Generator) -> Tensor:
    """Draw pictures with structure but no meaning: gratings, mosaics and strokes.

    Parameters
    ----------
    count : int
        How many.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    Tensor of float32, shape (count, 1, 32, 32)
        Values from 0 to 1.
    """
    third = count // 3
    pictures = [
        _gratings(third, generator),
        _mosaics(third, generator),
        _strokes(count - 2 * third, generator),
    ]
    return torch.cat(pictures).unsqueeze(1)


def _grid() -> tuple[Tensor, Tensor]:
    axis = torch.arange(_SIDE, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return y, x


def _gratings(count: int, generator: torch.Generator) -> Tensor:
    y, x = _grid()
    total = torch.zeros(count, _SIDE, _SIDE)
    for _ in range(2):
        angle = torch.rand(count, 1, 1, generator=generator) * math.pi
        period = 3 + 21 * torch.rand(count, 1, 1, generator=generator)
        phase = torch.rand(count, 1, 1, generator=generator) * 2 * math.pi
        total += torch.sin(2 * math.pi / period * (torch.cos(angle) * x + torch.sin(angle) * y) + phase)
    # Half of them with hard edges.
    hard = torch.rand(count, 1, 1, generator=generator) < 0.5
    return torch.where(hard, (total > 0).float(), 0.5 + total / 4)


def _mosaics(count: int, generator: torch.Generator) -> Tensor:
    y, x = _grid()
    cells = 24
    centres = torch.rand(count, cells, 2, generator=generator) * _SIDE
    shades = torch.rand(count, cells, generator=generator)
    pictures = []
    for centre, shade in zip(centres, shades, strict=True):
        used = int(torch.randint(4, cells + 1, (1,), generator=generator))
        distance = (y[..., None] - centre[:used, 0]) ** 2 + (x[..., None] - centre[:used, 1]) ** 2
        pictures.append(shade[distance.argmin(-1)])
    return torch.stack(pictures)


def _strokes(count: int, generator: torch.Generator) -> Tensor:
    y, x = _grid()
    picture = torch.zeros(count, _SIDE, _SIDE)
    for _ in range(6):
        ends = torch.rand(count, 4, 1, 1, generator=generator) * _SIDE
        y0, x0, y1, x1 = ends.unbind(1)
        dy, dx = y1 - y0, x1 - x0
        along = (((y - y0) * dy + (x - x0) * dx) / (dy**2 + dx**2 + 1e-3)).clamp(0, 1)
        distance = ((y - y0 - along * dy) ** 2 + (x - x0 - along * dx) ** 2).sqrt()
        width = 0.5 + 1.5 * torch.rand(count, 1, 1, generator=generator)
        shade = 0.3 + 0.7 * torch.rand(count, 1, 1, generator=generator)
        picture = torch.maximum(picture, shade * (width + 0.5 - distance).clamp(0, 1))
    return picture


class Augmenter:
    """Changes batches of digits at random, reproducibly.

    Parameters
    ----------
    seed : int
        Where the randomness starts; the same seed and batches give the same results.
    geometry : float
        Strength of the changes of shape: 0 none, 1 full.
    appearance : float
        How often tone, texture, background and cutout change: 0 never, 1 as often as for the foundation. An
        attribute of the same name changes it between batches.
    pictures : int
        Size of the bank of structured pictures.
    """

    def __init__(
        self, seed: int, *, geometry: float = 1.0, appearance: float = 1.0, pictures: int = 600
    ) -> None:
        self._geometric, self.appearance = geometry, appearance
        self._generator = torch.Generator().manual_seed(seed)
        self._pictures = structured_pictures(pictures, self._generator)

    def __call__(self, images: Tensor) -> Tensor:
        """Return changed copies of images of float32, shape (N, 1, 32, 32), values from 0 to 1."""
        changed = self._geometry(images)
        changed = self._texture(changed)
        changed = self._tone(changed)
        changed = self._mix(changed, images)
        changed = self._mix(changed, images)
        return self._cutout(changed).clamp(0, 1)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=self._generator)

    def _chosen(self, count: int, share: float) -> Tensor:
        return (torch.rand(count, generator=self._generator) < self.appearance * share).view(-1, 1, 1, 1)

    def _geometry(self, images: Tensor) -> Tensor:
        count = len(images)
        angle, shear = (self._geometric * self._uniform(count, -0.25, 0.25) for _ in range(2))
        tall, wide = (1 + self._geometric * self._uniform(count, -0.15, 0.2) for _ in range(2))
        cos, sin = torch.cos(angle), torch.sin(angle)
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0], theta[:, 0, 1] = wide * cos, -sin + shear
        theta[:, 1, 0], theta[:, 1, 1] = sin, tall * cos
        theta[:, :, 2] = self._geometric * self._uniform(2 * count, -0.15, 0.15).view(count, 2)
        grid = functional.affine_grid(theta, [count, 1, _SIDE, _SIDE], align_corners=False)
        bend = 0.06 * self._geometric * torch.randn(count, 2, 6, 6, generator=self._generator)
        field = functional.interpolate(bend, size=(_SIDE, _SIDE), mode="bicubic", align_corners=False)
        warped = functional.grid_sample(images, grid + field.permute(0, 2, 3, 1), align_corners=False)
        return warped.clamp(0, 1)

    def _texture(self, images: Tensor) -> Tensor:
        count = len(images)
        kernels = torch.randn(count, 1, 3, 3, generator=self._generator)
        filtered = functional.conv2d(images.transpose(0, 1), kernels, padding=1, groups=count).transpose(0, 1)
        low, high = filtered.amin((2, 3), keepdim=True), filtered.amax((2, 3), keepdim=True)
        filtered = (filtered - low) / (high - low + 1e-6)
        share = self._uniform(count, 0.3, 1.0).view(-1, 1, 1, 1)
        return torch.where(self._chosen(count, 0.35), share * filtered + (1 - share) * images, images)

    def _tone(self, images: Tensor) -> Tensor:
        count = len(images)
        gamma = torch.exp(self._uniform(count, -1.0, 1.0)).view(-1, 1, 1, 1)
        curved = torch.where(self._chosen(count, 0.5), images.clamp(min=1e-4).pow(gamma), images)
        steps = torch.randint(1, 5, (count, 1, 1, 1), generator=self._generator)
        curved = torch.where(self._chosen(count, 0.2), torch.round(curved * steps) / steps, curved)
        threshold = self._uniform(count, 0.5, 1.0).view(-1, 1, 1, 1)
        sun = torch.where(curved > threshold, 1 - curved, curved)
        curved = torch.where(self._chosen(count, 0.1), sun, curved)
        return torch.where(self._chosen(count, 0.15), 1 - curved, curved)

    def _mix(self, images: Tensor, originals: Tensor) -> Tensor:
        count = len(images)
        picked = torch.randint(len(self._pictures), (count,), generator=self._generator)
        pictures = self._pictures[picked]
        others = originals[torch.randperm(count, generator=self._generator)]
        # A corner of another digit at twice its size: strokes as background, but no readable second digit.
        enlarged = functional.interpolate(others[:, :, 8:24, 8:24], scale_factor=2, mode="nearest")
        pictures = torch.where(self._chosen(count, 0.25), enlarged, pictures)
        weight = self._uniform(count, 0.1, 0.6).view(-1, 1, 1, 1)
        blended = (1 - weight) * images + weight * pictures
        screened = 1 - (1 - images) * (1 - weight * pictures)
        shaded = images * (1 - weight * pictures)
        kind = torch.randint(3, (count, 1, 1, 1), generator=self._generator)
        mixed = torch.where(kind == 0, blended, torch.where(kind == 1, screened, shaded))
        return torch.where(self._chosen(count, 0.5), mixed, images)

    def _cutout(self, images: Tensor) -> Tensor:
        count = len(images)
        y, x = _grid()
        centre_y, centre_x = (self._uniform(count, 4, 28).view(-1, 1, 1, 1) for _ in range(2))
        half_y, half_x = (self._uniform(count, 1, 5).view(-1, 1, 1, 1) for _ in range(2))
        hole = ((y - centre_y).abs() < half_y) & ((x - centre_x).abs() < half_x)
        shade = self._uniform(count, 0.0, 1.0).view(-1, 1, 1, 1)
        return torch.where(hole & self._chosen(count, 0.3), shade, images)
