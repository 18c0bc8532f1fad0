"""Which jobs step next. Plain Python: no torch, no I/O, no clock.

A step starts new jobs, which encodes their prompts and pictures, denoises the chosen ones once, and hands finished ones
to the decoder (see `Decoding`). All three are bounded, and a `Policy` orders the queue.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import count

from engine.scheduling.cost import CostModel, Work
from engine.scheduling.decoding import Decoding, stage_work
from engine.scheduling.forecast import forecast
from engine.scheduling.job_work import work_of
from engine.scheduling.outlook import Estimate, Outlook
from engine.scheduling.packing import Packed, pack, picture_s, pictures_to_come
from engine.scheduling.planned_jobs import PlannedJobs
from engine.scheduling.policy import Key, Policy, QueuedJob, ordering
from engine.step import Adapter, Job, Picture, Step


class Scheduler:
    """Turns jobs into numbered steps, and says when they will be done.

    A step packs jobs in the policy's order up to `token_budget`; what does not fit is passed over for what does, and a
    job larger than the budget runs by itself. Jobs that start in one step have at most `prompt_budget` prompt tokens to
    encode, or are one job, and pictures of `picture_budget` pixels, or one, so that a burst of arrivals does not hold
    up what runs. A picture is encoded in the step that starts the first of its jobs, and forgotten once none of them is
    to start. A job of no steps starts, and goes to the decoder. One that has begun may be passed over too, but keeps
    its memory: at most `max_begun` have begun and not ended. At most `max_decoding` images are with the decoder, and no
    more than it needs until the next step.

    Jobs whose next step runs no block take it before anything else, together, since that takes next to no time; steps
    that may be cached count in full. planned: such jobs, and the memory for what they hold between steps, which bounds
    how many begin; one always may, and makes steps smaller if it holds more. Who has too little room beside them, even
    alone in a step, waits.

    decodes_in_turn: the ranks decode what a step hands over before they do another, instead of beside it.

    Times are monotonic seconds of any clock. `costs` may be corrected at any time. Bounds below 1 raise `ValueError`.
    It has more attributes than other classes since it alone owns the queue: eight are its bounds and rules, three are
    orders for the next step beside denoising, the others say where jobs and ranks stand.
    """

    def __init__(
        self,
        token_budget: int,
        *,
        policy: Policy | None = None,
        costs: CostModel | None = None,
        prompt_budget: int = 2048,
        picture_budget: int = 2**20,
        max_begun: int = 64,
        max_decoding: int = 2,
        decodes_in_turn: bool = False,
    ) -> None:
        if min(token_budget, prompt_budget, picture_budget, max_begun, max_decoding) < 1:
            raise ValueError("budgets, max_begun and max_decoding must be positive")
        self.token_budget = token_budget
        self.policy = policy or Policy()
        self.costs = costs or CostModel()
        self.decodes_in_turn = decodes_in_turn
        self._prompt_budget, self._picture_budget = prompt_budget, picture_budget
        self._max_begun, self._max_decoding = max_begun, max_decoding
        self.planned = PlannedJobs()
        self._queue: dict[int, QueuedJob] = {}  # until they go to the decoder
        self._decoding = Decoding(self.costs, max_decoding)  # then until the image comes, that of a cancelled job too
        self._held: set[int] = set()  # pictures that the ranks have once they have done all steps that are made
        self._releases: list[int] = []
        self._loads: list[Adapter] = []
        self._unloads: list[int] = []
        self._arrivals, self._numbers = count(), count()  # of jobs, and of steps
        self._step_s = self._busy_until = 0.0  # of the last step made, and when the ranks will have done it
        self._outlook: Outlook | None = None  # until the queue changes

    def add(
        self,
        job: Job,
        *,
        segments: tuple[int, ...],
        request: int,
        priority: int = 0,
        now: float,
        state_bytes: int = 0,
    ) -> None:
        """Queue a job of a request. segments: packed tokens of each of its segments, two when it is guided.
        state_bytes: what each rank keeps of it between steps for those that are saved. Raises `ValueError` for a job
        that is here already, and for segments that are none or not positive."""
        if job.job_id in self._queue or job.job_id in self._decoding:
            raise ValueError(f"job {job.job_id} is queued already")
        if not segments or min(segments) < 1:
            raise ValueError(f"segments must be positive token counts, got {segments}")
        prompts = {hash(ids): len(ids) for ids in job.prompts}  # a collision would only miscount
        queued = QueuedJob(job, request, priority, Work.of(segments), prompts, now, next(self._arrivals), job.steps)
        if (plan := work_of(job, segments, self.costs)) is not None:
            queued.plan, queued.state_bytes = plan, state_bytes
            queued.be_at(job.steps)
        self._queue[job.job_id] = queued
        queued.patience_s = self.policy.patience_s(self._work_queued())
        self._outlook = None

    def cancel(self, job_id: int) -> None:
        """Leave the job out of every step not yet made. Unknown and finished jobs are ignored.

        One that is being decoded keeps its place in the decoder until `decoded`.
        """
        queued = self._queue.pop(job_id, None)
        if queued is not None and queued.begun:
            self._releases.append(job_id)
        self.planned.end(job_id)
        self._decoding.cancel(job_id)
        self._outlook = None

    def load(self, adapter: Adapter) -> None:
        """Load an adapter in a step of its own, which then says whether it can be, and before jobs that come later."""
        self._loads.append(adapter)

    def unload(self, adapter_id: int) -> None:
        """Unload an adapter with the next step. Jobs that name it have been decoded or cancelled."""
        self._unloads.append(adapter_id)

    def decoded(self, job_id: int, now: float) -> None:
        """Note that a job's image has come, or will not be waited for. Unknown jobs are ignored."""
        self._decoding.end(job_id, now)
        self._outlook = None

    def reset(self, *, alone: Collection[int] = ()) -> None:
        """Start every job again, keeping its arrival and priority, after the ranks were lost. Steps count from 0.

        Jobs of the requests in `alone` run alone from now on: they have the ranks for themselves, request after request
        and one step at a time, and until they have been decoded no other starts. Adapters are no longer loaded.
        """
        again = [queued for queued in self._decoding.jobs() if not queued.cancelled]
        for queued in (*again, *self._queue.values()):
            queued.be_at(queued.job.steps)
            queued.begun = False
            queued.alone = queued.alone or queued.request in alone
            self._queue[queued.job.job_id] = queued
        self._decoding = Decoding(self.costs, self._max_decoding)
        self._releases, self._loads, self._unloads = [], [], []
        self._held.clear()
        self.planned.clear()
        self._numbers = count()
        self._step_s = self._busy_until = 0.0
        self._outlook = None

    def next_step(self, now: float, *, idle: bool) -> Step | None:
        """Make the next step, or None when there is nothing to do now: then ask again when something has come or ended.

        idle: the ranks have no step to do and no image to decode. Steps are made one ahead of the ranks at most.
        """
        self._outlook = None
        ordered = self._ordered(now)
        if ordered and ordered[0].alone:
            if not idle:
                return None
            ordered = [queued for queued in ordered if queued.request == ordered[0].request]
        if self._loads:
            return Step(next(self._numbers), load=(self._loads.pop(0),))
        # This step begins when the one before ends: as expected, but no later than if that began as soon as it can.
        free = self._decodes_until(now)
        begins = now if idle else max(free, min(self._busy_until, free + self._step_s))
        packed = self._pack(ordered)
        chosen, step_s = packed.denoise, packed.seconds(self.costs)
        if (chosen or packed.start) and self._decoding.runs_dry(begins + step_s, now):
            # with a step of its own, since one hands images over when it has denoised
            decode = self._hand_over(ordered, at=begins, step_s=step_s, now=now)
            if decode:
                return Step(next(self._numbers), decode=decode)
        for queued in packed.start:
            queued.begun = True
            self.planned.begin(queued)
        for queued in chosen:
            queued.be_at(queued.steps_left - 1)
        decode = self._hand_over(ordered, at=begins + step_s, step_s=step_s, now=now)
        forget = self._forget(packed.pictures)
        if not (chosen or packed.start or decode or self._releases or self._unloads or forget):
            return None
        self._step_s, self._busy_until = step_s, begins + step_s
        releases, self._releases = self._releases, []
        unloads, self._unloads = self._unloads, []
        return Step(
            next(self._numbers),
            start=tuple(queued.job for queued in packed.start),
            denoise=tuple(queued.job.job_id for queued in chosen),
            decode=decode,
            release=tuple(releases),
            unload=tuple(unloads),
            encode=tuple(packed.pictures.values()),
            forget=forget,
        )

    def empty_step(self) -> Step:
        """Make a step in which nothing is done: whoever executes it shows that it can."""
        return Step(next(self._numbers))

    def estimate(self, request: int, now: float) -> Estimate | None:
        """Say where a request stands; None if it has no job here. Cheap for all requests of an unchanged queue."""
        return self._look_ahead(now).estimate(request, now)

    def backlog_s(self, now: float) -> float | None:
        """Say in how many seconds everything that is here is decoded, 0 if nothing is; None while no speeds are known.

        It counts down, but not below what a step that takes longer than expected holds up, nor while there are no
        ranks. As cheap as an estimate.
        """
        if not (self._queue or len(self._decoding)):
            return 0.0
        if not self.costs.known:
            return None
        return self._look_ahead(now).backlog_s(now)

    def images_to_decode(self) -> tuple[int, int]:
        """Count those whose steps have all been made: that wait for the decoder, and that it has."""
        return sum(queued.is_denoised for queued in self._queue.values()), len(self._decoding)

    # ---- one step

    def _pack(self, ordered: Sequence[QueuedJob]) -> Packed:
        alone = ordered[0].request if ordered and ordered[0].alone else None
        if free := self.planned.free(alone):
            return Packed(denoise=free)
        return pack(
            ordered,
            held=self._held,
            token_budget=self.token_budget,
            prompt_budget=self._prompt_budget,
            picture_budget=self._picture_budget,
            places=self._max_begun - len(self._decoding) - sum(queued.begun for queued in self._queue.values()),
            planned=self.planned,
        )

    def _decodes_until(self, now: float) -> float:
        """Until when the ranks do no step, since they decode."""
        return self._decoding.free_at(now) if self.decodes_in_turn else now

    def _ordered(self, now: float) -> list[QueuedJob]:
        key = self._key(now)
        return sorted(self._queue.values(), key=lambda queued: key(queued, self._work_left(queued)))

    def _work_left(self, queued: QueuedJob) -> float:
        """Of the stage that the job is in: the ranks and the decoder each do first what keeps them least."""
        left = stage_work(queued, self.costs)
        return left if queued.job.picture is None else left + picture_s(queued, self._held, self.costs)

    def _work_queued(self) -> float:
        """Seconds of work left, a picture that jobs share being encoded once; 0 while no speeds are known."""
        if not self.costs.known:
            return 0.0
        jobs = self._queue.values()
        pictures = {queued.job.picture: picture_s(queued, self._held, self.costs) for queued in jobs}
        return sum(stage_work(queued, self.costs) for queued in jobs) + sum(pictures.values())

    def _key(self, now: float) -> Key:
        return ordering(self.policy, self._queue.values(), self._work_left, now)

    def _forget(self, encoded: Mapping[int, Picture]) -> tuple[int, ...]:
        """Hold what a step encodes, and forget what no job is to begin from any more."""
        self._held.update(encoded)
        if not self._held:
            return ()
        forget = self._held - pictures_to_come(self._queue.values())
        self._held -= forget
        return tuple(sorted(forget))

    def _hand_over(self, ordered: Iterable[QueuedJob], *, at: float, step_s: float, now: float) -> tuple[int, ...]:
        """Take jobs that are to be decoded from the queue, at the end of a step or before it."""
        key = self._key(now)
        ready = [queued for queued in ordered if queued.is_denoised]
        ready.sort(key=lambda queued: key(queued, self._work_left(queued)))
        decode = self._decoding.choose(ready, at=at, step_s=step_s, now=now)
        for queued in decode:
            self._decoding.begin(self._queue.pop(queued.job.job_id), at)
            self.planned.end(queued.job.job_id)
        return tuple(queued.job.job_id for queued in decode)

    # ---- estimates

    def _look_ahead(self, now: float) -> Outlook:
        if self._outlook is not None and self._outlook.known == self.costs.known:
            return self._outlook
        decoding, queue = self._decoding.jobs(), self._ordered(now)
        begins, done_at = max(self._decodes_until(now), self._busy_until), None
        if self.costs.known:
            done_at = forecast(
                queue,
                self.costs,
                self._key(now),
                held=self._held,
                decoding=self._decoding.ends(now),
                token_budget=self.token_budget,
                max_begun=self._max_begun,
                max_decoding=self._max_decoding,
                decodes_in_turn=self.decodes_in_turn,
                begins=begins,
                step_s=self._step_s,
            )
        self._outlook = Outlook(decoding, queue, begins=begins, done_at=done_at)
        return self._outlook
