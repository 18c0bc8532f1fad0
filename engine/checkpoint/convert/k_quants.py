"""Quantises matrices to GGUF's K-quants, which the gguf library reads and cannot write.

A super-block of 256 numbers of a row is divided into groups of 16 or 32. The numbers x of a group become codes q of a
few bits, x ≈ step · q − minimum, where step and minimum are whole multiples of two float16 of the super-block. Some
types have no minimum, but codes and steps with a sign. `k_blocks` has how all that lies in a file.

What is sought is the least sum of squared errors, by least squares in turns: with the codes fixed, the best step and
minimum of a group are a line through (q, x), and with those fixed, the best codes are the nearest. Since that ends in
the next minimum, not in the lowest, a group begins at several ranges. Then its step and minimum are rounded to
multiples, those to either side are tried, and the super-block's two numbers are fitted to all its groups at once.

Arrays have the shape (numbers of a group, groups of a super-block, super-blocks): numpy adds a group's numbers up one
after the other, and the bytes are the same on every CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from engine.checkpoint.convert import k_blocks
from engine.checkpoint.convert.k_blocks import SUPER_BLOCK, Parts

_AT_ONCE = 512  # super-blocks, whose arrays stay in a core's cache
_LEAST_HALF = np.float32(2**-24)  # the smallest float16 above zero
_TINY = np.float32(2**-30)  # what is smaller is zero in every type
_MORE = np.float32(1 + 1e-6)  # gains that float32 tells apart; of equal ones the first is taken, of the whole range


@dataclass(frozen=True)
class _Type:
    """group: numbers that share a step. codes, multiples: the least and the most. has_minimum: else codes and multiples
    have a sign. pack: to the bytes of a file."""

    group: int
    codes: tuple[int, int]
    multiples: tuple[int, int]
    has_minimum: bool
    pack: Callable[[Parts], np.ndarray]


_TYPES = {
    "Q2_K": _Type(16, (0, 3), (0, 15), True, k_blocks.q2_k),
    "Q3_K": _Type(16, (-4, 3), (-32, 31), False, k_blocks.q3_k),
    "Q4_K": _Type(32, (0, 15), (0, 63), True, k_blocks.q4_k),
    "Q5_K": _Type(32, (0, 31), (0, 63), True, k_blocks.q5_k),
    "Q6_K": _Type(16, (-32, 31), (-128, 127), False, k_blocks.q6_k),
}
K_QUANTS = tuple(_TYPES)


def quantize_k(matrix: torch.Tensor, qtype: str) -> np.ndarray:
    """Quantise a (rows, columns) matrix of floats to (rows, bytes of a row) uint8.

    columns: a multiple of 256. qtype: of `K_QUANTS`. The numbers must be finite and fit into float16. All cores
    compute, of a few MB at a time.
    """
    kind, rows = _TYPES[qtype], len(matrix)
    blocks = matrix.reshape(-1, SUPER_BLOCK)

    def encode(start: int) -> np.ndarray:
        return _encode(blocks[start : start + _AT_ONCE].float().numpy(), kind)

    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="quantize") as executor:
        encoded = list(executor.map(encode, range(0, len(blocks), _AT_ONCE)))
    return np.concatenate(encoded).reshape(rows, -1)


def _encode(blocks: np.ndarray, kind: _Type) -> np.ndarray:
    """(super-blocks, 256) float32 → (super-blocks, bytes) uint8."""
    x: np.ndarray = np.ascontiguousarray(blocks.reshape(len(blocks), -1, kind.group).transpose(2, 1, 0))
    search = _Search(x, kind)
    with np.errstate(over="ignore", invalid="ignore"):  # of fits that are no use, and not better than what there is
        found = search.run()
    codes: np.ndarray = search.nearest(found) - kind.codes[0]
    return kind.pack(
        Parts(
            codes.transpose(2, 1, 0).reshape(len(blocks), SUPER_BLOCK).astype(np.uint8),
            found.multiples.T.astype(np.int8),
            found.minima.T.astype(np.uint8),
            found.step.astype("<f2"),
            found.minimum.astype("<f2"),
        )
    )


class _Line(NamedTuple):
    """x ≈ step · q + offset of each group by itself. gain: by how much the sum of squared errors is less than that of
    x². (groups, super-blocks) float32 each."""

    step: np.ndarray
    offset: np.ndarray
    gain: np.ndarray

    def or_better(self, other: _Line) -> _Line:
        better = other.gain > self.gain * _MORE
        return _Line(*(np.where(better, theirs, mine) for mine, theirs in zip(self, other, strict=True)))


class _Found(NamedTuple):
    """x ≈ step · multiples · q − minimum · minima. step, minimum: (super-blocks,), values that float16 has. multiples,
    minima: (groups, super-blocks), whole numbers. All float32."""

    step: np.ndarray
    minimum: np.ndarray
    multiples: np.ndarray
    minima: np.ndarray

    def where(self, better: np.ndarray, other: _Found) -> _Found:
        """This, but `other` where that is better."""
        pairs = zip(self, other, strict=True)
        return _Found(*(mine if mine is theirs else np.where(better, theirs, mine) for mine, theirs in pairs))


class _Search:
    """Looks for what x, (numbers, groups, super-blocks) in float32, is to be written as."""

    def __init__(self, x: np.ndarray, kind: _Type) -> None:
        self._x, self._kind = x, kind
        self._sum = x.sum(0)
        self._q, self._work = np.empty_like(x), np.empty_like(x)

    def run(self) -> _Found:
        found = self._try_neighbours(self._rounded(self._fit_groups()))
        fitted = self._fit_super_blocks(found)
        return found.where(self._errors(fitted).sum(0) < self._errors(found).sum(0), fitted)

    def nearest(self, found: _Found) -> np.ndarray:
        """The codes whose values are nearest. The array is used again."""
        return self._codes(found.step * found.multiples, -found.minimum * found.minima)

    def _fit_groups(self) -> _Line:
        ranges = self._ranges()
        best = self._fitted(*next(ranges))
        for step, offset in ranges:
            best = best.or_better(self._fitted(step, offset))
        return best.or_better(self._fitted(best.step, best.offset))

    def _ranges(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Steps and offsets to begin with."""
        low, high = self._x.min(0), self._x.max(0)
        least, most = self._kind.codes
        if self._kind.has_minimum:
            np.minimum(low, 0, out=low)
            yield (high - low) / most, low
            for more, bottom in product((-1, -0.5, 0.5, 1), (0, 0.5, 1)):
                yield (high - low) / (most + more), low + (high - low) * (bottom * more / (most + more))
        else:
            farthest = np.where(-low > high, low, high)
            for more in (-1.5, -1, -0.5, 0, 0.5, 1, 1.5):
                yield farthest / (least + more), np.zeros_like(farthest)

    def _codes(self, step: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """The nearest codes to (x − offset) / step."""
        q, usable = self._q, np.abs(step) > _TINY
        inverse = np.divide(1, step, out=np.zeros_like(step), where=usable)
        np.multiply(self._x, inverse, out=q)
        if self._kind.has_minimum:
            np.subtract(q, offset * inverse, out=q)
        np.rint(q, out=q)
        np.maximum(q, self._kind.codes[0], out=q)
        return np.minimum(q, self._kind.codes[1], out=q)

    def _fitted(self, step: np.ndarray, offset: np.ndarray) -> _Line:
        """The line with the least squared errors through x and the nearest codes to this one; its offset is not above
        zero."""
        self._codes(step, offset)
        squares, products = self._sums()
        if not self._kind.has_minimum:
            step = _ratio(products, squares)
            return _Line(step, np.zeros_like(step), step * products)
        size, total = np.float32(self._kind.group), self._q.sum(0)
        step = _ratio(size * products - total * self._sum, size * squares - total * total)
        offset = (self._sum - step * total) / size
        above = offset > 0
        np.copyto(step, _ratio(products, squares), where=above)
        np.copyto(offset, 0, where=above)
        return _Line(step, offset, step * products + offset * self._sum)

    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each group, the sums of q² and q · x."""
        squares = np.multiply(self._q, self._q, out=self._work).sum(0)
        return squares, np.multiply(self._q, self._x, out=self._work).sum(0)

    def _rounded(self, line: _Line) -> _Found:
        """Steps and offsets as multiples of what the largest of a super-block asks for."""
        step, offset, _ = line
        least, most = self._kind.multiples
        farthest = np.take_along_axis(step, np.abs(step).argmax(0)[None], 0)[0]
        unit = _half(farthest / np.float32(most if self._kind.has_minimum else least))
        minimum = _half(-offset.min(0) / np.float32(most))
        return _Found(unit, minimum, self._multiples(step, unit), self._multiples(-offset, minimum))

    def _multiples(self, values: np.ndarray, unit: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(_ratio(values, unit)), *self._kind.multiples)

    def _errors(self, found: _Found) -> np.ndarray:
        """The sum of squared errors of each group: (groups, super-blocks)."""
        np.multiply(self.nearest(found), found.step * found.multiples, out=self._work)
        if self._kind.has_minimum:
            np.subtract(self._work, found.minimum * found.minima, out=self._work)
        np.subtract(self._work, self._x, out=self._work)
        return np.multiply(self._work, self._work, out=self._work).sum(0)

    def _try_neighbours(self, found: _Found) -> _Found:
        """Change a group's multiple by one where that is better, with the minimum that goes with it."""
        best, errors = found, self._errors(found)
        for change in (-1, 0, 1) if self._kind.has_minimum else (-1, 1):
            multiples = np.clip(found.multiples + np.float32(change), *self._kind.multiples)
            tried = self._with_best_minima(found._replace(multiples=multiples))
            now = self._errors(tried)
            best = best.where(now < errors, tried)
            np.minimum(now, errors, out=errors)
        return best

    def _with_best_minima(self, found: _Found) -> _Found:
        if not self._kind.has_minimum:
            return found
        step, total = found.step * found.multiples, self.nearest(found).sum(0)
        offset = (self._sum - step * total) / np.float32(self._kind.group)
        return found._replace(minima=self._multiples(-offset, found.minimum))

    def _fit_super_blocks(self, found: _Found) -> _Found:
        """Fit a super-block's two numbers to the codes of all its groups."""
        total = self.nearest(found).sum(0)
        squares, products = self._sums()
        steps, minima, size = found.multiples, found.minima, np.float32(self._kind.group)
        uu, ux = (steps * steps * squares).sum(0), (steps * products).sum(0)
        if not self._kind.has_minimum:
            return found._replace(step=_half(_ratio(ux, uu)))
        uv, vv, vx = (steps * minima * total).sum(0), (minima * minima * size).sum(0), (minima * self._sum).sum(0)
        determinant = uu * vv - uv * uv
        step, minimum = _ratio(ux * vv - vx * uv, determinant), _ratio(ux * uv - vx * uu, determinant)
        return found._replace(step=_half(step), minimum=_half(minimum))


def _half(values: np.ndarray) -> np.ndarray:
    """Round to float16, but nothing to zero: of small numbers the multiples are what is small."""
    rounded: np.ndarray = values.astype(np.float16).astype(np.float32)
    return np.where((rounded == 0) & (values != 0), np.copysign(_LEAST_HALF, values), rounded)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, and 0 where below is."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
