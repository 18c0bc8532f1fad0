"""Runs the engine, its ranks being threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from engine.config import EngineConfig, ModelConfig
from engine.decoding import DecodedImage
from engine.parallel import thread_meshes
from engine.rank import Rank
from engine.step import Adapter, Job, Step
from launcher.tokenizer import PromptTokenizer
from tests.oracle import Picture, Request

DEADLINE_S = 60.0
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
                )
            )
    return jobs


def run_requests(
    folder: Path,
    requests: Sequence[Request],
    *,
    tp: int = 1,
    sp: int = 1,
    cfg_parallel: bool = False,
    dtype: str = "float32",
    quantization: str = "none",
    joins: Sequence[int] | None = None,
    **options: Any,
) -> list[Picture]:
    """Every image of the requests, in order, all jobs that are not done being packed into each tick.

    joins: the tick at which each job starts; None: all at the first. options: others of `EngineConfig`.
    """
    jobs = jobs_of(folder, requests)
    return run_jobs(
        folder,
        jobs,
        tp=tp,
        sp=sp,
        cfg_parallel=cfg_parallel,
        dtype=dtype,
        quantization=quantization,
        joins=joins,
        **options,
    )


def run_jobs(
    folder: Path,
    jobs: Sequence[Job],
    *,
    tp: int = 1,
    sp: int = 1,
    cfg_parallel: bool = False,
    dtype: str = "float32",
    quantization: str = "none",
    joins: Sequence[int] | None = None,
    adapters: Sequence[Adapter] = (),
    **options: Any,
) -> list[Picture]:
    """As `run_requests`, with these adapters loaded. Also checks that all ranks end with the same latents."""
    starts = [0] * len(jobs) if joins is None else joins
    images: dict[int, DecodedImage] = {}

    def keep(image: DecodedImage) -> None:
        images[image.job_id] = image

    def run(rank: Rank) -> dict[int, torch.Tensor]:
        latents = _run_ticks(rank, jobs, starts, adapters)
        rank.close()
        return latents

    latents = on_ranks(
        folder,
        run,
        tp=tp,
        sp=sp,
        cfg_parallel=cfg_parallel,
        dtype=dtype,
        quantization=quantization,
        on_image=keep,
        **options,
    )
    for other in latents[1:]:
        for job in jobs:
            assert torch.equal(other[job.job_id], latents[0][job.job_id]), f"ranks differ on job {job.job_id}"
    return [Picture(latents[0][job.job_id], as_array(images[job.job_id])) for job in jobs]


def on_ranks(
    folder: Path,
    function: Callable[[Rank], T],
    *,
    tp: int = 1,
    sp: int = 1,
    cfg_parallel: bool = False,
    dtype: str = "float32",
    quantization: str = "none",
    on_image: Callable[[DecodedImage], None] | None = None,
    **options: Any,
) -> list[T]:
    """Load the checkpoint on so many ranks and call the function in each rank's thread. Raises what a rank raised.

    options: of `EngineConfig`.
    """
    config = EngineConfig(
        model=str(folder),
        tp=tp,
        sp=sp,
        cfg_parallel=cfg_parallel,
        device="cpu",
        dtype=dtype,
        quantization=quantization,
        **options,
    )
    meshes = thread_meshes(config.degrees, timeout_s=DEADLINE_S)

    def run_rank(index: int) -> T:
        try:
            rank = Rank(config, meshes[index], torch.device("cpu"), on_image if index == 0 else None)
            with torch.inference_mode():
                return function(rank)
        except BaseException:
            meshes[index].close()  # lets the other ranks go
            raise

    with ThreadPoolExecutor(config.ranks) as pool:
        futures = [pool.submit(run_rank, index) for index in range(config.ranks)]
        _, running = wait(futures, timeout=DEADLINE_S)
        assert not running, "a rank hangs"
    failures = [failure for future in futures if (failure := future.exception()) is not None]
    if failures:
        # what the others say is only that this one left
        raise min(failures, key=lambda failure: "in vain" in str(failure))
    return [future.result() for future in futures]


def as_array(image: DecodedImage) -> np.ndarray:
    """uint8 (height, width, 3)."""
    return np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3)


def _run_ticks(
    rank: Rank, jobs: Sequence[Job], starts: Sequence[int], adapters: Sequence[Adapter]
) -> dict[int, torch.Tensor]:
    """Load the adapters and step all jobs to their end. Returns the final latents by job."""
    latents: dict[int, torch.Tensor] = {}
    remaining: dict[int, int] = {}
    number = 0
    for tick in range(max(starts, default=0) + max((job.steps for job in jobs), default=0)):
        joining = tuple(job for job, start in zip(jobs, starts, strict=True) if start == tick)
        remaining |= {job.job_id: job.steps for job in joining}
        if not remaining:
            continue
        load = tuple(adapters) if number == 0 else ()
        rank.execute(Step(number, start=joining, denoise=tuple(remaining), load=load)).wait()
        number += 1
        finished = tuple(job_id for job_id, steps in remaining.items() if steps == 1)
        remaining = {job_id: steps - 1 for job_id, steps in remaining.items() if steps > 1}
        if finished:
            latents |= {job_id: rank.latents(job_id).clone() for job_id in finished}
            rank.execute(Step(number, decode=finished)).wait()
            number += 1
    return latents
