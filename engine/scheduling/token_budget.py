"""How many packed tokens a step may have. Plain Python: no torch, no clock."""

from __future__ import annotations

import math

_TOKEN_BUDGET = 8192  # tokens of a step at most, and until a warm-up has measured; two images of 1024² fill it
# Tokens of a step at least, whatever a warm-up measured: half an image of 1024² is never too much, and if something
# disturbed the warm-up, small images should still not go one by one.
_LEAST_BUDGET = 2048
_SHRINK = 0.75  # the next steps' tokens, as a part of those of a step that was too large for the memory
_CALM_STEPS = 200  # steps that had memory, after which they may be larger again: what took it may be gone


class TokenBudget:
    """Says how many packed tokens a step may have: what pays by the warm-up, less for a while after memory ran out.

    most: tokens of a step, if that much is free (`RankMemory.token_budget`). best: what that would be, had memory never
    run out.
    """

    def __init__(self) -> None:
        self.most = self.best = _TOKEN_BUDGET
        self._calm_steps = 0  # since it ran out

    def measured(self, tokens: int) -> None:
        """Take what the warm-up found: more than these tokens gained nothing."""
        self.best = min(_TOKEN_BUDGET, max(_LEAST_BUDGET, tokens))
        self.most = min(self.most, self.best)

    def ran_out(self, images: int, tokens: int) -> None:
        """Shrink steps after one that was too large for the memory, unless it had a single image."""
        self._calm_steps = 0
        if images > 1:
            self.most = min(self.most, max(1, int(_SHRINK * tokens)))

    def had_memory(self) -> None:
        """Note that a step had memory. Once enough have had it, steps may be larger again."""
        self._calm_steps += 1
        if self._calm_steps >= _CALM_STEPS and self.most < self.best:
            self._calm_steps = 0
            self.most = min(self.best, math.ceil(self.most / _SHRINK))
