"""The gate of step caching: what the presets save of the demo's pictures, and what that does to them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.adherence.__main__ import main
from bench.adherence.rates import held_out_cases
from bench.adherence.step_caching.likeness import psnr
from engine.config.demo_checkpoints import DEMO_CHECKPOINTS
from engine.rank.denoiser import Denoiser
from engine.step_cache.settings import PRESETS
from tests.engine_runs import RankGroups, jobs_of
from tests.oracle import Request

SAVES = {"quality": 1.6, "fast": 2.3}  # times fewer blocks
LIKE = {"quality": 45.0, "fast": 35.0}  # decibels, of every picture
GATED = "fast, guided until 0.7"
RAW, EVALUATIONS = DEMO_CHECKPOINTS["demo-raw"], 480  # 6 blocks in 40 steps of two halves


def test_presets_save_what_they_promise_and_the_picture_stays_as_it_was(
    rank_groups: RankGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: Counter[int] = Counter()
    step = Denoiser.step

    def counted(denoiser: Denoiser, *arguments: Any) -> Any:
        previews = step(denoiser, *arguments)
        for job_id, blocks in denoiser.blocks_run:
            ran[job_id] += sum(blocks)
        return previews

    monkeypatch.setattr(Denoiser, "step", counted)
    (case,) = held_out_cases(1, (96, 96))
    request = Request(case.prompt.text(), case.width, case.height, steps=40, guidance=2.0, seeds=(case.seed,))
    (job,) = jobs_of(RAW, [request])
    jobs = [replace(job, job_id=number, cache=cache) for number, cache in enumerate([None, *PRESETS.values()])]
    whole, *saved = (Image.fromarray(picture.image) for picture in rank_groups.run_jobs(RAW, jobs))
    for number, (name, picture) in enumerate(zip(PRESETS, saved, strict=True), 1):
        assert EVALUATIONS / ran[number] >= SAVES[name]
        assert LIKE[name] <= psnr(whole, picture) < 90


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_presets_lose_next_to_no_picture(tmp_path: Path) -> None:
    """How many of 500 is in docs/speed.md. On another kind of CPU others are on the other side of the judge's
    limits."""
    file = tmp_path / "lines.jsonl"
    arguments = ["--table", "cache", "--model", "demo-raw", "--device", "cpu", "--prompts", "100", "--json", str(file)]
    assert main([*arguments, "--ways", *SAVES, GATED]) == 0
    rows = {line["way"]: line for line in map(json.loads, file.read_text().splitlines())}
    for name, times in {**SAVES, GATED: 3.0}.items():
        assert rows[name]["times_fewer"] >= times
    for name, most in {"quality": 3, "fast": 5, GATED: 10}.items():
        assert len(rows[name]["lost"]) - len(rows[name]["gained"]) <= most
    for name, least in LIKE.items():
        assert rows[name]["psnr_worst"] >= least
