"""How the numbers of a K-quant's super-block lie in its bytes: what `dequantize_blocks` of gguf's quants.py reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SUPER_BLOCK = 256  # numbers


class Parts(NamedTuple):
    """Of super-blocks. codes: (super-blocks, 256) uint8, from 0 on. multiples: (super-blocks, groups) int8, of step.
    minima: the same in uint8, of minimum. step, minimum: (super-blocks,) little-endian float16."""

    codes: np.ndarray
    multiples: np.ndarray
    minima: np.ndarray
    step: np.ndarray
    minimum: np.ndarray


def q2_k(parts: Parts) -> np.ndarray:
    """84 bytes: multiples in low and minima in high halves of bytes, codes, step, minimum."""
    scales = parts.multiples.view(np.uint8) | parts.minima << 4
    return _joined(scales, _side_by_side(parts.codes, 32, 2), _bytes(parts.step), _bytes(parts.minimum))


def q3_k(parts: Parts) -> np.ndarray:
    """110 bytes: the third bits of the codes, their low two, multiples from 0 on (low four bits, high two), step."""
    multiples: np.ndarray = (parts.multiples + 32).view(np.uint8)
    scales = _joined(_side_by_side(multiples & 15, 8, 4), _side_by_side(multiples >> 4, 4, 2))
    low, high = _side_by_side(parts.codes & 3, 32, 2), _side_by_side(parts.codes >> 2, 32, 1)
    return _joined(high, low, scales, _bytes(parts.step))


def q4_k(parts: Parts) -> np.ndarray:
    """144 bytes: step, minimum, multiples and minima, codes."""
    return _joined(_q4_k_head(parts), _side_by_side(parts.codes, 32, 4))


def q5_k(parts: Parts) -> np.ndarray:
    """176 bytes: as Q4_K, with the codes' fifth bits before their low four."""
    return _joined(_q4_k_head(parts), _side_by_side(parts.codes >> 4, 32, 1), _side_by_side(parts.codes & 15, 32, 4))


def q6_k(parts: Parts) -> np.ndarray:
    """210 bytes: the low four bits of the codes, their high two, multiples, step."""
    low, high = _side_by_side(parts.codes & 15, 64, 4), _side_by_side(parts.codes >> 4, 32, 2)
    return _joined(low, high, parts.multiples.view(np.uint8), _bytes(parts.step))


def _q4_k_head(parts: Parts) -> np.ndarray:
    """16 bytes: step, minimum, and six bits of each of 8 multiples and 8 minima, whose last four of each have their
    high two bits above the first four and their low four bits in bytes of their own."""
    first, last = np.hsplit(parts.multiples.view(np.uint8), 2)
    first_minima, last_minima = np.hsplit(parts.minima, 2)
    return _joined(
        _bytes(parts.step),
        _bytes(parts.minimum),
        first | last >> 4 << 6,
        first_minima | last_minima >> 4 << 6,
        last & 15 | last_minima << 4,
    )


def _side_by_side(values: np.ndarray, width: int, bits: int) -> np.ndarray:
    """(super-blocks, n) numbers of `bits` → (super-blocks, n · bits / 8) bytes: of each run of width · 8 / bits numbers
    the first `width` are in the low bits of the bytes, the next ones above them."""
    runs = values.reshape(len(values), -1, 8 // bits, width)
    shifts: np.ndarray = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(runs << shifts, axis=2).reshape(len(values), -1)


def _bytes(halves: np.ndarray) -> np.ndarray:
    return halves[:, None].view(np.uint8)


def _joined(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, axis=1)
