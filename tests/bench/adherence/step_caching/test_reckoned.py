"""What an H200 would take comes from what one was measured to take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.adherence.step_caching.reckoned import RESULTS, measured_h200


def line(benchmark: str, **more: Any) -> str:
    result = {
        "benchmark": benchmark, "size": "real", "layers": 28, "side": 1024, "dtype": "bfloat16", "quantization": "none",
        "gpu_shared": False, "hardware": {"gpu": "NVIDIA H200"}, "commit": "abc", "images": 1,
        "engine": {"step_s": {"median": 0.14}}, "stages": {"wall_s": 1.25, "denoise_s": 1.2},
    }  # fmt: skip
    return json.dumps({**result, **more}) + "\n"


def test_seconds_are_of_the_newest_step_and_image_that_fit(tmp_path: Path) -> None:
    assert measured_h200(tmp_path) is None
    (tmp_path / "1.jsonl").write_text(line("step", engine={"step_s": {"median": 9.0}}) + line("image"))
    (tmp_path / "2.jsonl").write_text(
        line("step")
        + line("step", images=16)
        + line("step", gpu_shared=True)
        + line("step", quantization="fp8")
        + line("step", hardware={"gpu": "NVIDIA L40S"})
    )
    measured = measured_h200(tmp_path)
    assert measured is not None
    assert measured.image_s(28 * 10) == pytest.approx(0.05 + 1.4)


def test_the_results_that_are_there_have_what_it_takes() -> None:
    assert RESULTS.is_dir()
    measured = measured_h200()
    assert measured is not None
    assert 0.1 < measured.forward_s < 0.25
