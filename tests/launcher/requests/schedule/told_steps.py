"""What ranks that compute nothing tell of the steps of jobs that have a plan."""

from __future__ import annotations

from collections import Counter

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.step import Job, Step
from engine.step_cache.step_plan import StepKind, plan_of


class ToldSteps:
    """Says what real ranks would, as if first blocks always allowed to save a step."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._done: Counter[int] = Counter()
        self._blocks = ModelConfig.from_folder(DEMO_CHECKPOINT).transformer.num_layers

    def blocks_run(self, step: Step) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Count a step, and give its `StepTimes.blocks_run`."""
        self._jobs |= {job.job_id: job for job in step.start}
        told = []
        for job in (self._jobs[job_id] for job_id in step.denoise if job_id in self._jobs):
            if (plan := plan_of(job)) is not None:
                kinds = [half[self._done[job.job_id]] for half in plan]
                told.append((job.job_id, tuple(self._of(kind, job) for kind in kinds)))
            self._done[job.job_id] += 1
        return tuple(told)

    def _of(self, kind: StepKind, job: Job) -> int:
        if kind is StepKind.MAY_BE_CACHED and job.cache is not None:
            return job.cache.first_blocks + job.cache.last_blocks
        return self._blocks if kind is StepKind.COMPUTED else 0
