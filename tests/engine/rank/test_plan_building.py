"""cuDNN serves lengths that have a plan, flash the others, and a rank builds plans while it has nothing to do. Both are
torch's attention here, which tells who was asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import torch

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.kernels.attention import backends as attention
from engine.kernels.attention.backends import GatedAttentionKernel, PlanShape
from engine.kernels.attention.plans import PlanSchedule
from engine.kernels.packing import Packing
from engine.parallel.mesh import Mesh
from engine.rank.plan_building import PlanBuilder
from engine.rank.rank import Rank
from engine.step import Job, Step
from tests.engine_runs import config_of, jobs_of, run_jobs
from tests.oracle import Request, relative_error

CPU = torch.device("cpu")
LONG = 32
Served = list[tuple[str, tuple[int, ...]]]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """Who served which (batch, tokens), in order."""
    calls: Served = []
    dense = attention._torch

    def pretend(name: str) -> Callable[..., torch.Tensor]:
        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            calls.append((name, (query.shape[0], query.shape[2])))
            return dense(query, key, value)

        return attend

    for name in ("cudnn", "flash"):
        monkeypatch.setitem(attention.DENSE, name, pretend(name))
        monkeypatch.setattr(attention, f"_{name}", attention.DENSE[name])
    monkeypatch.setattr(attention, "LONG_SEGMENT", LONG)
    return calls


def _draw(tokens: int) -> tuple[torch.Tensor, ...]:
    """query, key, value, gate as columns of one matrix."""
    *qkv, gate = torch.randn(tokens, 12 * 8).split([32, 16, 16, 32], dim=-1)
    return (*(part.unflatten(-1, (-1, 8)) for part in qkv), gate)


def _attend(kernel: GatedAttentionKernel, lengths: tuple[int, ...]) -> None:
    parts, packing = _draw(sum(lengths)), Packing(lengths, CPU)
    expected = GatedAttentionKernel("torch")(*parts, packing)
    actual = kernel(*parts, packing)
    assert isinstance(actual, torch.Tensor)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(kernel.attend(*parts[:3], packing), GatedAttentionKernel().attend(*parts[:3], packing))


def test_a_length_is_served_by_flash_until_it_has_a_plan_and_short_ones_always(served: Served) -> None:
    kernel = GatedAttentionKernel("cudnn")
    builder = PlanBuilder(kernel, CPU, torch.float32)
    _attend(kernel, (40, 40, 40))
    assert set(served) == {("flash", (3, 40))}, "equal ones at once"
    served.clear()
    _attend(kernel, (40, 33, 7))
    assert set(served) == {("flash", (1, 40)), ("flash", (1, 33)), ("flash", (1, 7))}
    served.clear()
    assert builder.build_all() == 2
    assert served == [("cudnn", (1, 40)), ("cudnn", (1, 33))], "never as a batch"
    served.clear()
    _attend(kernel, (40, 40, 40))
    assert served == [("cudnn", (1, 40))] * 6
    served.clear()
    _attend(kernel, (7, 40, 41, 0))
    assert set(served) == {("flash", (1, 7)), ("cudnn", (1, 40)), ("flash", (1, 41))}
    assert builder.build_all() == 1
    served.clear()
    _attend(kernel, (7, 7))
    assert set(served) == {("flash", (2, 7))}
    assert builder.build_all() == 0


@pytest.mark.parametrize("lengths", [(40, 40), (40, 33)])
def test_a_step_counts_a_length_once_for_each_segment_that_has_it(served: Served, lengths: tuple[int, ...]) -> None:
    kernel = GatedAttentionKernel("cudnn")
    met: list[float] = []
    kernel.plans = PlanSchedule()
    kernel.plans.met = lambda shape, work=1.0: met.append(work)  # type: ignore[method-assign]
    kernel(*_draw(sum(lengths)), Packing(lengths, CPU))
    assert len(met) == len(lengths)


def test_without_a_schedule_cudnn_serves_all_one_by_one(served: Served) -> None:
    _attend(GatedAttentionKernel("cudnn"), (40, 40))
    assert served == [("cudnn", (1, 40))] * 4
    served.clear()
    _attend(GatedAttentionKernel("cudnn"), (7, 0, 40))
    assert served == [("cudnn", (1, 7)), ("cudnn", (1, 40))] * 2


def test_a_plan_is_for_the_strides_of_what_it_serves(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    seen: list[tuple[tuple[int, ...], ...]] = []
    dense = attention._cudnn

    def note(*parts: torch.Tensor) -> torch.Tensor:
        seen.append(tuple((*part.shape, *part.stride()) for part in parts))
        return dense(*parts)

    monkeypatch.setattr(attention, "_cudnn", note)
    kernel = GatedAttentionKernel("cudnn")
    builder = PlanBuilder(kernel, CPU, torch.float32)
    kernel(*_draw(40 + 33), Packing((33, 40), CPU))
    builder.build_all()
    built = set(seen)
    seen.clear()
    kernel(*_draw(40 + 33), Packing((33, 40), CPU))
    assert len(built) == 2
    assert set(seen) == built
    query, key, value, _ = (part.contiguous() for part in _draw(40))
    served.clear()
    kernel.attend(query, key, value, Packing((40,), CPU))
    assert served == [("flash", (1, 40))], "other strides, as of received heads, need a plan of their own"


class _Builds:
    """In place of cuDNN: fails as it is told to."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.tokens: list[int] = []

    def __call__(self, shape: PlanShape, device: torch.device, dtype: torch.dtype) -> None:
        self.tokens.append(shape[0][0])
        if (error := self.errors.pop(0)) is not None:
            raise error


def _met(monkeypatch: pytest.MonkeyPatch, builds: _Builds, *lengths: int) -> PlanBuilder:
    monkeypatch.setattr("engine.rank.plan_building.build_plan", builds)
    kernel = GatedAttentionKernel("cudnn")
    builder = PlanBuilder(kernel, CPU, torch.float32, clock=lambda: 5.0)
    for tokens in lengths:
        kernel(*_draw(tokens), Packing((tokens,), CPU))
    return builder


def test_what_cannot_be_built_stays_with_flash_and_the_rest_is_built(
    monkeypatch: pytest.MonkeyPatch, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    builds = _Builds(RuntimeError("no valid engine"), torch.OutOfMemoryError("CUDA out of memory"), None)
    builder = _met(monkeypatch, builds, 60, 50, 40)
    while builder.wait_s() is not None:
        builder.build_next()
    assert builds.tokens == [60, 50, 40]
    assert builder.schedule.plans == 1
    first, second, third = caplog.messages
    assert first == "no attention plan for 60 tokens, which stay with flash: no valid engine"
    assert "50 tokens, which stay with flash: CUDA out of memory" in second
    assert "attention plan for 40 tokens in 0.00 s: 1 plans of" in third
    assert "2 failed" in third


def test_a_lost_device_ends_the_rank(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    builder = _met(monkeypatch, _Builds(RuntimeError("an illegal memory access was encountered")), 40)

    def settle() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(builder, "_settle", settle)
    with pytest.raises(RuntimeError, match="CUDA error"):
        builder.build_next()


def test_memory_that_somebody_else_took_meanwhile_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    builder = _met(monkeypatch, _Builds(None, None), 60, 40)
    taken = iter((0, 40 << 30, 0, 1000))
    monkeypatch.setattr(builder, "_taken", lambda: next(taken))
    builder.build_next()
    assert builder.schedule.bytes == 64 << 20
    assert builder.wait_s() is not None
    builder.build_next()
    assert builder.schedule.bytes == (64 << 20) + 1000


# ---- in a rank


def _steps(job: Job, first: int) -> Iterator[Step]:
    ids = (job.job_id,)
    for index in range(job.steps):
        yield Step(first + index, start=(job,) if index == 0 else (), denoise=ids)
    yield Step(first + job.steps, release=ids)


def test_a_rank_builds_between_images_and_not_while_one_is_made(
    monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    monkeypatch.setattr(attention, "LONG_SEGMENT", 8)
    requests = [Request("a red circle", 64, 64, 2, seeds=(1,)), Request("a green star over it", 64, 64, 2, seeds=(2,))]
    jobs = jobs_of(DEMO_CHECKPOINT, requests)
    exact = [picture.latents for picture in run_jobs(DEMO_CHECKPOINT, jobs)]
    now = 100.0
    with closing(Rank(config_of(DEMO_CHECKPOINT), Mesh(), CPU)) as rank:

        def make(job: Job) -> tuple[set[str], torch.Tensor]:
            """Who served it, and its latents."""
            nonlocal now
            served.clear()
            for step in _steps(job, rank._next_number):
                latents = rank.jobs[job.job_id].latents.clone() if step.release else torch.zeros(0)
                rank.execute(step).wait()
                now += 2.0
                assert step.release or rank.idle_wait_s() is None
            return {name for name, _ in served}, latents

        make(jobs[0])
        assert (rank.idle_wait_s(), rank.plans) == (None, None)
        rank.use_idle_time()
        rank.model.attention.backend = "cudnn"
        rank.plans = PlanBuilder(rank.model.attention, CPU, torch.float32, clock=lambda: now)
        first = [make(job) for job in jobs]
        assert rank.idle_wait_s() == 0.0
        rank.use_idle_time()
        now += 0.01
        again = [make(job) for job in jobs]
        schedule = rank.plans.schedule
        assert (schedule.plans, schedule.images, schedule.waited) == (1, 4, 1)
    assert [names for names, _ in first] == [{"flash"}, {"flash"}]
    assert [names for names, _ in again] in ([{"cudnn"}, {"flash"}], [{"flash"}, {"cudnn"}])
    for (_, latents), expected in zip(first + again, exact * 2, strict=True):
        assert relative_error(latents, expected) < 2e-5
