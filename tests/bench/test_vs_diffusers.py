from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.vs_diffusers import Ours, Peer, compare, report


def test_the_comparison_prints_a_table_and_complete_json_lines(turbo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = Ours(turbo)
    result = compare(Peer(turbo), ours, size=64, steps=2, repeats=2, with_profile=True)
    run = ours.run("a fox in the snow", 64, steps=2, seed=0)
    ours.rank.close()
    assert 0 < run.encode_s + run.denoise_s + run.decode_s < run.total_s
    assert run.encode_s + run.denoise_s < run.latents_s
    assert result.error < 1e-4
    assert set(result.engine_stages_s) == {"encode", "denoise", "decode"}
    assert all(seconds > 0 for seconds in result.engine_stages_s.values())
    assert "matrix products" in result.engine_profile

    report([result])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["size", "diffusers", "engine", "ratio"]
    line = json.loads(lines[-1])
    assert line["benchmark"] == "vs_diffusers"
    assert line["size"] == 64
    assert line["hardware"]["cpu"]
    assert line["hardware"]["threads"] > 0
    assert line["versions"]["torch"]
    assert line["versions"]["diffusers"]
    assert "commit" in line
