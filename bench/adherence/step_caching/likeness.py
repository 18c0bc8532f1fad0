"""How like two pictures of the same size are: PSNR, and SSIM as its authors define it."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

PEAK = 255.0
# The window and constants of Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment", 2004.
WINDOW, SPREAD = 11, 1.5  # pixels: the side of the Gaussian window, and its standard deviation
MEANS_CONSTANT, DEVIATIONS_CONSTANT = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Measure the peak signal-to-noise ratio over all pixels and channels, in decibels: infinite where they are equal.
    Both RGB."""
    error = float(np.mean((_values(first) - _values(second)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def ssim(first: Image.Image, second: Image.Image) -> float:
    """Measure the mean structural similarity, at most 1, where they are equal: of every channel, over all windows that
    lie inside of the picture. That is what scikit-image gives with `gaussian_weights=True,
    use_sample_covariance=False`. Both RGB, of `WINDOW` pixels or more a side."""
    a, b = _values(first), _values(second)
    mean_a, mean_b = _windowed(a), _windowed(b)
    deviation_a = _windowed(a * a) - mean_a**2
    deviation_b = _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    means = (2 * mean_a * mean_b + MEANS_CONSTANT) / (mean_a**2 + mean_b**2 + MEANS_CONSTANT)
    deviations = (2 * covariance + DEVIATIONS_CONSTANT) / (deviation_a + deviation_b + DEVIATIONS_CONSTANT)
    return float(np.mean(means * deviations))


def _values(picture: Image.Image) -> np.ndarray:
    """(height, width, 3)."""
    return np.asarray(picture.convert("RGB"), dtype=np.float64)


def _windowed(values: np.ndarray) -> np.ndarray:
    """Take the mean in every window, weighed by a Gaussian: (height − 10, width − 10, channels)."""
    distance: np.ndarray = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(distance**2) / (2 * SPREAD**2))
    weights /= weights.sum()
    for axis in (0, 1):
        values = np.lib.stride_tricks.sliding_window_view(values, WINDOW, axis=axis) @ weights
    return values
