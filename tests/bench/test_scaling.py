"""How steps scale over ranks, on the CPU."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch

from bench.engines.rank_processes import ProcessFailed
from bench.engines.real_size import model_of_size, random_prompt
from bench.scaling import modelled, ranks, steps
from bench.scaling.__main__ import main
from engine.config.chat_template import PREFIX_TOKENS
from engine.config.degrees import Degrees
from engine.planning.work_division import Traffic, sent_in_step
from engine.rank.rank import Rank

TINY = ["--size", "tiny", "--layers", "2", "--device", "cpu", "--quantization", "none"]
SMALL = model_of_size("tiny", layers=2)


def test_modes_are_modelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.jsonl"
    modes = ["--modes", "one,cfg,sp2xcfg", "--guided", "--sides", "64,96"]
    link = ["--bandwidth", "0.1", "--exchange-bandwidth", "0.05", "--latency", "1000"]
    assert main([*TINY, *modes, *link, "--json", str(file)]) == 0
    assert "step (modelled)" in capsys.readouterr().out
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["mode"], line["ranks"], line["side"]) for line in lines] == [
        (mode, ranks, side) for mode, ranks in (("one", 1), ("cfg", 2), ("sp2xcfg", 4)) for side in (64, 96)
    ]
    for line in lines:
        assert line["as_stated"]
        assert line["guided"]
        assert line["measured_s"] is None
        text = len(random_prompt(SMALL, 0)) - PREFIX_TOKENS
        segments = [(text, SMALL.image_tokens(line["side"], line["side"]))] * 2
        degrees = {"one": Degrees(), "cfg": Degrees(cfg=2), "sp2xcfg": Degrees(sp=2, cfg=2)}[line["mode"]]
        inwards, outwards, _ = sent_in_step(SMALL.transformer, segments, degrees, 4)
        exchanged = inwards.bytes + outwards.bytes
        assert (exchanged > 0) == (line["mode"] == "sp2xcfg")
        link_s = (line["sent_bytes"] - exchanged) / 1e8 + exchanged / 0.5e8 + line["operations"] * 1e-3
        assert line["communication_s"] == pytest.approx(link_s)
        assert line["step_s"] == line["compute_s"] + line["communication_s"]
    assert lines[0]["sent_bytes"] == 0 < lines[2]["sent_bytes"]
    assert (lines[2]["operations"], lines[4]["operations"]) == (1, 2 * 2 + 2)


# In the fast run two processes guard that ranks are started, counted and timed.
@pytest.mark.parametrize("modes", ["cfg", pytest.param("one,cfg,sp2xcfg", marks=pytest.mark.slow)])
def test_modes_are_measured(modes: str, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    words = ["--modes", modes, "--guided", "--sides", "64,96", "--measure", "--json", str(file)]
    assert main([*TINY, *words]) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["mode"], line["side"]) for line in lines] == [
        (mode, side) for mode in modes.split(",") for side in (64, 96)
    ]
    for line in lines:
        assert line["as_stated"]
        assert line["measured_s"] > 0


def test_a_formula_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(modelled, "sent_in_step", lambda *_, **__: (Traffic(), Traffic(), Traffic(1, 1)))
    assert main([*TINY, "--modes", "sp2", "--sides", "64"]) == 1
    assert "sp2 at 64²: rank 0 did not send what the formula says" in capsys.readouterr().err


def test_a_rank_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise ProcessFailed("rank 1 said: no")

    monkeypatch.setattr(ranks, "run_ranks", fail)
    assert main([*TINY, "--modes", "tp2", "--sides", "64", "--measure"]) == 1
    assert "error: rank 1 said: no" in capsys.readouterr().err


def test_nothing_of_the_modelled_rank_is_left_when_all_ranks_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Rank]] = []
    emptied: list[int] = []

    def make(*arguments: object, **options: object) -> Rank:
        rank = Rank(*arguments, **options)  # type: ignore[arg-type]
        made.append(weakref.ref(rank))
        return rank

    def run(*_: object) -> None:
        assert emptied == [0], "what it had is given back"
        raise ProcessFailed("there are no ranks")

    def empty() -> None:
        emptied.append(sum(rank() is not None for rank in made))

    monkeypatch.setattr(steps, "Rank", make)
    monkeypatch.setattr(ranks, "run_ranks", run)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    gc.disable()  # a collection that comes by chance would hide that none was asked for
    try:
        assert main([*TINY, "--modes", "sp2", "--sides", "64", "--measure"]) == 1
    finally:
        gc.enable()
    assert (len(made), emptied) == (1, [0])


@pytest.mark.parametrize(("name", "value"), [("bandwidth", "0"), ("bandwidth", "nan"), ("latency", "-1")])
def test_a_link_must_be_one(name: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, f"--{name}", value]) == 2
    assert f"{name} must be" in capsys.readouterr().err
