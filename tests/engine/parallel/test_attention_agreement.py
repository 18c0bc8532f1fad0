"""All ranks of a group choose the same attention, whatever each of them measured."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from engine.config.degrees import Degrees
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError
from engine.kernels.attention import choice as attention_choice
from engine.kernels.attention.choice import AttentionChoice, AttentionShape, Timing, choose_attention
from engine.parallel.greeting import agree_on_attention
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from tests.engine.parallel.thread_group import thread_meshes

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = AttentionShape(heads=4, kv_heads=1, head_dim=128, lengths=(4160,))
DEADLINE_S = 240.0
Table = dict[str, Timing | Exception]


@pytest.fixture
def on_rank(monkeypatch: pytest.MonkeyPatch) -> threading.local:
    """Holds, in the thread of a rank, the `table` of what its pretended GPU measures; what is not there is refused."""
    own = threading.local()

    def measure(backend: str, *_: object) -> Timing:
        result = own.table[backend]
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(attention_choice, "measure", measure)
    monkeypatch.setattr(
        attention_choice, "unavailable", lambda backend, *_: None if backend in own.table else "it is not here"
    )
    return own


def choose(
    on_rank: threading.local, tables: list[Table], name: str = "auto", *, measured: bool = True
) -> list[AttentionChoice]:
    def work(mesh: Mesh, table: Table) -> AttentionChoice:
        on_rank.table = table
        agree = partial(agree_on_attention, mesh.world, CPU)
        return choose_attention(name, SHAPE, GPU, torch.bfloat16, calls=224, measured=measured, agree=agree)

    meshes = thread_meshes(Degrees(1, len(tables)), DEADLINE_S)
    with ThreadPoolExecutor(len(tables)) as pool:
        return list(pool.map(work, meshes, tables))


def names(choices: list[AttentionChoice]) -> list[tuple[str, str | None]]:
    return [(choice.backend, choice.captured_backend) for choice in choices]


def test_the_slowest_rank_decides(on_rank: threading.local) -> None:
    first: Table = {"cudnn": Timing(20, 0.5), "fa2": Timing(1, 0.7), "triton": Timing(1, 0.9)}
    second: Table = {"cudnn": Timing(90, 0.85), "fa2": Timing(1, 0.8), "triton": Timing(1, 0.75)}
    assert names(choose(on_rank, [first])) == [("cudnn", "fa2")]
    assert names(choose(on_rank, [second])) == [("triton", "triton")]
    choices = choose(on_rank, [first, second])
    assert names(choices) == [("fa2", "fa2")] * 2
    assert choices[0].timings["cudnn"] == choices[1].timings["cudnn"]
    assert choices[0].timings["cudnn"].first_ms == 90
    assert choices[0].timings["cudnn"].steady_ms == pytest.approx(0.85)


def test_what_one_rank_cannot_use_none_uses(on_rank: threading.local) -> None:
    fast: Table = {"cudnn": Timing(1, 0.5), "fa3": Timing(1, 0.4), "triton": Timing(1, 0.9)}
    failing: Table = {**fast, "cudnn": RuntimeError("no plan")}
    missing: Table = {name: timing for name, timing in fast.items() if name != "fa3"}
    choices = choose(on_rank, [fast, failing, missing])
    assert names(choices) == [("triton", "triton")] * 3
    assert [choice.refused["cudnn"] for choice in choices] == [
        "rank 1 cannot use it",
        "RuntimeError: no plan",
        "rank 1 cannot use it",
    ]
    assert [choice.refused["fa3"] for choice in choices] == [*["rank 2 cannot use it"] * 2, "it is not here"]


def test_torch_serves_all_where_it_must_serve_one(on_rank: threading.local) -> None:
    whole: Table = {"cudnn": Timing(1, 0.5), "torch": AssertionError("it ends in cudnn")}
    partly: Table = {"torch": Timing(1, 3)}
    choices = choose(on_rank, [whole, partly])
    assert names(choices) == [("torch", None)] * 2


def test_a_named_backend_that_one_rank_lacks_is_refused_by_all(on_rank: threading.local) -> None:
    def work(mesh: Mesh, table: Table) -> str:
        on_rank.table = table
        agree = partial(agree_on_attention, mesh.world, CPU)
        with pytest.raises(ArgumentError) as raised:
            choose_attention("fa3", SHAPE, GPU, torch.bfloat16, calls=224, measured=False, agree=agree)
        return raised.value.message

    tables: list[Table] = [{"fa3": Timing(1, 1), "triton": Timing(1, 1)}, {"triton": Timing(1, 1)}]
    with ThreadPoolExecutor(2) as pool:
        messages = list(pool.map(work, thread_meshes(Degrees(2), DEADLINE_S), tables))
    assert messages[0].startswith("attention fa3 is not available: rank 1 cannot use it; available here: auto, triton")
    assert messages[1].startswith("attention fa3 is not available: it is not here; available here: auto, triton")


def test_unmeasured_the_usually_fastest_that_all_have_is_taken(on_rank: threading.local) -> None:
    tables: list[Table] = [dict.fromkeys(("fa3", "flash", "triton"), Timing(1, 1)), {"triton": Timing(1, 1)}]
    assert names(choose(on_rank, tables, measured=False)) == [("triton", "triton")] * 2


def test_ranks_agree_over_the_whole_world(turbo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not over a group that only some are in."""
    degrees = Degrees(1, 2, 2)

    def find(*_: object, agree: attention_choice.Agree, **__: object) -> AttentionChoice:
        number = int(threading.current_thread().name.rpartition("_")[2])
        timings, refused = agree({"torch": Timing(1.0 + number, 1.0)}, {"fa4": "no"} if number == 2 else {})
        return AttentionChoice("torch", None, timings, refused)

    monkeypatch.setattr("engine.rank.build.choose_attention", find)
    config = EngineConfig(model=str(turbo), device="cpu", sp=2, cfg_parallel=True)

    def work(mesh: Mesh) -> AttentionChoice:
        rank = Rank(config, mesh, CPU)
        try:
            return replace(rank.model.attention_choice, refused={})
        finally:
            rank.close()

    with ThreadPoolExecutor(4, thread_name_prefix="rank") as pool:
        choices = list(pool.map(work, thread_meshes(degrees, DEADLINE_S)))
    assert all(choice.timings == {"torch": Timing(4.0, 1.0)} for choice in choices)
