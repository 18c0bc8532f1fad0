"""What a rank reaches, which only those hear of who ask."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.rank import build
from engine.rank.rank import Rank
from engine.step import Step, StepTimes
from tests.engine_runs import RankGroups, jobs_of
from tests.oracle import Request


@pytest.mark.parametrize("tp", [1, 2])
def test_a_rank_says_what_it_reaches_to_who_asks_and_measures_it_once(
    rank_groups: RankGroups, monkeypatch: pytest.MonkeyPatch, tp: int
) -> None:
    measured: list[object] = []
    device_rates = build.device_rates
    monkeypatch.setattr(build, "device_rates", lambda *asked: measured.append(asked) or device_rates(*asked))
    (job,) = jobs_of(DEMO_CHECKPOINT, [Request("a red circle", seeds=(1,), steps=2)])
    asking = [replace(job, job_id=1, explain=True), replace(job, job_id=2, explain=True)]
    steps = [Step(0, (job,), (0,)), Step(1, (asking[0],), (0, 1)), Step(2, (asking[1],), (2,)), Step(3, (), (1, 2))]
    steps.append(Step(4, (), (), (), (0, 1, 2)))

    def execute(rank: Rank) -> list[StepTimes]:
        rank._next_number = 0
        return [rank.execute(step).wait() for step in steps]

    group = rank_groups.get(DEMO_CHECKPOINT, tp=tp)
    every = group.on_ranks(execute)
    group._next_step = len(steps)
    assert len(measured) == tp
    for times in every:
        assert [each.reach is not None for each in times] == [False, True, True, False, False]
        assert times[1].reach == times[2].reach
        assert times[1].reach_s > 0
        assert not any(each.graph for each in times)
        reach = times[1].reach
        assert reach is not None
        blocks = group.on_ranks(lambda rank: rank.model.transformer.transformer_blocks)[0]
        matrices = [each for name, each in blocks.named_parameters() if each.dim() == 2 and "table" not in name]
        assert reach.block_bytes == sum(each.numel() * each.element_size() for each in matrices)
        assert reach.text_ranks == tp
