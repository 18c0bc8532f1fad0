"""What the steps of a job have to do, where some run fewer blocks than others. Plain Python: no torch, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from engine.scheduling.cost import CostModel, Work
from engine.scheduling.shares import Share
from engine.step_cache.step_plan import WHOLE, JobSteps, PlannedJob, StepKind, plan_of

_SHAPES = 256  # of plans that are kept: jobs of the same settings share one


@dataclass(frozen=True)
class JobWork:
    """The steps of a job whose halves are not all computed in all of them. A step is named by how many are left with
    it. segments: of its halves, in tokens. share: what part of the blocks is run in steps that may be cached."""

    segments: tuple[int, ...]
    shape: Shape
    share: Share
    _all_left: dict[int, tuple[float, Work]] = field(default_factory=dict, repr=False, compare=False)

    def packed(self, left: int) -> Work:
        """Return what a step may have to do, and needs memory for: all blocks also for halves that may be cached;
        nothing where no half goes through any."""
        return Work.of(self.segments[half] for half in self.shape.packed[left])

    def all_left(self, left: int) -> Work:
        """Return what is expected to be left to do from a step on. It is remembered while the share is what it was, as
        every job in a queue is asked for it whenever something comes or a step is made."""
        known = self._all_left.get(left)
        if known is None or known[0] != self.share.value:
            self._all_left.clear()
            known = self._all_left[left] = self.share.value, self.expected(left, 0)
        return known[1]

    def expected(self, left: int, until: int) -> Work:
        """Return what there is to do, by what is known of the share, from a step on until `until` are left."""
        begin, end, share = self.shape.left[left], self.shape.left[until], self.share.value
        tokens = pairs = 0.0
        for segment, sure, maybe, later_sure, later_maybe in zip(
            self.segments, begin.sure, begin.maybe, end.sure, end.maybe, strict=True
        ):
            run = sure - later_sure + share * (maybe - later_maybe)
            tokens += run * segment
            pairs += run * segment * segment
        passes = begin.sure_passes - end.sure_passes + share * (begin.maybe_passes - end.maybe_passes)
        return Work(round(tokens), round(pairs), passes)


@dataclass(frozen=True)
class _Left:
    """How many steps are left of a plan. sure, maybe: of each half, those that are computed, and that may be cached.
    sure_passes: in which some half is computed; maybe_passes: in which none is, and some may be cached."""

    sure: tuple[int, ...]
    maybe: tuple[int, ...]
    sure_passes: int
    maybe_passes: int

    @property
    def busy(self) -> int:
        """The steps in which some half goes through blocks."""
        return self.sure_passes + self.maybe_passes


@dataclass(frozen=True)
class Shape:
    """A plan, by how many steps are left. packed: the halves that go through blocks in that step. next_busy: by how
    many such steps are left, the next of them."""

    left: tuple[_Left, ...]
    packed: tuple[tuple[int, ...], ...]
    next_busy: tuple[int, ...]

    @classmethod
    def of(cls, plan: Sequence[Sequence[StepKind]]) -> Shape:
        """Count what a plan has, by half and step."""
        halves = range(len(plan))
        left, next_busy = [_Left((0,) * len(plan), (0,) * len(plan), 0, 0)], [0]
        packed: list[tuple[int, ...]] = [()]
        for kinds in reversed([*zip(*plan, strict=True)]):
            before = left[-1]
            sure = [kind is StepKind.COMPUTED for kind in kinds]
            maybe = [kind is StepKind.MAY_BE_CACHED for kind in kinds]
            left.append(
                _Left(
                    tuple(count + more for count, more in zip(before.sure, sure, strict=True)),
                    tuple(count + more for count, more in zip(before.maybe, maybe, strict=True)),
                    before.sure_passes + any(sure),
                    before.maybe_passes + (any(maybe) and not any(sure)),
                )
            )
            packed.append(tuple(half for half in halves if sure[half] or maybe[half]))
            if packed[-1]:
                next_busy.append(len(left) - 1)
        return cls(tuple(left), tuple(packed), tuple(next_busy))


def work_of(job: PlannedJob, segments: tuple[int, ...], costs: CostModel) -> JobWork | None:
    """Look up what a job's steps have to do; None where each is computed, and has the same to do."""
    if job.steps == 0 or (job.cache is None and job.guidance_window == WHOLE):
        return None
    shape = _shape(JobSteps(job.halves, job.steps, job.skipped_steps, job.cache, job.guidance_window))
    if shape is None:
        return None
    share = _CERTAIN
    if job.cache is not None and (may_be_cached := shape.left[-1].maybe[0]):
        share = costs.shares.of(job.cache, job.steps, may_be_cached)
    return JobWork(segments, shape, share)


@lru_cache(maxsize=_SHAPES)
def _shape(planned: JobSteps) -> Shape | None:
    plan = plan_of(planned)
    return None if plan is None else Shape.of(plan)


_CERTAIN = Share(1.0)  # of steps none of which may be cached
