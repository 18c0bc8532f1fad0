"""Turns jobs into images by a scheduler, the ranks it makes steps for, and a warm-up that learns what steps cost."""

from __future__ import annotations

import asyncio
import time
from collections import ChainMap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import zmq.asyncio

from engine.config.model_config import ModelConfig
from engine.errors import Krea2Error
from engine.pictures.pixels import Pixels
from engine.planning.step_memory import DecodeMemory
from engine.scheduling.cost import NO_WORK, CostModel, Work
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.step_work import StepWork
from engine.scheduling.token_budget import TokenBudget
from engine.step import Adapter, Job, Step
from engine.step_cache.step_plan import WHOLE
from launcher.frontend.warm_up import AfterWarmUp, WarmUp
from launcher.logs import log_event
from launcher.messages.configs import FrontendConfig
from launcher.messages.message_parts import Stage
from launcher.messages.rank_messages import Decoded, DoneStep, Previewed, Ready
from launcher.pictures.held import HeldPixels
from launcher.processes import Child
from launcher.ranks.gpu_health import Gpu, GpuError
from launcher.ranks.rank_group import STEPS_AHEAD, JobReport, RankEvents
from launcher.ranks.supervisor import RankSupervisor
from launcher.requests.rank_memory import RankMemory
from launcher.requests.tokenizer import Prompt

_MAX_DECODING = 32  # images in rank 0's queue for its decoder, if all of them are small: a step may end as many


@dataclass(frozen=True)
class RankStatus:
    """What is known of the ranks; while a group starts, what its ranks have said so far.

    answering: whether they take steps, if only to be warmed up; ready: whether they have been warmed up, too.
    replacing: whether they take the places of lost ones, and do not answer yet. given_up:
    why nothing may wait for ranks, if they are lost again and again. stage: how far they are, None once they are ready
    or nothing waits for them. first: what rank 0 said when it was ready. rank_memory: bytes by purpose, rank by rank.
    """

    answering: bool
    ready: bool
    replacing: bool
    restarts: int
    given_up: Krea2Error | None
    stage: Stage | None
    first: Ready | None
    rank_memory: tuple[dict[str, int], ...]
    step_memory: RankMemory

    @property
    def not_ready(self) -> str | None:
        """Why no images can be made now, None if they can."""
        if self.ready:
            return None
        if self.given_up is not None:
            return self.given_up.message
        if self.answering:
            return "it warms up"
        what = "lost ranks are being replaced" if self.replacing else "its ranks start"
        return what if self.stage is None or not self.stage.total else f"{what}, {self.stage.describe()}"


class Dispatcher:
    """Sends the ranks one step ahead of the one they work on, as long as there are jobs.

    It hears what becomes of the ranks, and tells `events`, but for the steps of the warm-up. scheduler: whoever changes
    its queue calls `send_steps` then. supervisor: what keeps ranks running.
    """

    def __init__(
        self,
        config: FrontendConfig,
        model: ModelConfig,
        encode: Callable[[str], Prompt],
        job_ids: Iterator[int],
        children: list[Child],
        context: zmq.asyncio.Context,
        events: RankEvents,
        after_warm_up: AfterWarmUp | None,
    ) -> None:
        self._config, self._model = config, model
        self._events, self._after_warm_up = events, after_warm_up
        blocks = model.transformer.num_layers
        self._costs, self._budget = CostModel(blocks), TokenBudget()
        in_turn = config.engine.decodes_together and config.engine.vae_memory is None  # tiles are for rank 0 alone
        self.scheduler = Scheduler(
            self._budget.most, costs=self._costs, max_decoding=_MAX_DECODING, decodes_in_turn=in_turn
        )
        self._work = StepWork(self._costs, blocks)
        self._pixels = HeldPixels()  # of their pictures
        self._adapter_bytes: dict[int, int] = {}  # of each rank, by adapter
        self._decoding: frozenset[int] = frozenset()  # at the last `check_decoder`
        guided, loop = model.divides_guidance(config.engine.degrees), asyncio.get_running_loop()
        pictures = config.engine.image_input
        self._warm_up = WarmUp(model, encode, job_ids, self._costs, guided, loop.time, pictures=pictures)
        if not config.warm_up:
            self._warm_up.end()
        self.supervisor = RankSupervisor(config, children, context, self)

    @property
    def status(self) -> RankStatus:
        """What is known of the ranks now."""
        group = self.supervisor.group
        first = group.ready_by_rank.get(0)
        memory = RankMemory(self._model, self._config.engine, first.device.split(":")[0] if first else "")
        rank_memory = tuple(group.ready_by_rank[rank].memory for rank in sorted(group.ready_by_rank))
        if first is not None and group.came_up and all("free" in purposes for purposes in rank_memory):
            free = tuple(purposes["free"] for purposes in rank_memory)
            decode = DecodeMemory(first.decoding_bytes_per_element, first.memory.get("decode_limit"))
            memory = replace(memory, free=free, decode=decode).without(sum(self._adapter_bytes.values()))
        return RankStatus(
            answering=group.ready,
            ready=group.ready and self._warm_up.over,
            replacing=not group.ready and (group.failed.done() or self.supervisor.restarts > 0),
            restarts=self.supervisor.restarts,
            given_up=self.supervisor.given_up,
            stage=self._stage(),
            first=first,
            rank_memory=rank_memory,
            step_memory=memory,
        )

    def _stage(self) -> Stage | None:
        group = self.supervisor.group
        if self.supervisor.given_up is not None or (group.ready and self._warm_up.over):
            return None
        done, total = group.loading.read
        name = "loading" if total else "starting"
        if group.ready or (self._config.warm_up and 0 < total == done):
            name = "warming up"
        return Stage(name=name, done=done, total=total)

    # ---- jobs

    def add(
        self,
        job: Job,
        *,
        segments: tuple[int, ...],
        request: int,
        priority: int,
        arrived: float,
        pixels: Pixels | None = None,
    ) -> None:
        """Queue a job; `send_steps` sends what can be sent. pixels: of the picture that it begins from; for the others
        see `Scheduler.add`."""
        self._work.add(job, segments)
        self._pixels.add(job, pixels)
        saves = job.cache is not None or job.guidance_window != WHOLE
        self.scheduler.add(
            job,
            segments=segments,
            request=request,
            priority=priority,
            now=arrived,
            state_bytes=self.status.step_memory.cache_bytes(job, segments) if saves else 0,
        )

    def cancel(self, job_id: int) -> None:
        """Leave a job out of every step that is not made yet."""
        self._work.forget(job_id)
        self._pixels.end(job_id)
        self.scheduler.cancel(job_id)

    def load(self, adapter: Adapter, size: int) -> None:
        """Have the ranks load an adapter, which takes `size` bytes of each, before jobs that have not begun.

        `send_steps` sends it. It is forgotten when the ranks are lost.
        """
        self._adapter_bytes[adapter.adapter_id] = size
        self.scheduler.load(adapter)
        self._fit_budget()

    def _fit_budget(self) -> None:
        memory = self.status.step_memory
        self.scheduler.token_budget = memory.token_budget(self._budget.most)
        # what memory ran out for is not there for what images hold between steps
        self.scheduler.planned.room = memory.state_room(memory.token_budget(self._budget.best))

    def send_steps(self) -> None:
        """Send steps as far ahead as they may be sent; those of the warm-up only when there is nothing else to do."""
        group = self.supervisor.group
        while group.ready and group.outstanding.steps < STEPS_AHEAD:
            idle = group.outstanding.steps == 0 and not group.outstanding.images
            step = self._warm_up.next_step(self.scheduler.empty_step) if self._warm_up.is_due else None
            if step is None:
                step = self.scheduler.next_step(time.monotonic(), idle=idle)
            if step is None and group.outstanding.steps == 0:
                step = self._warm_up.next_step(self.scheduler.empty_step)
            if step is None:
                return
            work = self._work.sent(step)
            pixels = ChainMap(self._pixels.by_picture, self._warm_up.pixels)
            group.send(step, work, expected_s=self._expected_s(step, work), pixels=pixels)

    def _expected_s(self, step: Step, work: Work) -> float | None:
        """How long a step may take, but for its prompts; None where that is not known, as of reading an adapter."""
        pixels = sum(picture.pixels for picture in step.encode)
        seconds = self._costs.denoise_s(work), self._costs.encode_picture_s(pixels) if pixels else 0.0
        known = [each for each in seconds if each is not None]
        return None if step.load or len(known) < len(seconds) else sum(known)

    def check_decoder(self) -> None:
        """Send an empty step to a rank that only decodes, and an image that it had when this was called before: if its
        decoder has failed, it says so at the next step."""
        group = self.supervisor.group
        images, before = group.outstanding.images, self._decoding
        if group.ready and not group.outstanding.steps and images & before:
            group.send(self.scheduler.empty_step(), NO_WORK)
        self._decoding = images

    # ---- what becomes of the ranks: see `RankEvents`

    def ranks_loading(self) -> None:
        self._events.ranks_loading()

    def ranks_ready(self) -> None:
        self.supervisor.given_up = None  # requests may wait for ranks again
        self._fit_budget()
        self._events.ranks_ready()
        if not self._warm_up.over:
            self._warm_up.begin(self.scheduler.token_budget)
        self.send_steps()

    def step_sent(self, step: Step) -> None:
        self._events.step_sent(step)

    def step_done(self, done: DoneStep) -> None:
        self.send_steps()  # before anything else, so that the ranks have work
        step, times, did = done.step, done.times, self._work.done(done.step, done.times)
        if times.encoded_tokens and not times.one_by_one:
            self._costs.correct_encode(times.encoded_tokens, times.encode_s)
        if times.encoded_pixels and not times.one_by_one:
            self._costs.correct_encode_picture(times.encoded_pixels, times.picture_s)
        if self._warm_up.step_done(step, times):
            if self._warm_up.over:
                self._learn_from_warm_up()
            self.send_steps()
            return
        for adapter_id in step.unload:
            del self._adapter_bytes[adapter_id]
        if times.one_by_one:
            self._budget.ran_out(did.images, done.work.tokens)
        elif did.work.tokens and self._work.knows(step.denoise):  # one that had failed did nothing
            self._costs.correct(did.work, times.denoise_s)
            self._budget.had_memory()
        self._fit_budget()
        if times.one_by_one:
            log_event(
                "out of memory",
                level="warning",
                step_tokens=done.work.tokens,
                images=did.images,
                token_budget=self.scheduler.token_budget,
            )
        self._events.step_done(replace(done, did=did))

    def _learn_from_warm_up(self) -> None:
        if self._warm_up.budget is not None:
            self._budget.measured(self._warm_up.budget)
            self._fit_budget()
        if self._after_warm_up is not None and not self._warm_up.rough:
            self._after_warm_up(self._config, self._model, self._costs, self.supervisor.group.ready_by_rank[0])

    def job_reported(self, report: JobReport, rgb: bytes) -> None:
        if isinstance(report, Decoded):
            self.scheduler.decoded(report.job_id, time.monotonic())
            self._costs.correct_decode(report.width * report.height, report.decode_s)
        self._events.job_reported(report, rgb)
        if not isinstance(report, Previewed):
            self._warm_up.job_ended(report.job_id)
            self.cancel(report.job_id)  # if nobody knew it, or it is the warm-up's
            self.scheduler.decoded(report.job_id, time.monotonic())
            self.send_steps()

    def ranks_lost(self, error: Krea2Error) -> bool:
        self._warm_up.end()  # what it may still have found is not worth another loss
        self._adapter_bytes.clear()
        self._work.start_over()
        return self._events.ranks_lost(error)

    def ranks_given_up(self, error: Krea2Error) -> None:
        self._events.ranks_given_up(error)

    def gpu_failed(self, error: GpuError) -> None:
        self._events.gpu_failed(error)

    def gpu_quarantined(self, gpu: Gpu, reason: str) -> None:
        self._events.gpu_quarantined(gpu, reason)
