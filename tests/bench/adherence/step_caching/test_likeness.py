"""PSNR and SSIM against their formulas, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from bench.adherence.step_caching.likeness import PEAK, psnr, ssim

RANDOM = np.random.default_rng(3)


def noise(height: int, width: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


def ssim_of_window(a: np.ndarray, b: np.ndarray) -> float:
    """Of two windows of one channel, (11, 11), by the paper's formula (13), with the weights of its section III.C."""
    across = np.array([[math.exp(-((x - 5) ** 2 + (y - 5) ** 2) / (2 * 1.5**2)) for x in range(11)] for y in range(11)])
    weights = across / across.sum()
    mean_a, mean_b = float((weights * a).sum()), float((weights * b).sum())
    variance_a, variance_b = float((weights * (a - mean_a) ** 2).sum()), float((weights * (b - mean_b) ** 2).sum())
    covariance = float((weights * (a - mean_a) * (b - mean_b)).sum())
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return above / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))


def test_ssim_is_the_mean_of_the_papers_formula_over_all_windows_and_channels() -> None:
    first = noise(13, 14)
    second = np.clip(first.astype(int) // 2 + noise(13, 14) // 3, 0, 255)
    windows = [
        ssim_of_window(first[y : y + 11, x : x + 11, channel], second[y : y + 11, x : x + 11, channel])
        for y in range(3)
        for x in range(4)
        for channel in range(3)
    ]
    assert ssim(picture(first), picture(second)) == pytest.approx(np.mean(windows), abs=1e-9)


def test_equal_pictures_are_as_like_as_can_be_and_inverted_ones_are_not() -> None:
    values = noise(16, 20)
    assert ssim(picture(values), picture(values)) == pytest.approx(1)
    assert psnr(picture(values), picture(values)) == math.inf
    assert ssim(picture(values), picture(255 - values)) < 0


def test_psnr_is_of_the_mean_square_of_all_channels() -> None:
    values = np.full((16, 16, 3), 100, dtype=np.uint8)
    other = values.copy()
    other[:, :8, 0] += 6  # 36 in a sixth of all values
    assert psnr(picture(values), picture(other)) == pytest.approx(10 * math.log10(255**2 / 6))
