"""What a LoRA's header says of the schedule that it was made for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.config.model_config import ModelConfig
from engine.lora.files import open_adapter
from engine.lora.schedule import MOST_SIGMAS, LoraSchedule, read_schedule
from engine.sigmas import are_sigmas
from tests.engine.lora.adapter_files import write

DOCUMENT = Path(__file__).parents[4] / "docs" / "lora.md"
LAYER = "blocks.0.attn.wq"
FOUR = LoraSchedule(4, (1.0, 0.75, 0.5, 0.25), mu=0.0, guidance=0.0)


def test_a_file_says_it(tmp_path: Path, turbo: Path) -> None:
    tensors = {f"{LAYER}.lora_A": torch.ones(4, 128), f"{LAYER}.lora_B": torch.ones(128, 4)}
    said = {"krea2.sigmas": "[1, 0.75, 0.5, 0.25, 0]", "krea2.mu": "0", "krea2.guidance": "0.0", "krea2.steps": "4"}
    config = ModelConfig.from_folder(turbo)
    opened = open_adapter(write(tmp_path / "fast.safetensors", tensors, header=said), config)
    assert (opened.schedule, opened.left_out) == (FOUR, "")
    assert FOUR.describe() == "4 steps, sigmas 1, 0.75, 0.5, 0.25, mu 0, guidance 0"
    assert open_adapter(write(tmp_path / "plain.safetensors", tensors), config).schedule is None
    wrong = open_adapter(write(tmp_path / "wrong.safetensors", tensors, header=said | {"krea2.steps": "5"}), config)
    assert wrong.schedule is None
    assert wrong.left_out == "the schedule in its header was ignored: it has 4 sigmas for 5 steps"


def test_the_document_says_how_to_write_it(tmp_path: Path, turbo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {f"{LAYER}.lora_A": torch.ones(4, 128), f"{LAYER}.lora_B": torch.ones(128, 4)}
    write(Path("fast.safetensors"), tensors, header={"lora_alpha": "2"})
    (code,) = (part for part in DOCUMENT.read_text().split("```") if part.startswith("python\nfrom safetensors"))
    exec(code.removeprefix("python\n"), {})
    opened = open_adapter("fast-4-steps.safetensors", ModelConfig.from_folder(turbo))
    assert opened.schedule == FOUR
    assert opened.scales == {"the header's lora_alpha": (0.5,)}


@pytest.mark.parametrize(
    ("metadata", "schedule"),
    [
        ({"krea2.steps": "2"}, LoraSchedule(steps=2)),
        ({"krea2.mu": "-0.5"}, LoraSchedule(mu=-0.5)),
        ({"krea2.shift": "3"}, LoraSchedule(mu=math.log(3))),
        ({"krea2.guidance": "1.5"}, LoraSchedule(guidance=1.5)),
        ({"num_inference_steps": "4", "shift": "3", "steps": "3000"}, LoraSchedule(4, mu=math.log(3))),
        ({"sigmas": "[1.0, 0.5]", "mu": "0.7"}, LoraSchedule(2, (1.0, 0.5), 0.7)),
        ({"krea2.steps": "2", "num_inference_steps": "2"}, LoraSchedule(2)),
    ],
)
def test_keys_of_ours_and_of_others(metadata: dict[str, str], schedule: LoraSchedule) -> None:
    assert read_schedule(metadata) == (schedule, "")


@pytest.mark.parametrize(
    "metadata",
    [{}, {"steps": "3000"}, {"mu": "1"}, {"shift": "3"}, {"krea2.steps": "None", "sigmas": ""}, {"ss_steps": "8"}],
)
def test_what_may_mean_something_else_is_not_read(metadata: dict[str, str]) -> None:
    assert read_schedule(metadata) == (None, "")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"krea2.sigmas": "[0.5, 1]"}, "krea2.sigmas must be a list in JSON of at most 1000 numbers that fall"),
        ({"krea2.sigmas": "1, 0.5"}, "got 1, 0.5"),
        ({"krea2.sigmas": '["1"]'}, "krea2.sigmas"),
        ({"krea2.sigmas": "[true, 0.5]"}, "krea2.sigmas"),
        ({"krea2.sigmas": "[[1]]"}, "krea2.sigmas"),
        ({"krea2.sigmas": json.dumps([1 - step / 2000 for step in range(MOST_SIGMAS + 1)])}, "at most 1000"),
        ({"krea2.sigmas": "[" * 100_000}, "krea2.sigmas"),
        ({"krea2.sigmas": f"[1, {'0' * 50_000}]"}, "krea2.sigmas"),
        ({"krea2.steps": "0"}, "krea2.steps must be a whole number between 1 and 1000, got 0"),
        ({"krea2.steps": "4.5"}, "krea2.steps"),
        ({"krea2.mu": "1e9"}, "krea2.mu must be a number between -10 and 10, got 1e9"),
        ({"krea2.mu": "NaN"}, "krea2.mu"),
        ({"krea2.mu": f"1{'0' * 400}"}, "krea2.mu"),
        ({"krea2.shift": "0"}, "krea2.shift must be a number between 4.54e-05 and 2.203e+04, got 0"),
        ({"krea2.guidance": "\x1b[2J"}, r"got \x1b[2J"),
        ({"krea2.steps": "3", "krea2.sigmas": "[1, 0.5]"}, "it has 2 sigmas for 3 steps"),
        ({"krea2.mu": "1", "krea2.shift": "1"}, "krea2.shift contradicts another key"),
    ],
)
def test_wrong_ones_are_left_out_and_told(metadata: dict[str, str], said: str) -> None:
    schedule, problem = read_schedule(metadata)
    assert schedule is None
    assert problem.startswith("the schedule in its header was ignored: ")
    assert said in problem
    assert len(problem) < 300


TEXTS = st.text(max_size=12) | st.floats().map(str) | st.lists(st.floats(-1, 2), max_size=4).map(str)
KEYS = st.sampled_from(["krea2.sigmas", "krea2.steps", "krea2.mu", "krea2.shift", "krea2.guidance", "sigmas", "mu"])


@given(st.dictionaries(KEYS, TEXTS, max_size=3))
def test_whatever_a_header_says_there_is_a_usable_schedule_or_none(metadata: dict[str, str]) -> None:
    schedule, problem = read_schedule(metadata)
    assert schedule is None or not problem
    if schedule is not None and schedule.sigmas is not None:
        assert are_sigmas(schedule.sigmas)
        assert schedule.steps == len(schedule.sigmas)
