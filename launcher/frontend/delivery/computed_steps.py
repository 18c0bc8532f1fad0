"""What was computed for the images of a request, step by step, as the ranks tell it."""

from __future__ import annotations

from collections.abc import Collection

from engine.step_cache.step_plan import plan_of
from launcher.messages.message_parts import Computed
from launcher.messages.rank_messages import DoneStep
from launcher.requests.plan import Plan


class ComputedSteps:
    """Collects how many blocks each half ran in each step, of the jobs of whose steps some may be saved or left out."""

    def __init__(self, plan: Plan) -> None:
        self._blocks = plan.blocks
        self._steps = {job.job_id: job.steps for job in plan.jobs if plan_of(job) is not None}
        self._blocks_run: dict[int, list[tuple[int, ...]]] = {job_id: [] for job_id in self._steps}
        self._left = {**self._steps}  # of each, steps that nobody has told of
        self._images: set[int] = set()  # jobs whose image has come

    @property
    def is_told(self) -> bool:
        """Whether all steps of each image that has come are known."""
        return not any(self._left[job_id] for job_id in self._images)

    def stepped(self, done: DoneStep) -> None:
        """Note that a step is done, and what rank 0 tells of it; all ranks decide alike."""
        for job_id in self._left.keys() & {*done.step.denoise}:
            self._left[job_id] -= 1
        _, times = done.by_rank[0]
        for job_id, blocks_run in times.blocks_run:
            if job_id in self._steps:
                self._blocks_run[job_id].append(blocks_run)

    def image_came(self, job_id: int) -> None:
        """Note that an image has come, perhaps before its last step was told of."""
        if job_id in self._steps:
            self._images.add(job_id)

    def start_over(self, decoded: Collection[int]) -> None:
        """Forget the steps of images that are made once more: all but the decoded ones. What lost ranks did not tell of
        those is never known."""
        self._images.clear()
        anew = self._steps.keys() - {*decoded}
        self._left |= {job_id: self._steps[job_id] for job_id in anew}
        self._blocks_run |= {job_id: [] for job_id in anew}

    def of(self, job_id: int) -> Computed | None:
        """Say what was computed for an image; None where all was, and where it is not known."""
        steps = tuple(self._blocks_run.get(job_id, ()))
        if not steps or len(steps) < self._steps[job_id]:
            return None
        return Computed(steps=steps, blocks=self._blocks)
