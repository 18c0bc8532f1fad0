"""A model that is larger than the memory there is is refused with the numbers, and with what does fit."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.engines.real_size import KREA2, RandomWeights
from engine.checkpoint.weight_format import parameter_formats
from engine.config.engine_config import EngineConfig
from engine.planning.memory_plan import MemoryPlan, plan_checkpoint
from engine.planning.room import GB, Room, refuse

WEIGHTS = RandomWeights(KREA2, torch.device("cpu"))
LAPTOP = Room(device=None, host=22 * GB, total=25 * GB)
CARD = Room(device=23 * GB, host=60 * GB, total=64 * GB, gpus=1, multiplies_fp8=True)
DEMO = "--model demo, a small model to try things with"
CARDS = "a GPU of 48 GB or of 8 GB with --memory-budget 8GB, beside 29.55 GB of host memory"


def plan_for(engine: EngineConfig, room: Room) -> MemoryPlan:
    size = 2 if engine.dtype_on(room.device_type) == "bfloat16" else 4
    return plan_checkpoint(WEIGHTS, engine, size, budget=engine.memory_budget, nccl=room.device is not None)


def refusal(room: Room, **options: Any) -> str:
    engine = EngineConfig(model="krea", **options)
    plan = plan_for(engine, room)
    shortage = room.shortage(plan, engine)
    assert shortage is not None
    return refuse(shortage, plan, WEIGHTS, engine, room).message


@pytest.mark.parametrize(
    ("room", "options", "needs", "fits"),
    [
        pytest.param(
            LAPTOP,
            {},
            "the model needs 67.15 GB of this machine's memory for the weights in float32, and 22.00 GB are available",
            [CARDS, DEMO],
            id="a CPU with much too little",
        ),
        pytest.param(
            replace(LAPTOP, host=40 * GB, swap=8 * GB, total=48 * GB),
            {},
            "the model needs 67.15 GB of this machine's memory for the weights in float32, and 48.00 GB are available, "
            "8.00 GB of it swap",
            [
                "--dtype bfloat16 (33.58 GB)",
                "--quantization int8 (31.44 GB)",
                CARDS,
                DEMO,
            ],
            id="a CPU with swap",
        ),
        pytest.param(
            replace(LAPTOP, ranks=2, host=78 * GB, total=80 * GB),
            {"sp": 2},
            "the model needs 134.30 GB of this machine's memory for the weights of its 2 ranks in float32, and 78.00 "
            "GB are available",
            [
                "--dtype bfloat16 (67.16 GB)",
                "--quantization int8 (62.88 GB)",
                CARDS,
                DEMO,
            ],
            id="copies on a CPU",
        ),
        pytest.param(
            CARD,
            {},
            "the model needs 33.58 GB of a rank's GPU for its weights in bfloat16, and 23.00 GB are free there",
            [
                "--memory-budget 23GB (20.06 GB)",
                "--quantization fp8 --memory-budget 23GB (13.99 GB)",
                "--quantization int8 --memory-budget 23GB (14.75 GB)",
                CARDS,
                DEMO,
            ],
            id="a small GPU",
        ),
        pytest.param(
            replace(CARD, gpus=4),
            {},
            "the model needs 33.58 GB of a rank's GPU",
            ["--tp 2 (17.55 GB)", "--tp 4 (9.53 GB)", "--memory-budget 23GB (20.06 GB)", CARDS, DEMO],
            id="several small GPUs",
        ),
        pytest.param(
            replace(CARD, gpus=4, is_split=True),
            {"tp": 2, "dtype": "float32"},
            "the model needs 35.09 GB of a rank's GPU for its weights in float32",
            [
                "--dtype bfloat16 (17.55 GB)",
                "--memory-budget 23GB (18.19 GB)",
                "2 GPUs of 24 GB or of 8 GB with --memory-budget 8GB, beside 26.86 GB of host memory",
                DEMO,
            ],
            id="a checkpoint that was split",
        ),
        pytest.param(
            replace(CARD, device=15 * GB, host=8 * GB),
            {"memory_budget": 15 * GB},
            "the model needs 23.48 GB of this machine's memory for the weights that do not stay on the GPU, and 8.00 "
            "GB are available",
            [CARDS, DEMO],
            id="a small GPU in a small machine",
        ),
    ],
)
def test_what_is_short_is_said_with_what_would_fit(
    room: Room, options: dict[str, Any], needs: str, fits: list[str]
) -> None:
    message = refusal(room, **options)
    before, _, after = message.partition(": nothing was loaded. What would fit: ")
    assert before.startswith(needs)
    assert after.split("; ") == fits


def test_what_is_said_to_fit_is_not_refused() -> None:
    for room in (replace(LAPTOP, host=size * GB, total=64 * GB) for size in (20, 35, 64)):
        said = re.findall(r"[:;] ((?:--[a-z-]+ \w+ ?)+)\(", refusal(room))
        for flags in said:
            changes = dict(re.findall(r"--([a-z-]+) (\w+)", flags))
            engine = EngineConfig(model="krea", **changes)
            assert room.holds(plan_for(engine, room), engine)
            assert room.shortage(plan_for(engine, room), engine) is None
        assert bool(said) == (room.host is not None and room.host >= 35 * GB)


def test_no_more_is_asked_for_than_the_weights_take() -> None:
    for engine in (
        EngineConfig(model="krea", tp=tp, quantization=kind) for tp in (1, 2, 4) for kind in ("auto", "int8")
    ):
        needed = replace(LAPTOP, ranks=engine.ranks).on_host(plan_for(engine, LAPTOP), engine)
        formats = parameter_formats(WEIGHTS, engine.tp, 4, engine.quantization)
        assert needed <= engine.ranks * sum(each.bytes for part in formats.values() for each in part.values()) * 33 / 32


def test_what_may_fit_is_not_refused() -> None:
    engine = EngineConfig(model="krea")
    plan = plan_for(engine, LAPTOP)
    for host, swap in ((plan.weights, 0), (40 * GB, plan.weights - 40 * GB), (None, 0)):
        assert Room(device=None, host=host, swap=swap).shortage(plan, engine) is None
    assert Room(device=None, host=plan.weights - 1, total=25 * GB).shortage(plan, engine) is None
    assert Room(device=None, host=plan.weights - GB, total=25 * GB).shortage(plan, engine) is not None
    plan = plan_for(engine, CARD)
    assert Room(device=plan.weights, host=0).shortage(plan, engine) is None
    assert Room(device=plan.weights - 1, host=None).shortage(plan, engine) == (plan.weights, plan.weights - 1)
