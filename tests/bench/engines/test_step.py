"""python -m bench.step, at a tiny size on the CPU."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bench.step import __main__ as step
from tests.bench.engines.measured import TINY, check_output

pytestmark = pytest.mark.usefixtures("quick_ceilings")


def test_a_step_is_timed_against_its_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--cases", "64,2x64", "--quantization", "none,fp8", "--json", str(tmp_path / "lines")]
    assert step.main(words) == 0
    lines = check_output(capsys, tmp_path / "lines", "step")
    assert [(line["case"], line["quantization"]) for line in lines] == [
        *(("64²", "none"), ("2×64²", "none")),
        *(("64²", "fp8"), ("2×64²", "fp8")),
    ]
    for line in lines:
        times = line["engine"]["step_s"]
        assert times["count"] >= 6
        assert 0 < times["p10"] <= times["median"] <= times["p90"]
        assert line["engine"]["noise"] >= 0
        assert line["tokens"] == line["images"] * (16 + 7 + 5)
        assert line["of_floor"] == pytest.approx(line["floor_s"] / times["median"])
        assert line["attention"] == "torch"
        assert line["cuda_graphs"] is False
        assert (line["peers"], line["ratio"]) == ({}, {})
        assert line["peak_memory_bytes"] > 0
        assert line["ceilings"]["matmul_flops"] > 0


@pytest.mark.usefixtures("eager_peer")
def test_a_step_is_timed_against_diffusers(capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main([*TINY, "--cases", "64", "--quantization", "none", "--peer", "diffusers"]) == 0
    (line,) = check_output(capsys, None, "step")
    theirs = line["peers"]["eager"]["step_s"]
    assert theirs["count"] >= 6
    assert line["ratio"]["eager"] == pytest.approx(theirs["median"] / line["engine"]["step_s"]["median"])


@pytest.mark.slow
def test_a_step_is_timed_against_diffusers_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main([*TINY, "--cases", "64", "--quantization", "none", "--peer", "diffusers"]) == 0
    (line,) = check_output(capsys, None, "step")
    assert set(line["peers"]) == set(line["ratio"]) == {"eager", "compiled"}


def test_a_profile_names_operations_and_leaves_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main([*TINY, "--cases", "64", "--quantization", "none", "--profile", str(tmp_path)]) == 0
    assert "3 steps of 1×64², quantization none" in (told := capsys.readouterr().err)
    assert "aten::mm" in told
    with gzip.open(tmp_path / "trace-1x64-none-auto.json.gz") as trace:
        assert any(event["name"] == "aten::mm" for event in json.load(trace)["traceEvents"])
