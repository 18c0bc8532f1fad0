"""Checks the noise levels of a schedule that is given as a list. Plain Python: no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

MOST_MU = 10.0  # either way: a schedule computes exp(mu), and the checkpoints' own rule stays below 2
LEAST_FALL = 1e-6  # from one to the next: what float32 still tells apart
SIGMAS_ALLOWED = f"numbers that fall from at most 1 to above 0, by {LEAST_FALL:.6f} at least"


def without_last_zero(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Return the noise level at which each step begins: the 0 at which the last one ends may be given, and is none."""
    return tuple(sigmas[:-1] if len(sigmas) > 1 and sigmas[-1] == 0 else sigmas)


def are_sigmas(sigmas: Sequence[float]) -> bool:
    """Whether these can be a schedule's, the 0 at its end left out: what `SIGMAS_ALLOWED` says."""
    levels = (*sigmas, 0.0)
    if not sigmas or not levels[0] <= 1:  # NaN is not
        return False
    return all(above - below > LEAST_FALL * 0.999 for above, below in itertools.pairwise(levels))
