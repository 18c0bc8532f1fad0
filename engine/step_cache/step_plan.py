"""Which steps of an image are computed, as far as that is known before it begins. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from engine.step_cache.settings import StepCache

WHOLE = (0.0, 1.0)  # the guidance window of an image that is guided in all its steps


class StepKind(Enum):
    """What is done for a half, one text of an image, in a step."""

    COMPUTED = auto()
    MAY_BE_CACHED = auto()  # computed or not, by what its first blocks do: all ranks decide it in the step
    FORECAST = auto()  # no block is run: the velocity comes from those of earlier steps
    LEFT_OUT = auto()  # outside the guidance window


class PlannedJob(Protocol):
    """What a plan depends on: see `engine.step.Job`."""

    @property
    def halves(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def skipped_steps(self) -> int: ...
    @property
    def cache(self) -> StepCache | None: ...
    @property
    def guidance_window(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class JobSteps:
    """The steps of a job that need not be there: all that its plan depends on."""

    halves: int
    steps: int
    skipped_steps: int
    cache: StepCache | None
    guidance_window: tuple[float, float]


def plan_of(job: PlannedJob) -> tuple[tuple[StepKind, ...], ...] | None:
    """Plan each half's steps, the prompt's half first. None where all are computed because nothing else was asked for:
    no cache, and no window or no guidance that it could leave out."""
    if job.cache is None and (job.halves < 2 or job.guidance_window == WHOLE):
        return None
    return tuple(_plan_half(job, guiding=half > 0) for half in range(job.halves))


def _plan_half(job: PlannedJob, guiding: bool) -> tuple[StepKind, ...]:
    """Plan the steps of a half. guiding: it is the negative prompt's, which the window may leave out."""
    kinds: list[StepKind] = []
    for step in range(job.steps):
        if guiding and _is_outside(job, step):
            kinds.append(StepKind.LEFT_OUT)
        elif job.cache is None or step == job.steps - 1:  # the last step makes the details that everybody sees
            kinds.append(StepKind.COMPUTED)
        else:
            kinds.append(_plan_step(job.cache, kinds, left=job.steps - step))
    return tuple(kinds)


def _is_outside(job: PlannedJob, step: int) -> bool:
    """Whether a step, by its place in the whole schedule, is outside the guidance window."""
    begin, end = job.guidance_window
    fraction = (job.skipped_steps + step) / (job.skipped_steps + job.steps)
    return not begin <= fraction < end


def _plan_step(cache: StepCache, before: list[StepKind], left: int) -> StepKind:
    """Plan a step inside the window that is not the last, given what the half does in the steps before it. left: how
    many steps there are with this one."""
    if len(before) < cache.warmup_steps or StepKind.COMPUTED not in before or not cache.may_save(0, 0):
        return StepKind.COMPUTED
    if cache.method == "blocks":
        return StepKind.MAY_BE_CACHED
    in_a_row = before[::-1].index(StepKind.COMPUTED)
    if not cache.may_save(in_a_row, before.count(StepKind.FORECAST)):
        return StepKind.COMPUTED
    if left == 2 and in_a_row:  # noise falls most in the last steps: half of a forecast's errors came from a run there
        return StepKind.COMPUTED
    return StepKind.FORECAST
