"""Says how many packed tokens a step may have: what pays, and less for a while after memory ran out."""

from __future__ import annotations

import math

TOKEN_BUDGET = 8192  # tokens of a step at most, and until a warm-up has measured; two images of 1024² fill it
# Tokens of a step at least, whatever a warm-up measured: half an image of 1024² is never too much, and if something
# disturbed the warm-up, small images should still not go one by one.
_LEAST_BUDGET = 2048
_SHRINK = 0.75  # the next steps' tokens, as a part of those of a step that was too large for the memory
_CALM_STEPS = 200  # steps that had memory, after which they may be larger again: what took it may be gone


class TokenBudget:
    """Follows what a warm-up measured, and which steps were too large for the memory.

    most: tokens of a step, if that much is free (`RankMemory.token_budget`).
    """

    def __init__(self) -> None:
        self.most = TOKEN_BUDGET
        self._best = TOKEN_BUDGET  # what `most` would be, had memory never run out
        self._calm_steps = 0  # since it ran out

    def measured(self, tokens: int) -> None:
        """Take what the warm-up found: more than these tokens gained nothing."""
        self._best = min(TOKEN_BUDGET, max(_LEAST_BUDGET, tokens))
        self.most = min(self.most, self._best)

    def ran_out(self, images: int, tokens: int) -> bool:
        """Shrink steps after one too large for the memory. Returns whether it did: not after one of a single image."""
        self._calm_steps = 0
        if images > 1:
            self.most = min(self.most, max(1, int(_SHRINK * tokens)))
        return images > 1

    def had_memory(self) -> bool:
        """Note that a step had memory. Returns whether enough have had it for steps to be larger again."""
        self._calm_steps += 1
        if self._calm_steps < _CALM_STEPS or self.most >= self._best:
            return False
        self._calm_steps = 0
        self.most = min(self._best, math.ceil(self.most / _SHRINK))
        return True
