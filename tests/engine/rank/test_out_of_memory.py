"""Too little memory for a step: nothing is lost but an image that does not fit by itself."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER, VAE
from engine.device.devices import is_out_of_memory, reserve_bytes
from engine.planning.step_memory import encode_bytes
from engine.rank.denoiser import Denoiser
from engine.rank.rank import Rank
from engine.rank.warm_up import try_image
from engine.step import Step
from tests.engine.rank.short_of_memory import CPU, LORA, REQUESTS, OutOfMemory, Ranked, begun, make_jobs
from tests.engine_runs import RankGroup, as_array, jobs_of
from tests.oracle import Request, relative_error

TOLERANCE = 2e-5  # of a request in a batch against alone, as in the design
OFFLOADS = [(), (DIT_LAYERWISE, TEXT_ENCODER, VAE), (DIT, VAE)]


@pytest.mark.parametrize("offload", OFFLOADS, ids=["whole", "layerwise", "dit"])
def test_wherever_memory_runs_out_the_images_are_the_same(offload: tuple[str, ...]) -> None:
    """In each of the first three steps at any operation: of encoding, of the blocks, of the last update."""
    jobs = make_jobs()
    jobs[0] = begun(jobs[0], 5, masked=True)
    ranked = Ranked(offload=offload)
    ranked.rank.decoder.previews.learn(torch.randn(16, 8, 8), torch.zeros(64, 64, 3, dtype=torch.uint8))
    counting = [OutOfMemory() for _ in range(3)]
    expected = ranked.run(jobs, counting)
    pictures = {image.job_id: as_array(image) for image in (ranked.image() for _ in jobs)}
    source = random.Random()
    seed = source.randrange(2**32)
    source.seed(seed)
    places = [
        lambda count: source.randrange(count),
        lambda count: source.randrange(6),
        lambda count: count - source.randint(1, 12),
    ]
    for place in places * 2:  # anywhere, at the beginning, where the latents change
        ranked.rank.prompts._kept.clear()
        points = [place(mode.operations) for mode in counting]
        latents = ranked.run(jobs, [OutOfMemory([point]) for point in points])
        assert not ranked.failures
        for job in jobs:
            error = relative_error(latents[job.job_id], expected[job.job_id])
            assert error < TOLERANCE, f"job {job.job_id} at operations {points} of {seed}"
        for _ in jobs:
            image = ranked.image()
            assert abs(as_array(image).astype(int) - pictures[image.job_id]).max() <= 1
    ranked.rank.close()


def test_steps_say_that_they_ran_one_by_one_and_keep_their_previews() -> None:
    jobs = make_jobs()
    ranked = Ranked()
    ranked.execute(load=(LORA,))
    ids = tuple(job.job_id for job in jobs)
    assert not ranked.execute(start=tuple(jobs), denoise=ids).one_by_one
    ranked.rank.decoder.previews.learn(torch.randn(16, 8, 8), torch.zeros(64, 64, 3, dtype=torch.uint8))
    with OutOfMemory([100]):
        handle = ranked.rank.execute(Step(ranked.number, denoise=ids[:2]))
    times = handle.wait()
    assert times.one_by_one
    assert times.denoise_s > 0
    assert [(preview.job_id, preview.step) for preview in handle.previews] == [(0, 2), (1, 2)]
    ranked.rank.close()


def test_an_image_that_fails_alone_is_given_up_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens are too many. The steps that are on their way name it still, one of them for decoding."""
    large = Request("a red circle", width=128, height=128, seeds=(7,), steps=2)
    jobs = [replace(job, preview_every=0) for job in jobs_of(DEMO_CHECKPOINT, [*REQUESTS, large])]
    *small, big = jobs
    ranked = Ranked()
    expected = ranked.run(small)
    for _ in small:
        ranked.image()
    forward = Denoiser._forward

    def limited(self: Any, segments: Any, group: Any) -> torch.Tensor:
        if any(state.job.job_id == big.job_id for state, _ in segments):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, segments, group)

    monkeypatch.setattr(Denoiser, "_forward", limited)
    ids = tuple(job.job_id for job in jobs)
    times = ranked.execute(start=tuple(jobs), denoise=ids)
    assert times.one_by_one
    assert list(ranked.failures) == [big.job_id]
    error = ranked.failures[big.job_id]
    assert error.code == "out_of_memory"
    assert error.message.startswith("the image of 128 × 128 with seed 7 ran out of memory on cpu: a step needs about ")
    assert error.message.endswith(" GB are free")
    assert not ranked.execute(denoise=ids).one_by_one  # nobody tries it again
    latents = {2: ranked.rank.jobs[2].latents.clone()}
    ranked.execute(denoise=(0, 1), decode=(2, big.job_id))
    latents |= {job_id: ranked.rank.jobs[job_id].latents.clone() for job_id in (0, 1)}
    ranked.execute(decode=(0, 1))
    assert {ranked.image().job_id for _ in small} == {0, 1, 2}
    for job in small:
        assert relative_error(latents[job.job_id], expected[job.job_id]) < TOLERANCE
    assert (ranked.rank.recovery.failed, ranked.rank.jobs) == (set(), {})
    ranked.execute(start=(big,), denoise=(big.job_id,))
    ranked.execute(release=(big.job_id,))
    assert (ranked.rank.recovery.failed, ranked.rank.jobs) == (set(), {})
    ranked.rank.close()


@pytest.mark.parametrize("operation", [0, 100])
def test_an_image_that_there_is_no_memory_for_in_the_warm_up_is_left_out(operation: int) -> None:
    (job, *_) = (replace(job, preview_every=0) for job in make_jobs())
    ranked = Ranked()
    counting = OutOfMemory([operation])
    with torch.inference_mode(), counting:
        try_image(ranked.rank, 64, 64, decodes=False)
    assert counting.operations > operation
    assert ranked.rank.jobs == {}
    assert not ranked.execute(start=(job,), denoise=(0,)).one_by_one
    ranked.rank.close()


@pytest.mark.parametrize("options", [{}, {"tp": 2}, {"sp": 2}])
def test_it_is_raised_by_one_of_several_ranks_and_where_nobody_hears_of_failures(options: dict[str, Any]) -> None:
    """The other ranks wait in a collective that this one never reaches, so the group ends."""
    group = RankGroup(DEMO_CHECKPOINT, **options)
    (job, *_) = jobs_of(DEMO_CHECKPOINT, REQUESTS)

    def execute(rank: Rank) -> None:
        fails = [30] if rank.model.mesh.world.rank == 0 else []
        with OutOfMemory(fails):
            rank.execute(Step(0, start=(job,), denoise=(job.job_id,)))

    with pytest.raises(torch.OutOfMemoryError):
        group.on_ranks(execute)


def test_another_error_in_a_step_is_raised() -> None:
    class Broken(OutOfMemory):
        def __torch_dispatch__(self, *arguments: Any, **named: Any) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    (job, *_) = jobs_of(DEMO_CHECKPOINT, REQUESTS)
    ranked = Ranked()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ranked.execute(Broken(), start=(job,), denoise=(0,))
    ranked.rank.close()


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_that_there_is_too_little_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


@pytest.mark.parametrize(("total", "reserve"), [(8 * 10**9, 500_000_000), (140 * 10**9, 4_200_000_000)])
def test_some_of_a_gpu_is_kept_back(monkeypatch: pytest.MonkeyPatch, total: int, reserve: int) -> None:
    gpu = SimpleNamespace(total_memory=total)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    assert (reserve_bytes(torch.device("cuda")), reserve_bytes(CPU)) == (reserve, 0)


def test_what_is_free_for_steps_leaves_room_for_encoding_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for the reserve. Where memory is to be saved, prompts are encoded in turn with steps."""
    monkeypatch.setattr("engine.offload.offload.free_bytes", lambda _: 10**10)
    monkeypatch.setattr("engine.offload.offload.reserve_bytes", lambda _: 10**9)
    ranked = Ranked()
    assert ranked.rank.memory()["free"] == 9 * 10**9
    ranked.rank.prompts._stream = object()  # type: ignore[assignment]
    encoding = encode_bytes(ranked.rank.model.config, 1, 4)
    assert ranked.rank.memory()["free"] == 9 * 10**9 - encoding
    both = ranked.rank.model.offload.plan.work + encoding
    monkeypatch.setattr("engine.offload.offload.free_bytes", lambda _: 10**9 + both)
    ranked.rank.fit_encoding()
    assert ranked.rank.memory()["free"] == both - encoding
    monkeypatch.setattr("engine.offload.offload.free_bytes", lambda _: 10**9 + both - 1)
    ranked.rank.fit_encoding()  # encoding in turn then, so that what fits without it still does
    assert not ranked.rank.prompts.beside_steps
    assert ranked.rank.memory()["free"] == both - 1
    assert ranked.rank.pictures.room == -1
    ranked.rank.close()
