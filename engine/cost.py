"""What work costs, in seconds, as far as it has been measured. Plain Python: the front-end plans with it.

A denoise step of some segments takes base + per_token · Σ tokens + per_pair · Σ tokens², the last for attention. The
three are fitted to the warm-up's samples; from then on one factor follows what real steps take.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

Segments = tuple[int, ...]  # tokens of each segment of a step

_SWAY = 0.1  # how much of a difference between estimate and measurement is believed at once
_MOST = 2.0  # a measurement that is off by more counts as off by so much
_GAIN = 1.05  # in tokens a second, for which a tick may be twice as long


class CostModel:
    """Estimates are None until something like it has been measured."""

    def __init__(self) -> None:
        self._shape: tuple[float, float, float] | None = None  # base, per token, per pair
        self._encoding = _Rate()
        self._decoding = _Rate()

    def step_s(self, segments: Segments) -> float | None:
        """Seconds of a denoise step of these segments."""
        if self._shape is None or not segments:
            return None
        return _dot(self._shape, _features(segments))

    def share_s(self, segments: Segments) -> float | None:
        """What these segments add to a step that has others too."""
        if self._shape is None:
            return None
        return max(_dot(self._shape, _features(segments)) - self._shape[0], 0.0)

    def base_s(self) -> float:
        """What a step costs before its first token."""
        return self._shape[0] if self._shape is not None else 0.0

    def encode_s(self, tokens: int) -> float:
        """Seconds of encoding so many prompt tokens; 0 while that is not known."""
        return self._encoding.of(tokens)

    def decode_s(self, pixels: int) -> float:
        """Seconds of decoding so many pixels; 0 while that is not known."""
        return self._decoding.of(pixels)

    def fit(self, samples: Sequence[tuple[Segments, float]]) -> None:
        """Start from samples of segments and seconds: least squares of the relative error, nothing negative.

        Fitted twice, the second time without the sample that fits worst, if there are enough.
        """
        rows = [([value / seconds for value in _features(segments)], 1.0) for segments, seconds in samples if segments]
        if not rows:
            return
        shape = _fit(rows)
        if len(rows) > 3:
            worst = max(rows, key=lambda row: abs(_dot(shape, row[0]) - row[1]))
            shape = _fit([row for row in rows if row is not worst])
        self._shape = shape

    def correct(self, segments: Segments, seconds: float) -> None:
        """A real step took so long. Twice as slow a device is believed by half after 7 steps, by 90 % after 22."""
        expected = self.step_s(segments)
        if seconds <= 0 or not segments:
            return
        if not expected:
            self.fit([(segments, seconds)])
        else:
            assert self._shape is not None
            factor = _step_towards(seconds / expected)
            base, per_token, per_pair = self._shape
            self._shape = (factor * base, factor * per_token, factor * per_pair)

    def correct_encoding(self, tokens: int, seconds: float) -> None:
        self._encoding.correct(tokens, seconds)

    def correct_decoding(self, pixels: int, seconds: float) -> None:
        self._decoding.correct(pixels, seconds)


class _Rate:
    """Seconds per piece."""

    def __init__(self) -> None:
        self._rate = 0.0

    def of(self, pieces: int) -> float:
        return self._rate * pieces

    def correct(self, pieces: int, seconds: float) -> None:
        if pieces > 0 and seconds > 0:
            measured = seconds / pieces
            self._rate = measured if not self._rate else self._rate * _step_towards(measured / self._rate)


def choose_budget(samples: Sequence[tuple[int, float]]) -> int:
    """The tokens that a tick should have: the fewest from which on more of them no longer gain `_GAIN` in throughput.

    samples: tokens and seconds of ticks, of growing size.
    """
    best_tokens, best_rate = 0, 0.0
    for tokens, seconds in sorted(samples):
        if tokens / seconds > _GAIN * best_rate:
            best_tokens, best_rate = tokens, tokens / seconds
    return best_tokens


def _features(segments: Segments) -> tuple[float, float, float]:
    return 1.0, float(sum(segments)), float(sum(tokens * tokens for tokens in segments))


def _dot(shape: Sequence[float], features: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(shape, features, strict=True))


def _step_towards(ratio: float) -> float:
    return float(min(max(ratio, 1 / _MOST), _MOST) ** _SWAY)


def _fit(rows: Sequence[tuple[Sequence[float], float]]) -> tuple[float, float, float]:
    """The non-negative weights of least squared error: the best of all sets of columns with such a solution."""
    best: tuple[float, tuple[float, float, float]] | None = None
    for size in range(1, min(3, len(rows)) + 1):
        for columns in combinations((1, 0, 2), size):  # tokens first: a single sample is all theirs
            solution = _solve(rows, columns)
            if solution is None or min(solution) < 0:
                continue
            weights = [0.0, 0.0, 0.0]
            for column, weight in zip(columns, solution, strict=True):
                weights[column] = weight
            error = sum((_dot(weights, features) - target) ** 2 for features, target in rows)
            if best is None or error < best[0] - 1e-12:
                best = (error, (weights[0], weights[1], weights[2]))
    assert best is not None  # a single column of positive numbers always has a solution
    return best[1]


def _solve(rows: Sequence[tuple[Sequence[float], float]], columns: Sequence[int]) -> list[float] | None:
    """Least squares over some columns by the normal equations, each column scaled to length 1; None if they depend."""
    scales = [sum(features[column] ** 2 for features, _ in rows) ** 0.5 for column in columns]
    scaled = [[features[column] / scale for column, scale in zip(columns, scales, strict=True)] for features, _ in rows]
    matrix = [
        [sum(row[i] * row[j] for row in scaled) for j in range(len(columns))]
        + [sum(row[i] * target for row, (_, target) in zip(scaled, rows, strict=True))]
        for i in range(len(columns))
    ]
    for pivot in range(len(columns)):  # positive definite, so no rows need be swapped
        if matrix[pivot][pivot] < 1e-9:
            return None
        for other in range(len(columns)):
            if other != pivot:
                ratio = matrix[other][pivot] / matrix[pivot][pivot]
                matrix[other] = [a - ratio * b for a, b in zip(matrix[other], matrix[pivot], strict=True)]
    return [matrix[i][-1] / matrix[i][i] / scales[i] for i in range(len(columns))]
