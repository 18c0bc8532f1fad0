"""python -m bench.throughput, at a tiny size on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.throughput import __main__ as throughput
from tests.bench.engines.measured import TINY, check_output

pytestmark = pytest.mark.usefixtures("quick_ceilings")


@pytest.mark.usefixtures("eager_peer")
def test_a_load_is_timed_against_the_floors_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--steps", "2", "--loads", "3x64", "--quantization", "none")
    words = [*TINY, *quick, "--peer", "diffusers", "--json", str(tmp_path / "lines")]
    assert throughput.main(words) == 0
    (line,) = check_output(capsys, tmp_path / "lines", "throughput")
    assert line["images_per_s"] == pytest.approx(3 / line["wall_s"])
    assert 0 < line["latency_mean_s"] <= line["latency_p95_s"] <= line["wall_s"]
    assert line["of_floor"] == pytest.approx(line["floor_s"] / line["wall_s"])
    assert line["target"] is None
    assert line["peers"]["eager"]["images"] == line["peers"]["eager"]["batch"] == 3


def test_images_that_do_not_fit_a_step_wait_for_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--steps", "2", "--loads", "5x64", "--quantization", "none", "--token-budget", "60"]
    assert throughput.main(words) == 0
    (line,) = check_output(capsys, None, "throughput")
    assert line["images"] == 5
