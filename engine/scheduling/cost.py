"""What work costs in seconds: measured at warm-up, corrected while running. Plain Python: no torch, no clock.

A denoise step of packed segments takes about a + b · tokens + c · pairs seconds, where pairs, the sum of the squared
segment lengths, is what attention works on. Encoding prompts takes seconds in proportion to their tokens, encoding
pictures and decoding images to pixels, at a rate that depends on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median, median_low

from engine.scheduling.shares import Shares

# Costs of a step, of each token and of each pair, while too little has been measured, in units of a token's matrix
# products. Attention over 6 · width pairs takes one such unit, and Krea 2's width is 6144.
_ASSUMED = (256.0, 1.0, 1 / (6 * 6144))
# A correction closes a fifth of the gap, and takes no gap for more than a factor of e^0.5: one measurement moves an
# estimate by at most e^0.1 - 1 = 10.5 %, and after a lasting change by a factor of 2 it is within 5 % in 13 steps.
_GAIN = 0.2
_MOST_GAP = 0.5
_FIRST = 5  # measurements of which the median counts, before one corrects another: what comes first is often slow
_SMALLEST = 1e-9  # expected / measured seconds at least, for a finite logarithm
_SATURATED = 1.05  # throughput that rises by less than this factor is not worth a longer step


@dataclass(frozen=True)
class Work:
    """The size of a denoise step: packed tokens, and pairs of tokens that attend to each other.

    Where segments go through some of the model's blocks only, they count in proportion. passes: how often the blocks
    are gone through, whatever for: once, or in part, in a step; more in the work of several.
    """

    tokens: int
    pairs: int
    passes: float = 1.0

    @classmethod
    def of(cls, segments: Iterable[int]) -> Work:
        """Count the work of a step that packs segments of these lengths, in tokens."""
        lengths = tuple(segments)
        return cls(sum(lengths), sum(length * length for length in lengths), 1.0 if lengths else 0.0)

    def __add__(self, other: Work) -> Work:
        """Pack both into one step."""
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, max(self.passes, other.passes))


NO_WORK = Work(0, 0, 0.0)  # of a step that goes through no block


class CostModel:
    """Seconds of denoise steps, of encoding prompts and pictures, and of decoding; None where nothing has been measured
    yet. shares: what part of the blocks is run in steps that may be cached. blocks: of the model."""

    def __init__(self, blocks: int = 28) -> None:
        self.shares = Shares(blocks)
        self._coefficients: tuple[float, ...] | None = None  # seconds, s per token, s per pair
        self._encode_rate = _Rate()  # seconds per prompt token
        self._decode_rates, self._picture_rates = _RatesBySize(), _RatesBySize()  # seconds per pixel

    @property
    def known(self) -> bool:
        """Whether a denoise step has been measured."""
        return self._coefficients is not None

    def denoise_s(self, work: Work) -> float | None:
        """Estimate the seconds of one denoise step."""
        return None if self._coefficients is None else self.relative(work)

    def relative(self, work: Work) -> float:
        """Return what to compare denoise steps by: their seconds, or tokens while nothing has been measured."""
        fixed, per_token, per_pair = self._coefficients or _ASSUMED
        return fixed * work.passes + per_token * work.tokens + per_pair * work.pairs

    def encode_s(self, prompt_tokens: int) -> float | None:
        """Estimate the seconds of encoding prompts that have `prompt_tokens` tokens together."""
        rate = self._encode_rate.value
        return None if rate is None else rate * prompt_tokens

    def decode_s(self, pixels: int) -> float | None:
        """Estimate the seconds of decoding an image of `pixels` pixels, by those nearest in size."""
        return self._decode_rates.estimate(pixels)

    def encode_picture_s(self, pixels: int) -> float | None:
        """Estimate the seconds of encoding pictures that have `pixels` pixels together, by those nearest in size. Until
        one has been encoded they are taken to be those of decoding, which takes longer."""
        encode_s = self._picture_rates.estimate(pixels)
        return self.decode_s(pixels) if encode_s is None else encode_s

    def fit(self, samples: Iterable[tuple[Work, float]]) -> None:
        """Take the costs of a denoise step from measured (work, seconds), a few tens at most, and forget former ones.

        The fit leaves aside the fifth of the samples that it misses most, so that an outlier among five moves it
        little, and no coefficient is negative. Fewer than three different works only scale the shape that is assumed.
        Raises `ValueError` without a sample or for seconds that are not positive.
        """
        by_work: dict[Work, list[float]] = {}
        for work, seconds in samples:
            by_work.setdefault(work, []).append(seconds)
        if not by_work or any(seconds <= 0 for times in by_work.values() for seconds in times):
            raise ValueError("a fit needs samples that took more than 0 seconds")
        self._coefficients = _fit([(work, median(times)) for work, times in by_work.items()])

    def correct(self, work: Work, seconds: float) -> None:
        """Learn from a denoise step that ran, if it took any time. The first one makes a rough estimate possible."""
        expected = self.denoise_s(work)
        if seconds <= 0 or work == NO_WORK:
            return
        if self._coefficients is None or not expected:
            self.fit([(work, seconds)])
            return
        amounts = work.passes, work.tokens, work.pairs
        parts = [cost * amount / expected for cost, amount in zip(self._coefficients, amounts, strict=True)]
        # Either everything got slower, or one cost is wrong, most likely the one that makes up most of the step.
        blame = [part + 1 / 3 for part in parts]
        move = _bounded_move(seconds / expected) / sum(part * weight for part, weight in zip(parts, blame, strict=True))
        self._coefficients = tuple(
            cost * math.exp(move * weight) for cost, weight in zip(self._coefficients, blame, strict=True)
        )

    def correct_encode(self, prompt_tokens: int, seconds: float) -> None:
        """Learn from an encoding that ran. Amounts and seconds that are not positive are ignored."""
        self._encode_rate.correct(prompt_tokens, seconds)

    def correct_decode(self, pixels: int, seconds: float) -> None:
        """Learn from a decoding that ran, as `correct_encode` does from an encoding."""
        self._decode_rates.correct(pixels, seconds)

    def correct_encode_picture(self, pixels: int, seconds: float) -> None:
        """Learn from an encoding of pictures that ran, as `correct_encode` does from one of prompts."""
        self._picture_rates.correct(pixels, seconds)


def choose_budget(samples: Iterable[tuple[int, float]]) -> int:
    """Choose the token budget by (tokens, seconds) of packed steps: the fewest tokens past which no measured step does
    more than 5 % more tokens a second. Raises `ValueError` without a sample."""
    by_tokens: dict[int, list[float]] = {}
    for tokens, seconds in samples:
        by_tokens.setdefault(tokens, []).append(seconds)
    if not by_tokens:
        raise ValueError("a budget needs at least one measured step")
    throughput = {tokens: tokens / median(times) for tokens, times in by_tokens.items()}
    best = max(throughput.values())
    return min(tokens for tokens, rate in throughput.items() if rate * _SATURATED >= best)


def _bounded_move(ratio: float) -> float:
    return _GAIN * max(-_MOST_GAP, min(_MOST_GAP, math.log(ratio)))


class _Rate:
    """Seconds per unit of work: the median of the first few measurements, and of what is assumed before them, if
    anything is; then corrected. value: None while nothing is known."""

    def __init__(self, assumed: float | None = None) -> None:
        self.value = assumed
        self._first = [] if assumed is None else [assumed]

    def correct(self, amount: int, seconds: float) -> None:
        if amount <= 0 or seconds <= 0:
            return
        if len(self._first) < _FIRST:
            self._first.append(seconds / amount)
            self.value = median_low(self._first)
        elif self.value is not None:
            self.value *= math.exp(_bounded_move(seconds / (amount * self.value)))


class _RatesBySize:
    """Seconds per pixel, by how many pixels there are: within a factor of two, or of the nearest that are known."""

    def __init__(self) -> None:
        self._rates: dict[int, _Rate] = {}  # by the number of bits of the pixels

    def estimate(self, pixels: int) -> float | None:
        rate = self._nearest(pixels.bit_length())
        return None if rate is None else rate * pixels

    def correct(self, pixels: int, seconds: float) -> None:
        size = pixels.bit_length()
        rate = self._rates.get(size) or _Rate(self._nearest(size))
        rate.correct(pixels, seconds)
        if rate.value is not None:
            self._rates[size] = rate

    def _nearest(self, size: int) -> float | None:
        nearest = self._rates.get(size)
        if nearest is None and self._rates:
            nearest = self._rates[min(self._rates, key=lambda known: abs(known - size))]
        return None if nearest is None else nearest.value


def _fit(samples: Sequence[tuple[Work, float]]) -> tuple[float, ...]:
    """Non-negative (fixed, per token, per pair) of the least sum of |log(expected / measured)| without its largest
    fifth.

    Of all fits that pass exactly through as many samples as they have coefficients that are not 0, as fits of least
    absolute error do: there are 285 of them for ten samples.
    """
    # seconds = costs · (passes, tokens, pairs), divided by the seconds: every row should give 1
    rows = [(work.passes / seconds, work.tokens / seconds, work.pairs / seconds) for work, seconds in samples]
    if len(rows) < 3:
        scale = median(1 / _dot(_ASSUMED, row) for row in rows)
        return tuple(cost * scale for cost in _ASSUMED)
    best: tuple[float, ...] = (0.0, 0.0, 0.0)
    least = math.inf
    for used in ((1,), (0, 1), (1, 2), (0, 1, 2), (0,), (2,), (0, 2)):
        for exact in combinations(rows, len(used)):
            solved = _solve([[row[column] for column in used] for row in exact])
            if solved is None or min(solved) < 0:
                continue
            solution = dict(zip(used, solved, strict=True))
            costs = tuple(solution.get(column, 0.0) for column in range(3))
            errors = sorted(abs(math.log(max(_dot(costs, row), _SMALLEST))) for row in rows)
            error = sum(errors[: len(rows) - len(rows) // 5])
            if error < least - 1e-9:
                best, least = costs, error
    return best


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _solve(matrix: list[list[float]]) -> list[float] | None:
    """x of matrix · x = (1, …, 1), by Gaussian elimination; None where the matrix is singular."""
    size = len(matrix)
    rows = [[*row, 1.0] for row in matrix]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        if abs(rows[column][column]) <= 1e-12 * max(map(abs, matrix[0])):
            return None
        for row in range(size):
            if row != column:
                factor = rows[row][column] / rows[column][column]
                rows[row] = [a - factor * b for a, b in zip(rows[row], rows[column], strict=True)]
    return [rows[row][size] / rows[row][row] for row in range(size)]
