"""python -m bench.image, at a tiny size on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.engines import engine as engine_module
from bench.engines.engine import Engine
from bench.engines.real_size import model_of_size
from bench.engines.setup import Setup, Version
from bench.engines.stages import Stages
from bench.image import __main__ as image
from bench.image import measuring
from bench.image.unseen_length import measure_unseen
from bench.measure.files import FILE_OPTIONS
from bench.measure.timing import Budget
from engine.planning.floor import Ceilings
from engine.rank.build import TYPICAL_PROMPT_TOKENS
from tests.bench.engines.measured import TINY, check_output

pytestmark = pytest.mark.usefixtures("quick_ceilings")
CPU = torch.device("cpu")


@pytest.mark.usefixtures("eager_peer")
def test_an_image_is_timed_stage_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--steps", "2", "--idle", "0", "--sustained", "0.1", "--sides", "64")
    words = [*TINY, *quick, "--peer", "diffusers", "--json", str(tmp_path / "lines")]
    assert image.main(words) == 0
    (line,) = check_output(capsys, tmp_path / "lines", "image")
    assert line["wall_s"]["count"] == 3
    stages = line["stages"]
    named = [stages[f"{name}_s"] for name in ("encode", "denoise", "decode", "file")]
    assert all(seconds > 0 for seconds in named)
    assert stages["png_s"] > 0
    assert stages["wall_s"] == pytest.approx(sum(named) + line["outside_s"])
    assert line["sustained_images"] >= 1
    assert line["sustained_s"] > 0
    assert line["target_s"] is None, "targets are for the real size on a GPU"
    assert set(line["file_bytes"]) == set(FILE_OPTIONS)
    assert line["peers"]["eager"]["ratio"] > 0


def test_a_burst_ends_when_the_time_is_up() -> None:
    setup = Setup(model_of_size("tiny"), "tiny", CPU, torch.float32, (Version(),), 7, "none", Budget(0.0), None)
    engine = Engine(setup, Version())
    ceilings = Ceilings(1e11, None, None, 1e10)
    result = measuring.measure_image(engine, 64, ceilings, steps=1, burst=5, idle_s=0.0, sustained_s=10.0)
    engine.close()
    assert result.wall_s.count == 1
    assert result.sustained_images == 1


def test_what_a_length_that_was_not_seen_before_costs(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--sides", "64", "--steps", "1", "--burst", "1", "--idle", "0", "--sustained", "0")
    lengths: list[int] = []
    make_image = measuring.make_image

    def note_length(engine: Engine, *arguments: Any, **options: Any) -> Stages:
        lengths.append(options.get("prompt_tokens") or engine.setup.prompt_tokens)
        return make_image(engine, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measuring, "make_image", note_length)
        assert image.main([*TINY, *quick, "--prompt-tokens", "58", "--unseen-length", "3"]) == 0
    (line,) = check_output(capsys, None, "image")
    assert lengths == [58, 58, 58, *(60, 60), *(60, 61), *(62, 62)], "59 is what a rank warms up with"
    unseen = line["unseen_length"]
    assert unseen["lengths"] == [60, 61, 62]
    assert unseen["difference_s"] == pytest.approx(unseen["unseen_s"]["median"] - unseen["seen_s"]["median"])
    assert (unseen["unseen_s"]["count"], unseen["seen_s"]["count"]) == (3, 3)
    assert (unseen["plan_s"]["count"], unseen["plan_s"]["median"]) == (3, 0.0), "a CPU has no plans to build"


def test_the_plan_of_a_new_length_is_built_between_its_image_and_the_next() -> None:
    did: list[str] = []

    class Planned:
        setup = SimpleNamespace(budget=Budget(None))
        lengths = iter((60, 61, None))

        def unseen_length(self) -> int | None:
            return next(self.lengths)

        def build_plans(self) -> float:
            did.append("plan")
            return 0.3

    def make(tokens: int) -> float:
        did.append(f"image {tokens}")
        return 1.0

    result = measure_unseen(Planned(), make, 4)  # type: ignore[arg-type]
    assert result is not None
    assert result.plan_s.median == 0.3
    assert did == ["image 60", "plan", "image 60", "image 60", "image 61", "plan"]


def test_lengths_end_where_prompts_are_cut() -> None:
    setup = Setup(model_of_size("tiny"), "tiny", CPU, torch.float32, (Version(),), 506, "none", Budget(None), None)
    engine = Engine(setup, Version())
    made: list[int] = []

    def make(tokens: int) -> float:
        made.append(tokens)
        engine.new_jobs(1, 64, 1, tokens)
        return 1.0

    result = measure_unseen(engine, make, 4)
    assert result is not None
    assert (made, result.lengths) == ([506, 506, 506, 507], (506, 507))
    assert measure_unseen(engine, make, 4) is None
    engine.close()


def test_the_length_that_a_rank_warms_up_with_is_no_new_one() -> None:
    assert engine_module.WARM_UP_TEXT_TOKENS == TYPICAL_PROMPT_TOKENS
