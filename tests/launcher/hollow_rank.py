"""A rank without an engine, for tests of the processes around it: torch takes seconds to be imported, this nothing.

The rank's process, what it hears and says, and how it ends are the real ones of `launcher.ranks.worker`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

from engine.errors import OutOfMemoryError
from engine.planning.step_memory import DecodeMemory
from engine.step import Job, Step, StepTimes
from tests.launcher.requests.schedule.told_steps import ToldSteps

STEP_S = 0.1  # so that a request of many steps is under way for long
BYTES = 3_000_000_000  # of the weights that it says it has read
HUNGRY_SEED = 507  # of an image that there is too little memory for


class HollowRank:
    """Stands for `engine.rank.rank.Rank`, whose pictures are of one colour."""

    link = None
    plans = None
    model = SimpleNamespace(
        attention_choice=SimpleNamespace(describe=lambda: {}),
        decode_memory=DecodeMemory(bytes_per_element=4),
        describe_plan=lambda: (),
    )

    def __init__(
        self,
        config: object,
        rank: int,
        device: object,
        *,
        on_image: Callable[[SimpleNamespace], None],
        on_failed: Callable[[int, OutOfMemoryError], None],
        on_read: Callable[[int, int], None],
        local_ranks: int,
    ) -> None:
        self._rank, self._on_image, self._on_failed = rank, on_image, on_failed
        self._jobs: dict[int, Job] = {}
        self._told = ToldSteps()
        for done in (0, BYTES // 2, BYTES):
            on_read(done, BYTES)

    def memory(self) -> dict[str, int]:
        return {"weights": 1}

    def idle_wait_s(self) -> float | None:
        return None

    def execute(self, step: Step, pixels: object = None) -> SimpleNamespace:
        self._jobs |= {job.job_id: job for job in step.start if job.seed != HUNGRY_SEED}
        for job in step.start:
            if job.seed == HUNGRY_SEED:
                self._on_failed(job.job_id, OutOfMemoryError("a step needs about 9.0 GB, and 1.0 GB are free"))
        blocks_run = self._told.blocks_run(step)
        decoded = [self._jobs.pop(job_id) for job_id in step.decode if job_id in self._jobs]

        def wait() -> StepTimes:
            time.sleep(STEP_S)
            for job in decoded if self._rank == 0 else ():
                self._send(job)
            return StepTimes(denoise_s=STEP_S, blocks_run=blocks_run)

        return SimpleNamespace(wait=wait, previews=())

    def _send(self, job: Job) -> None:
        rgb = bytes([job.seed % 256, 0, 0]) * (job.width * job.height)
        self._on_image(
            SimpleNamespace(job_id=job.job_id, width=job.width, height=job.height, rgb=rgb, decode_s=0.0, finite=True)
        )


def replace_engine() -> None:
    """Let `launcher.ranks.worker`, in this process, find hollow ranks."""
    rank, warm_up = ModuleType("engine.rank.rank"), ModuleType("engine.rank.warm_up")
    vars(rank)["Rank"] = HollowRank
    vars(warm_up)["warm_up"] = lambda rank, sizes: None
    distributed, devices = ModuleType("engine.parallel.distributed"), ModuleType("engine.device.devices")
    vars(distributed)["connect_mesh"] = lambda rank, *_, **__: rank
    vars(devices).update(pick_device=lambda *_: "cpu", device_name=lambda _: "cpu", gpu_uuids=lambda _: ())
    sys.modules |= {module.__name__: module for module in (rank, warm_up, distributed, devices)}
