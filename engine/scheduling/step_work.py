"""What steps have to do, at most, and what they have done: it teaches what steps of such jobs cost. Plain Python: no
torch, no clock."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from engine.scheduling.cost import NO_WORK, CostModel, Work
from engine.scheduling.job_work import JobWork, work_of
from engine.step import Job, Step, StepTimes


@dataclass(frozen=True)
class DoneWork:
    """What a step has done. images: that went through blocks. blocks: how many ran, those of each half being counted;
    saved: how many more would have, had all been computed."""

    work: Work = NO_WORK
    images: int = 0
    blocks: int = 0
    saved: int = 0


@dataclass
class _Known:
    """A job. left: steps that are to be sent; told: those that are done, in which its halves ran `blocks`."""

    segments: tuple[int, ...]
    plan: JobWork | None
    steps: int
    left: int = 0
    told: int = 0
    blocks: int = 0


class StepWork:
    """Keeps the segments of the jobs that are queued or under way. blocks: of the model."""

    def __init__(self, costs: CostModel, blocks: int) -> None:
        self._costs, self._blocks = costs, blocks
        self._jobs: dict[int, _Known] = {}
        self._sent: dict[int, list[tuple[int, _Known]]] = {}  # the jobs of steps that are not done, by number

    def add(self, job: Job, segments: tuple[int, ...]) -> None:
        """Note a job that is queued. segments: in tokens, of its halves."""
        self._jobs[job.job_id] = _Known(segments, work_of(job, segments, self._costs), job.steps, job.steps)

    def forget(self, job_id: int) -> None:
        """Note that a job is in no more steps. Unknown ones are ignored."""
        self._jobs.pop(job_id, None)

    def knows(self, job_ids: Collection[int]) -> bool:
        """Whether all of these are queued or under way."""
        return self._jobs.keys() >= set(job_ids)

    def start_over(self) -> None:
        """Note that ranks are lost: steps that are not done never will be, and all jobs begin again."""
        self._sent.clear()
        for known in self._jobs.values():
            known.left, known.told, known.blocks = known.steps, 0, 0

    def sent(self, step: Step) -> Work:
        """Note a step that is sent. Returns what it has to do at most; jobs that are not known do not count."""
        jobs = [(job_id, self._jobs[job_id]) for job_id in step.denoise if job_id in self._jobs]
        work = NO_WORK
        for _, known in jobs:
            work += Work.of(known.segments) if known.plan is None else known.plan.packed(known.left)
            known.left -= 1
        self._sent[step.number] = jobs
        return work

    def done(self, step: Step, times: StepTimes) -> DoneWork:
        """Take in what a step that was sent has done, and learn from an image whose steps were all computed or saved by
        what its first blocks did."""
        run, all_blocks = dict(times.blocks_run), self._blocks
        tokens = pairs = passes = 0.0
        images = blocks = saved = 0
        for job_id, known in self._sent.pop(step.number, []):
            halves = len(known.segments)
            of_halves = run.get(job_id, (0 if known.plan else all_blocks,) * halves)  # none of a job that has failed
            for segment, count in zip(known.segments, of_halves, strict=True):
                part = count / all_blocks
                tokens += part * segment
                pairs += part * segment * segment
                passes = max(passes, part)
            ran = sum(of_halves)
            images += ran > 0
            blocks += ran
            saved += all_blocks * halves - ran
            if known.plan is not None and job_id in run:
                self._learn(known, known.plan, ran)
        return DoneWork(Work(round(tokens), round(pairs), passes), images, blocks, saved)

    def _learn(self, known: _Known, plan: JobWork, blocks: int) -> None:
        known.told += 1
        known.blocks += blocks
        whole = plan.shape.left[known.steps]
        maybe = sum(whole.maybe)
        if maybe and known.told == known.steps:
            plan.share.learn((known.blocks / self._blocks - sum(whole.sure)) / maybe)
