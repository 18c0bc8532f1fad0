"""What an image keeps of its steps for later ones that are not computed as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from engine.step_cache.forecast import forecast
from engine.step_cache.settings import StepCache
from engine.step_cache.step_plan import StepKind


@dataclass(frozen=True)
class BlockState:
    """What a half has kept of the last steps in which it ran all blocks, for those in which it runs some.

    first: what the first blocks added in the last of them, (tokens, width). between: what those between them and the
    last ones added, likewise, each with the index of its step, the oldest first. saved: how many steps have been.
    """

    first: torch.Tensor | None = None
    between: tuple[tuple[int, torch.Tensor], ...] = ()
    saved: int = 0

    @property
    def computed_at(self) -> int:
        """The index of the last of those steps, if there was one."""
        return self.between[-1][0]


@dataclass(frozen=True)
class HalfState:
    """What a half has kept after some steps: the last computed velocities, each with its sigma, the oldest first, what
    blocks added, and how many blocks the last step ran."""

    velocities: tuple[tuple[float, torch.Tensor], ...] = ()  # of (image tokens, in_channels) float32
    blocks: BlockState = BlockState()
    blocks_run: int = 0


class HalfMemory:
    """A half of an image: its plan, `kept` of the steps that have been taken, and `next`, which is what a step that is
    not over makes of it. A forward that was broken off has changed `next` alone, and the next try begins from `kept`.
    """

    def __init__(self, plan: Sequence[StepKind], order: int) -> None:
        self.plan = tuple(plan)
        self.kept = self.next = HalfState()
        self._order = order
        self._last_forecast = _last(StepKind.FORECAST, plan)
        open_steps = [step for step, kind in enumerate(plan) if kind is StepKind.MAY_BE_CACHED]
        # The steps whose blocks later ones may be saved by: of those before the first of these, as many as a forecast
        # takes, and then all but the last.
        self.keeps_blocks = range(max(0, open_steps[0] - order - 1), open_steps[-1]) if open_steps else range(0)

    def computed(self, step: int, sigma: float, velocity: torch.Tensor) -> None:
        """Note a velocity that blocks have computed, as far as later steps are forecast from it."""
        if step >= self._last_forecast:
            self.next = replace(self.next, velocities=())
            return
        known = (sigma, velocity.clone())  # what was computed is part of a tensor of the whole batch
        self.next = replace(self.next, velocities=(*self.kept.velocities, known)[-self._order - 1 :])

    def forecast(self, sigma: float) -> torch.Tensor:
        """Forecast the velocity, (image tokens, in_channels) float32, of a step of this sigma."""
        return forecast(self.kept.velocities, sigma)


class StepMemory:
    """What an image with a plan keeps, by half, and the last difference that guidance made."""

    def __init__(
        self, plan: Sequence[Sequence[StepKind]], cache: StepCache | None = None, *, reuses_difference: bool = False
    ) -> None:
        """plan: what `plan_of` makes. reuses_difference: where guidance is left out, the last one is added again."""
        order = 0 if cache is None else cache.order
        self.halves = [HalfMemory(half, order) for half in plan]
        # the last step in which it is added again, -1 without any
        self._last_reuse = _last(StepKind.LEFT_OUT, plan[-1]) if reuses_difference else -1
        self._difference: torch.Tensor | None = None  # (image tokens, in_channels) float32
        self._next_difference: torch.Tensor | None = None

    def running(self, step: int) -> list[int]:
        """Say which halves run blocks in a step: all of them, or at least the first ones."""
        saved = (StepKind.FORECAST, StepKind.LEFT_OUT)
        return [half for half, memory in enumerate(self.halves) if memory.plan[step] not in saved]

    def begin(self, step: int, blocks: int) -> None:
        """Begin a step, or begin it again. blocks: what a half runs in it that is computed."""
        running = self.running(step)
        for half, memory in enumerate(self.halves):
            memory.next = replace(memory.kept, blocks_run=blocks if half in running else 0)
        self._next_difference = self._difference

    def velocity(self, step: int, sigma: float, guidance: float, computed: Iterator[torch.Tensor]) -> torch.Tensor:
        """Make the velocity of a step that has begun, (image tokens, in_channels) float32. computed: gives those of the
        halves that ran blocks, in turn."""
        velocities: list[torch.Tensor] = []
        for memory in self.halves:
            kind = memory.plan[step]
            if kind is StepKind.FORECAST:
                velocities.append(memory.forecast(sigma))
            elif kind is not StepKind.LEFT_OUT:
                velocities.append(next(computed))
                memory.computed(step, sigma, velocities[-1])
        if len(self.halves) == 1:
            return velocities[0]
        if len(velocities) == 2:
            difference = velocities[0] - velocities[1]
            if step < self._last_reuse:
                self._next_difference = difference
        elif self._difference is not None:
            difference = self._difference
        else:
            return velocities[0]
        return velocities[0] + guidance * difference  # as `engine.rank.sampling.guide` has it

    def commit(self) -> None:
        """Keep what the step has made, which is over."""
        for memory in self.halves:
            memory.kept = memory.next
        self._difference = self._next_difference

    def abandon(self) -> None:
        """Let go of what a step has made that was broken off."""
        for memory in self.halves:
            memory.next = memory.kept
        self._next_difference = self._difference

    @property
    def blocks_run(self) -> tuple[int, ...]:
        """How many blocks each half ran in the last step that is over."""
        return tuple(memory.kept.blocks_run for memory in self.halves)


def _last(kind: StepKind, plan: Sequence[StepKind]) -> int:
    return max((step for step, each in enumerate(plan) if each is kind), default=-1)
