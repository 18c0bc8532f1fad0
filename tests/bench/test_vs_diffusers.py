from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.vs_diffusers import Ours, Peer, compare, report


def test_the_comparison_prints_a_table_and_complete_json_lines(turbo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = Ours(turbo)
    result = compare(Peer(turbo), ours, size=64, steps=2, repeats=2, with_profile=True)
    ours.rank.close()
    assert result.error < 1e-4
    assert set(result.engine_stages_s) == {"encode", "denoise", "decode"}
    assert all(seconds > 0 for seconds in result.engine_stages_s.values())
    assert sum(result.engine_stages_s.values()) <= result.engine_with_vae_s * 1.5
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
