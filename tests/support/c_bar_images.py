"""Images that C-bar's corruptions are tested on."""

from __future__ import annotations

import numpy as np

SEED = np.array([3, 1, 4], np.uint32)


def natural(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Return images in colour whose spectrum falls with frequency as that of photographs does."""
    draws = np.random.RandomState(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    fall = 1 / np.maximum(frequency, 1 / min(height, width))
    noise = draws.normal(size=(count, 3, height, width))
    noise = noise[:, :1] + 0.4 * noise
    smooth = np.fft.ifft2(np.fft.fft2(noise) * fall).real.transpose(0, 2, 3, 1)
    smooth /= smooth.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(smooth * 55 + draws.uniform(80, 160, (count, 1, 1, 1)), 0, 255).astype(np.uint8)
