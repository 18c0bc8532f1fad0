"""The table of step caching: the command, on pictures that the renderer draws."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.adherence import cache_table
from bench.adherence.__main__ import main
from bench.adherence.cache_rounds import draw_rounds
from bench.adherence.rates import held_out_cases
from bench.adherence.step_caching.ways import RAW_WAYS, Model, Way
from engine.step_cache.settings import PRESETS
from engine.step_cache.step_plan import StepKind, plan_of
from tests.bench.adherence.saving_painter import BLOCKS, STEPS, SavingPainter

RAW = Model(STEPS, True, BLOCKS, distilled=False)
OFF_BY_ONE = 20 * math.log10(255)


@pytest.fixture
def painters(monkeypatch: pytest.MonkeyPatch) -> list[SavingPainter]:
    """Those that were launched."""
    launched: list[SavingPainter] = []

    @contextmanager
    def launch(**options: Any) -> Iterator[SavingPainter]:
        launched.append(SavingPainter(guided=options["model"] == "demo-raw"))
        yield launched[-1]

    monkeypatch.setattr(cache_table, "launch", launch)
    return launched


def computed_steps(way: Way, model: Model = RAW) -> int:
    kinds = plan_of(model.schedule(way))
    return STEPS * 2 if kinds is None else sum(half.count(StepKind.COMPUTED) for half in kinds)


def test_the_table_says_what_is_saved_and_what_it_does_to_the_pictures(
    painters: list[SavingPainter], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, sheet = tmp_path / "lines.jsonl", tmp_path / "sheet.png"
    arguments = ["--table", "cache", "--model", "demo-raw", "--prompts", "12", "--width", "96", "--height", "96"]
    assert main([*arguments, "--json", str(file), "--sheet", str(sheet), "--ways", "fast", "quality"]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert [name.strip() for name in header.split("|")[1:6]] == [
        "way", "blocks run, of 480", "fewer", "faster", "right of 12",
    ]  # fmt: skip
    assert [row.split("|")[1].strip() for row in rows[:3]] == ["nothing saved", "quality", "fast"]
    whole, quality, fast = (json.loads(line) for line in file.read_text().splitlines())
    assert (whole["block_evaluations"], whole["of"], whole["real_of"]) == (480, 480, 2912)
    assert (whole["psnr_median"], whole["ssim_mean"], whole["right"]) == (None, pytest.approx(1), 12)
    assert quality["block_evaluations"] == BLOCKS * computed_steps(RAW_WAYS[1]) < 480
    assert quality["times_fewer"] == pytest.approx(480 / quality["block_evaluations"])
    assert (quality["right"], quality["lost"], quality["gained"]) == (12, [], [])
    assert quality["psnr_median"] == pytest.approx(OFF_BY_ONE)
    assert (fast["right"], fast["lost"]) == (10, [0, 10])
    assert fast["worst"]["seed"] in (0, 10)
    assert fast["psnr_worst"] < 30 < fast["psnr_median"]
    assert fast["real_times_fewer"] > 1.5
    assert any(row.startswith("Worst of fast: ") for row in rows)
    with Image.open(sheet) as image:
        assert image.width == 8 + cache_table.COLUMNS * 152
        assert image.height > 3 * 144


def test_every_way_draws_the_same_prompts_in_rounds_that_begin_with_another_way(painters: list[SavingPainter]) -> None:
    painter, cases = SavingPainter(), held_out_cases(6, (96, 96))
    ways = [Way("nothing saved"), Way("20", steps=20), Way("until 0.5", window=(0.0, 0.5), outside="last")]
    tallies = draw_rounds(painter, RAW, ways, cases, size=4)
    assert [len(tally.seconds) for tally in tallies] == [2, 2, 2]
    assert all([one.case for one in tally.judged] == cases for tally in tallies)
    assert [set(tally.evaluations) for tally in tallies] == [{480}, {240}, {360}]
    assert {tally.real_evaluations[0] for tally in tallies} == {104 * 28, 52 * 28, 78 * 28}
    gated = [asked for asked in painter.asked if "guidance_until" in asked]
    assert {asked["guidance_outside"] for asked in gated} == {"last"}
    last = painter.asked[-3 * 2 :]
    assert [asked.get("steps") for asked in last[:2]] == [20] * 2  # the second round


@pytest.mark.parametrize("model", ["demo", "demo-raw"])
def test_ways_ask_for_what_their_schedules_say(model: str) -> None:
    it = Model.of(model)
    assert len({way.name for way in it.ways}) == len(it.ways)
    for way in it.ways[1:]:
        asked, schedule = way.parameters, it.schedule(way)
        assert asked
        assert asked.get("steps", it.steps) == schedule.steps
        cache = asked.get("cache")
        if isinstance(cache, dict):
            assert {name: getattr(schedule.cache, name) for name in cache} == cache
            assert ("threshold" in cache) == (cache["method"] == "blocks")
        else:
            assert schedule.cache == (PRESETS[cache] if cache else None)
        saves = plan_of(schedule) is None or any(set(half) != {StepKind.COMPUTED} for half in plan_of(schedule) or ())
        assert saves, f"{way.name} can save nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "cache", "--steps", "4"], "--table cache goes with neither --steps nor --guidance"),
        (["--table", "--ways", "fast"], "--ways goes with --table cache"),
    ],
)
def test_options_that_contradict_it_are_refused(
    painters: list[SavingPainter], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
    assert not painters


def test_a_way_that_is_not_there_is_one_line(painters: list[SavingPainter], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--table", "cache", "--model", "demo-raw", "--ways", "faster"]) == 2
    assert capsys.readouterr().err.startswith("error: ways must be of nothing saved; quality; fast")
    assert not painters
