"""The fake device tells each rule that is broken, and nothing where none is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.fake_cuda import FakeCuda
from tests.fake_cuda.helpers import CUDA, on_device, pinned, rules

# ---- what tensors say and compute


def test_tensors_are_on_the_device_and_compute(device: FakeCuda) -> None:
    x = torch.arange(6, device=CUDA).view(2, 3)
    assert x.is_cuda
    assert x.device == CUDA == x.float().device == torch.empty_like(x).device == x.new_zeros(2).device
    assert (x.T[1:] + 1).device == CUDA
    assert torch.nn.Parameter(x.float()).device == CUDA
    assert x.cpu().device == x.to("cpu").device == torch.empty_like(x, device="cpu").device == torch.device("cpu")
    assert torch.tensor([1, 2], device="cuda").tolist() == [1, 2]
    assert (x @ x.T).tolist() == [[5, 14], [14, 50]]
    assert pinned().is_pinned()
    assert not torch.ones(4).is_pinned()
    assert torch.empty(4, dtype=torch.uint8, pin_memory=True).is_pinned()
    device.check()


def test_memory_is_counted_and_ends(device: FakeCuda) -> None:
    before = torch.cuda.memory_allocated()
    x = torch.zeros(1000, dtype=torch.uint8, device=CUDA)
    view = x[10:]
    del x
    assert torch.cuda.memory_allocated() - before == 1000
    free, total = torch.cuda.mem_get_info()
    assert total - free == torch.cuda.memory_allocated()
    del view
    assert torch.cuda.memory_allocated() == before
    device.memory.total = before + 100
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(101, dtype=torch.uint8, device=CUDA)


def test_a_parameter_that_moves_is_where_its_memory_is(device: FakeCuda) -> None:
    parameter = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
    host, buffer = parameter.data, on_device()
    parameter.data = buffer
    assert parameter.is_cuda
    assert (parameter + parameter).tolist() == [2.0] * 4
    parameter.data = host
    assert not parameter.is_cuda
    device.check()


# ---- unordered


def test_a_stream_must_wait_for_what_another_writes(device: FakeCuda) -> None:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = on_device()
    x + 1
    assert rules(device) == {"unordered"}


@pytest.mark.parametrize(
    "wait",
    [
        lambda side: torch.cuda.current_stream().wait_stream(side),
        lambda side: torch.cuda.current_stream().wait_event(side.record_event()),
        lambda side: side.synchronize(),
        lambda side: side.record_event().synchronize(),
        lambda side: torch.cuda.synchronize(),
    ],
)
def test_however_it_waits_it_is_ordered(device: FakeCuda, wait: Callable[[torch.cuda.Stream], None]) -> None:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = on_device()
    wait(side)
    x + 1
    x.record_stream(torch.cuda.current_stream())
    device.check()


def test_an_event_knows_what_came_before_it_alone(device: FakeCuda) -> None:
    side = torch.cuda.Stream()
    event = torch.cuda.Event()
    with torch.cuda.stream(side):
        event.record()
        x = on_device()
    event.wait()
    x + 1
    assert rules(device) == {"unordered"}


def test_a_stream_must_not_overwrite_what_another_still_reads(device: FakeCuda) -> None:
    x, side = on_device(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x + 1
    device.check()
    x.zero_()
    assert rules(device) == {"unordered"}


def test_the_host_must_wait_for_a_copy_to_it(device: FakeCuda) -> None:
    copy = on_device().to("cpu", non_blocking=True)
    assert copy.is_pinned()
    copy.numpy()
    assert rules(device) == {"unordered"}


def test_the_host_must_not_overwrite_what_is_being_copied(device: FakeCuda) -> None:
    source = pinned()
    source.to(CUDA, non_blocking=True)
    source.zero_()
    assert rules(device) == {"unordered"}


def test_a_thread_knows_what_those_know_that_it_works_for(device: FakeCuda) -> None:
    def work(x: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(side):
            y = x + 1
            side.synchronize()
            return y

    side = torch.cuda.Stream()
    with ThreadPoolExecutor(1) as executor:
        x = on_device()
        torch.cuda.synchronize()
        y = executor.submit(work, x).result()
        y + 1
        device.check()
        executor.submit(work, on_device()).result()  # which nobody waited for
    assert rules(device) == {"unordered"}


# ---- freed


def test_memory_that_another_stream_uses_must_be_recorded_with_it(device: FakeCuda) -> None:
    side = torch.cuda.Stream()

    def use(*, recorded: bool) -> None:
        x = on_device()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x + 1
        if recorded:
            x.record_stream(side)

    use(recorded=True)
    device.check()
    use(recorded=False)
    assert rules(device) == {"freed"}


def test_memory_may_be_freed_when_its_own_stream_has_waited(device: FakeCuda) -> None:
    x, side = on_device(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x + 1
    torch.cuda.current_stream().wait_stream(side)
    del x
    device.check()


@pytest.mark.parametrize("waits", [True, False])
def test_whoever_lets_go_last_memory_is_free_when_the_thread_that_used_it_has_waited(
    device: FakeCuda, waits: bool
) -> None:
    held, side = [on_device()], torch.cuda.Stream()
    torch.cuda.synchronize()

    def work() -> None:
        with torch.cuda.stream(side):
            held[0] + 1
        if waits:
            side.synchronize()

    with ThreadPoolExecutor(1) as executor:
        executor.submit(work)
    held.clear()  # by a thread that has asked for no result
    assert rules(device) == (set() if waits else {"freed"})


# ---- inside of a step


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.cuda.current_stream().synchronize(),
        lambda x: torch.cuda.current_stream().record_event().synchronize(),
        lambda x: x[0].item(),
        lambda x: float(x[0]),
        lambda x: x.tolist(),
        lambda x: bool(x.isfinite().all()),
        lambda x: x.cpu(),
        lambda x: torch.empty(4).copy_(x, non_blocking=True),  # to memory that is not pinned
        lambda x: x.copy_(pinned()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.arange(4, device=CUDA).repeat_interleave(x.int()),
        lambda x: torch.cuda.empty_cache(),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_the_host_must_not_wait(device: FakeCuda, wait: Callable[[torch.Tensor], object], inference: bool) -> None:
    with torch.inference_mode(inference):
        x = on_device()
        with device.step(), device.waits_allowed():
            wait(x)
        wait(x)
        device.check()
        with device.step():
            wait(x)
    assert rules(device) == {"wait"}


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: torch.ones(4).to(CUDA, non_blocking=True),
        lambda x: x.copy_(torch.ones(4), non_blocking=True),
        lambda x: x[torch.tensor([0, 1])],  # an index of the host's
        lambda x: x.copy_(pinned(8)[::2], non_blocking=True),  # of which torch makes a copy first
    ],
)
def test_what_a_step_copies_must_be_pinned(device: FakeCuda, copy: Callable[[torch.Tensor], object]) -> None:
    x = on_device()
    copy(x)
    device.check()
    with device.step():
        copy(x)
    assert rules(device) == {"unpinned"}


def test_a_blocking_copy_in_a_step_is_both(device: FakeCuda) -> None:
    with device.step():
        torch.tensor([1.0], device=CUDA)
    assert rules(device) == {"unpinned", "wait"}


def test_a_step_that_only_queues_breaks_no_rule(device: FakeCuda) -> None:
    with device.step():
        x = on_device()
        y = torch.empty_like(x, device="cpu", pin_memory=True).copy_(x * 2 + x[0], non_blocking=True)
        end = torch.cuda.current_stream().record_event()
    end.synchronize()
    assert y.tolist() == [3.0] * 4
    device.check()
