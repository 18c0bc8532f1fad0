"""Which GPUs may be used, by the errors that the driver reports."""

from __future__ import annotations

import pytest

from engine.errors import RankError
from launcher.ranks.gpu_health import ECC, LOST, Gpu, GpuError, GpuHealth

FIRST, SECOND = (Gpu(index, "Fake H200", f"GPU-{index}") for index in range(2))
AROUND_S = 60.0


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 68, 69, 109, 154, 999])
def test_a_programs_errors_are_no_gpus_failure(xid: int) -> None:
    health = GpuHealth(AROUND_S)
    for moment in range(5):
        error = GpuError(FIRST, str(xid))
        health.hear(error, moment)
        assert not error.is_hardware
        assert health.ranks_lost([FIRST], moment) == []


@pytest.mark.parametrize("code", ["48", "63", "64", "74", "92", "94", "95", "119", "120", "140", ECC])
def test_a_gpu_that_costs_ranks_twice_is_quarantined(code: str) -> None:
    health = GpuHealth(AROUND_S)
    health.hear(GpuError(FIRST, code), 10.0)
    assert health.ranks_lost([FIRST, SECOND], 12.0) == []
    assert health.usable([FIRST, SECOND], 2) == [FIRST, SECOND]
    assert health.ranks_lost([FIRST, SECOND], 13.0) == [], "one error is one failure"
    health.hear(GpuError(FIRST, code), 100.0)
    assert health.ranks_lost([FIRST, SECOND], 99.0) == [FIRST], "it may be heard after its consequence"
    assert health.usable([FIRST, SECOND], 1) == [SECOND]
    assert "GPU 0 (Fake H200, GPU-0) has failed 2 times, the last time with" in health.quarantined[0]
    with pytest.raises(RankError, match=r"GPU 0 .* 1 of the 2 GPUs .*`nvidia-smi -q -i 0`, .* start the server again"):
        health.usable([FIRST, SECOND], 2)


@pytest.mark.parametrize("code", ["79", LOST])
def test_a_gpu_that_is_lost_is_quarantined_at_once(code: str) -> None:
    health = GpuHealth(AROUND_S)
    health.hear(GpuError(FIRST, code), 10.0)
    health.hear(GpuError(FIRST, "74"), 11.0)  # what follows does not hide it
    assert health.ranks_lost([FIRST], 11.0) == [FIRST]


def test_an_error_long_before_ranks_are_lost_and_one_of_another_gpu_do_not_count() -> None:
    health = GpuHealth(AROUND_S)
    for _ in range(3):
        health.hear(GpuError(FIRST, "63"), 10.0)
        assert health.ranks_lost([FIRST], 10.0 + AROUND_S + 1) == []
        health.hear(GpuError(SECOND, "95"), 100.0)
        assert health.ranks_lost([FIRST], 100.0) == []
