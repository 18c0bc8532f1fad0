"""What the decisions of a small model's schedule would save on a longer one, of a model of more blocks: reckoned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.step_cache.settings import StepCache
from engine.step_cache.step_plan import WHOLE, StepKind, plan_of


@dataclass(frozen=True)
class Schedule:
    """The steps of an image, as `plan_of` needs to know them. guided: it has a half for the negative prompt too;
    blocks: of the model; window: of guidance."""

    steps: int
    guided: bool
    blocks: int
    cache: StepCache | None = None
    window: tuple[float, float] = WHOLE

    @property
    def halves(self) -> int:
        """Of each image: its prompts."""
        return 2 if self.guided else 1

    @property
    def skipped_steps(self) -> int:
        """None: it begins with noise."""
        return 0

    @property
    def guidance_window(self) -> tuple[float, float]:
        """Of the steps, from which fraction on and until which."""
        return self.window

    @property
    def block_evaluations(self) -> int:
        """All of them, if nothing is saved."""
        return self.steps * self.blocks * self.halves


def replay(ran: Sequence[Sequence[int]], made: Schedule, target: Schedule) -> int:
    """Count the blocks that `target`, of the same cache and window, would run if its first blocks decided as those of
    `made` did, in which step `i` ran `ran[i]` blocks of each half.

    A step that the rule leaves open decides as the step at the same place in the schedule did. Where that one had no
    choice, because of the warm-up or of too many saved before it, the nearest one that had decides. Then come the
    limits of the rule, on the steps of `target`.
    """
    plans, targets = plan_of(made), plan_of(target)
    if plans is None or targets is None:
        return target.block_evaluations
    return sum(
        _replay_half([blocks[half] for blocks in ran], plan, made, targets[half], target)
        for half, plan in enumerate(plans)
    )


def _replay_half(
    ran: Sequence[int], plan: Sequence[StepKind], made: Schedule, kinds: Sequence[StepKind], target: Schedule
) -> int:
    decisions = _decisions(ran, plan, made)
    limits, blocks = _Limits(target.cache), 0
    for step, kind in enumerate(kinds):
        if kind is StepKind.COMPUTED:
            limits.count(saved=False)
            blocks += target.blocks
        elif kind is StepKind.MAY_BE_CACHED:
            saved = limits.allow and _nearest(decisions, (step + 0.5) / len(kinds) * len(plan))
            limits.count(saved=saved)
            cache = target.cache
            blocks += cache.first_blocks + cache.last_blocks if saved and cache is not None else target.blocks
    return blocks


def _decisions(ran: Sequence[int], plan: Sequence[StepKind], made: Schedule) -> dict[int, bool]:
    """Whether the first blocks said that a step may be saved, of the steps in which that settled it."""
    limits, decisions = _Limits(made.cache), {}
    for step, (kind, blocks) in enumerate(zip(plan, ran, strict=True)):
        if kind is StepKind.MAY_BE_CACHED:
            saved = blocks < made.blocks
            if limits.allow:
                decisions[step] = saved
            limits.count(saved=saved)
        elif kind is StepKind.COMPUTED:
            limits.count(saved=False)
    return decisions


def _nearest(decisions: dict[int, bool], place: float) -> bool:
    """Look up the decision of the step whose middle is nearest to `place`, in steps; the earlier one of two. False of
    none."""
    step = min(decisions, key=lambda step: abs(step + 0.5 - place), default=None)
    return step is not None and decisions[step]


class _Limits:
    """How many steps of a half were saved: in a row, and altogether."""

    def __init__(self, cache: StepCache | None) -> None:
        self._cache = cache
        self._in_a_row = self._saved = 0

    @property
    def allow(self) -> bool:
        """Whether another one may be."""
        return self._cache is not None and self._cache.may_save(self._in_a_row, self._saved)

    def count(self, *, saved: bool) -> None:
        """Count a step of the half that was saved, or was computed."""
        self._in_a_row = self._in_a_row + 1 if saved else 0
        self._saved += saved
