"""What a half compares, uses and keeps in a step of a forward that may leave blocks out: DBCache's rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from engine.step_cache.forecast import forecast
from engine.step_cache.memory import BlockState, HalfMemory
from engine.step_cache.settings import StepCache
from engine.step_cache.step_plan import StepKind


@dataclass(frozen=True)
class WatchedHalf:
    """A half in a step. is_open: its first blocks decide whether the step is saved; else it is computed. keeps: what
    the blocks add in this step, if it is computed, is kept, since a later one may be saved by it."""

    cache: StepCache
    memory: HalfMemory
    step: int
    is_open: bool
    keeps: bool

    @classmethod
    def of(cls, cache: StepCache | None, memory: HalfMemory, step: int) -> WatchedHalf | None:
        """Watch a half, if its cache is of blocks and this step has to do with it. What no later step needs is let go
        of when this one is over."""
        if cache is None or cache.method != "blocks":
            return None
        state = memory.kept.blocks
        is_open = (
            memory.plan[step] is StepKind.MAY_BE_CACHED
            and state.first is not None
            and cache.may_save(step - state.computed_at - 1, state.saved)
        )
        keeps = step in memory.keeps_blocks and cache.may_save(0, state.saved)
        if not is_open and not keeps:
            memory.next = replace(memory.next, blocks=BlockState(saved=state.saved))
            return None
        return cls(cache, memory, step, is_open, keeps)

    def is_saved(self, changed: float, before: float) -> bool:
        """Decide an open half. changed: the sum of |difference| between what the first blocks added now and in the last
        computed step; before: of |what they added then|."""
        return changed < self.cache.threshold * before

    @property
    def first(self) -> torch.Tensor:
        """What the first blocks added in the last computed step, (tokens, width), of an open half."""
        first = self.memory.kept.blocks.first
        assert first is not None
        return first

    def residual(self, rows: slice) -> torch.Tensor:
        """Forecast what the blocks that are left out would add to some of the half's rows: (rows, width)."""
        return forecast([(step, added[rows]) for step, added in self.memory.kept.blocks.between], self.step)

    def note_saved(self) -> None:
        """Note that only the first and the last blocks run."""
        state, blocks = self.memory.kept.blocks, self.cache.first_blocks + self.cache.last_blocks
        self.memory.next = replace(self.memory.next, blocks_run=blocks, blocks=replace(state, saved=state.saved + 1))

    def note_computed(self, first: torch.Tensor) -> None:
        """Keep what the first blocks have added in a step in which all run, (tokens, width)."""
        self.memory.next = replace(self.memory.next, blocks=replace(self.memory.kept.blocks, first=first))

    def note_between(self, between: torch.Tensor) -> None:
        """Keep what the blocks between the first and the last ones have added, (tokens, width)."""
        known = (*self.memory.kept.blocks.between, (self.step, between))[-self.cache.order - 1 :]
        self.memory.next = replace(self.memory.next, blocks=replace(self.memory.next.blocks, between=known))
