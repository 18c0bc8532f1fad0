"""Runs the engine, its ranks being threads of this process: once, or as a group that is kept for other runs."""

from __future__ import annotations

import gc
import queue
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.pictures.pixels import Pixels
from engine.rank.image_decoder import DecodedImage
from engine.rank.job_state import JobState
from engine.rank.rank import Rank
from engine.step import Adapter, Job, Step
from launcher.requests.tokenizer import PromptTokenizer
from tests.engine.job_steps import steps_of
from tests.engine.parallel.thread_group import thread_meshes
from tests.oracle import Picture, Request

DEADLINE_S = 240.0
T = TypeVar("T")


def jobs_of(folder: Path, requests: Sequence[Request]) -> list[Job]:
    """The jobs of some requests, as the front-end makes them: sizes rounded up, one job an image."""
    tokenizer = PromptTokenizer(folder, ModelConfig.from_folder(folder).text_encoder.vocab_size)
    jobs: list[Job] = []
    for request in requests:
        for seed in request.seeds:
            jobs.append(
                Job(
                    job_id=len(jobs),
                    prompt_ids=tokenizer.encode(request.prompt).ids,
                    negative_ids=tokenizer.encode(request.negative_prompt).ids if request.guidance > 0 else None,
                    width=-(-request.width // 16) * 16,
                    height=-(-request.height // 16) * 16,
                    steps=request.steps,
                    guidance=request.guidance,
                    mu=request.mu,
                    seed=seed,
                    sigmas=request.sigmas,
                )
            )
    return jobs


def run_requests(
    folder: Path, requests: Sequence[Request], *, joins: Sequence[int] | None = None, **options: Any
) -> list[Picture]:
    """Every image of the requests, in order, all jobs that are not done being packed into each step.

    joins: the step at which each job starts; None: all at the first. options: of `EngineConfig`, which differ from its
    defaults in float32 and no quantization.
    """
    with closing(RankGroup(folder, **options)) as group:
        return group.run_requests(requests, joins=joins)


def run_jobs(
    folder: Path,
    jobs: Sequence[Job],
    *,
    joins: Sequence[int] | None = None,
    adapters: Sequence[Adapter] = (),
    pixels: Mapping[int, Pixels] = {},
    **options: Any,
) -> list[Picture]:
    """As `run_requests`, with these adapters loaded, and these pixels of pictures. Also checks that all ranks end with
    the same latents."""
    with closing(RankGroup(folder, **options)) as group:
        return group.run_jobs(jobs, joins=joins, adapters=adapters, pixels=pixels)


def on_ranks(folder: Path, function: Callable[[Rank], T], **options: Any) -> list[T]:
    """Load the checkpoint on ranks and call the function in each rank's thread. Raises what a rank raised."""
    with closing(RankGroup(folder, **options)) as group:
        return group.on_ranks(function)


class RankGroup:
    """The ranks of a checkpoint as threads of this process, which run one batch of jobs after another.

    Ends when it is closed, or when a rank raises something.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        """Load the checkpoint on every rank. Raises what a rank raised. options: as `run_requests` has them."""
        self.folder, self.closed = folder, False
        self.config = config_of(folder, **options)
        self._meshes = thread_meshes(self.config.degrees, timeout_s=DEADLINE_S, spoils=True)
        # a pool of one a rank, whose groups hold out for one thread
        self._threads = [ThreadPoolExecutor(1, f"rank-{rank}") for rank in range(self.config.ranks)]
        self._images: queue.Queue[DecodedImage] = queue.Queue()
        self._next_step = 0
        self._hangs = False
        self._ranks: list[Rank] = []
        self._ranks = self._in_threads(self._load)

    def on_ranks(self, function: Callable[[Rank], T]) -> list[T]:
        """Call the function in each rank's thread, beside those of the other ranks. Raises what a rank raised.

        A function that executes steps of its own leaves the group at a number that the next run does not know.
        """
        return self._in_threads(lambda index: function(self._ranks[index]))

    def run_requests(self, requests: Sequence[Request], *, joins: Sequence[int] | None = None) -> list[Picture]:
        return self.run_jobs(jobs_of(self.folder, requests), joins=joins)

    def run_jobs(
        self,
        jobs: Sequence[Job],
        *,
        joins: Sequence[int] | None = None,
        adapters: Sequence[Adapter] = (),
        pixels: Mapping[int, Pixels] = {},
    ) -> list[Picture]:
        """The images of the jobs, which the ranks make as if they had just been loaded: with no features of prompts or
        timesteps, batch layouts or rotations from an earlier run. The adapters are there for this run."""
        steps = list(steps_of(jobs, [0] * len(jobs) if joins is None else joins, adapters))
        pictures = self.run_steps(steps, pixels)
        return [pictures[job.job_id] for job in jobs]

    def run_steps(self, steps: Sequence[Step], pixels: Mapping[int, Pixels] = {}) -> dict[int, Picture]:
        """The images that the steps decode, by job, made as `run_jobs` says. Whatever numbers the steps have. Also
        checks that all ranks end with the same latents."""
        steps = [replace(step, number=self._next_step + index) for index, step in enumerate(steps)]
        latents = self.on_ranks(lambda rank: _execute(rank, steps, pixels))
        self._next_step += len(steps)
        for other in latents[1:]:
            assert other.keys() == latents[0].keys()
            for job_id, tensor in other.items():
                assert torch.equal(tensor, latents[0][job_id]), f"ranks differ on job {job_id}"
        images = self._collect(len(latents[0]))
        return {job_id: Picture(tensor, as_array(images[job_id])) for job_id, tensor in latents[0].items()}

    def close(self) -> None:
        """Wait until every image has been decoded, and let go of the ranks. Raises what went wrong there."""
        self.closed = True
        ranks, self._ranks = self._ranks, []
        for mesh in self._meshes:
            mesh.close()  # lets ranks go that wait for another
        try:
            for rank in ranks:
                rank.close()
        finally:
            for thread in self._threads:
                thread.shutdown(wait=not self._hangs)

    def _load(self, index: int) -> Rank:
        on_image = self._images.put if index == 0 else None
        return Rank(self.config, self._meshes[index], torch.device("cpu"), on_image)

    def _in_threads(self, function: Callable[[int], T]) -> list[T]:
        assert not self.closed, "this group of ranks has ended"

        def run(index: int) -> T:
            try:
                with torch.inference_mode():
                    return function(index)
            except BaseException:
                self._meshes[index].close()  # lets the other ranks go
                raise

        futures = [thread.submit(run, index) for index, thread in enumerate(self._threads)]
        _, running = wait(futures, timeout=DEADLINE_S)
        failures = [future.exception() for future in futures if future not in running and future.exception()]
        self._hangs = bool(running)
        if running or failures:
            with suppress(Exception):  # it says the same again
                self.close()
        assert not running, "a rank hangs"
        if failures:
            # what the others say is only that this one left
            raise min(failures, key=lambda failure: "in vain" in str(failure))
        return [future.result() for future in futures]

    def _collect(self, count: int) -> dict[int, DecodedImage]:
        """Wait for `count` images; returns them by job."""
        images: dict[int, DecodedImage] = {}
        deadline = time.monotonic() + DEADLINE_S
        while len(images) < count:
            with suppress(queue.Empty):
                image = self._images.get(timeout=1)
                images[image.job_id] = image
                continue
            assert time.monotonic() < deadline, "an image is not decoded"
            step = Step(self._next_step)  # raises what decoding raised, if it did
            self._next_step += 1
            self.on_ranks(lambda rank, step=step: rank.execute(step))
        return images


class RankGroups:
    """Groups of ranks by checkpoint and options, each loaded when it is first asked for: runs after the first need not
    load the checkpoint again.

    The fixture `rank_groups` has those of a test module. Not for tests that change a checkpoint's files, or what
    loading does.
    """

    def __init__(self, most: int = 4) -> None:
        """most: how many groups are kept; one more ends that which was not asked for the longest."""
        self._most = most
        self._groups: OrderedDict[EngineConfig, RankGroup] = OrderedDict()

    def get(self, folder: Path, **options: Any) -> RankGroup:
        config = config_of(folder, **options)
        group = self._groups.pop(config, None)
        if group is None or group.closed:
            if len(self._groups) >= self._most:
                self._end([self._groups.popitem(last=False)[1]])
            group = RankGroup(folder, **options)
        self._groups[config] = group
        return group

    def run_requests(
        self, folder: Path, requests: Sequence[Request], *, joins: Sequence[int] | None = None, **options: Any
    ) -> list[Picture]:
        """As the function of this name."""
        return self.get(folder, **options).run_requests(requests, joins=joins)

    def run_jobs(
        self,
        folder: Path,
        jobs: Sequence[Job],
        *,
        joins: Sequence[int] | None = None,
        adapters: Sequence[Adapter] = (),
        pixels: Mapping[int, Pixels] = {},
        **options: Any,
    ) -> list[Picture]:
        """As the function of this name."""
        return self.get(folder, **options).run_jobs(jobs, joins=joins, adapters=adapters, pixels=pixels)

    def on_ranks(self, folder: Path, function: Callable[[Rank], T], **options: Any) -> list[T]:
        """As the function of this name, for a function that executes no steps and leaves the ranks as they are."""
        return self.get(folder, **options).on_ranks(function)

    def close(self) -> None:
        groups = list(self._groups.values())
        self._groups.clear()
        self._end(groups)

    def _end(self, groups: Sequence[RankGroup]) -> None:
        with ExitStack() as stack:  # each, whatever another raises
            for group in groups:
                stack.callback(group.close)
        gc.collect()  # a rank is part of a cycle, and Python does not know how much memory it holds


def config_of(folder: Path, **options: Any) -> EngineConfig:
    """In float32 and without quantization, unless the options say otherwise."""
    defaults = {"device": "cpu", "dtype": "float32", "quantization": "none"}
    return EngineConfig(model=str(folder), **defaults | options)


def as_array(image: DecodedImage) -> np.ndarray:
    """uint8 (height, width, 3)."""
    return np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3)


def _execute(rank: Rank, steps: Sequence[Step], pixels: Mapping[int, Pixels]) -> dict[int, torch.Tensor]:
    """Forget what earlier runs have encoded and execute the steps. Returns the final latents by job."""
    on_rank = pixels if rank.model.mesh.world.rank == 0 else {}
    rank.prompts._kept.clear()
    rank.starter._schedule.cache_clear()
    rank.denoiser._layout.cache_clear()
    rank.denoiser._grid.cache_clear()
    latents: dict[int, torch.Tensor] = {}
    decode = rank.decoder.decode

    def watched(state: JobState) -> None:
        latents[state.job.job_id] = state.latents.clone()
        decode(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank.decoder, "decode", watched)
        for step in steps:
            rank.execute(step, on_rank).wait()
    assert not rank.pictures.held
    return latents
