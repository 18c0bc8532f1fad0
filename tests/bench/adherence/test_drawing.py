"""Pictures are drawn as cases and ways say."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Event

import pytest

from bench.adherence import drawing
from bench.adherence.drawing import IN_FLIGHT, draw_and_judge
from bench.adherence.rates import held_out_cases
from demo.captions import Prompt
from demo.pictures import draw
from engine.errors import RankError
from launcher.client.async_client import Parameters
from tests.bench.adherence.painter import WAY, Painter
from tests.launcher.processes import PATIENCE_S


def test_pictures_are_as_the_case_and_the_way_say_and_in_the_order_of_the_cases() -> None:
    painter = Painter()
    cases = held_out_cases(20, None)
    drawn = draw_and_judge(painter, replace(WAY, steps=4, guidance=1.5), cases)
    assert [one.judged.case for one in drawn] == cases
    assert [one.picture.size for one in drawn] == [(case.width, case.height) for case in cases]
    assert all(one.judged.right for one in drawn)
    for parameters in painter.asked:
        assert (parameters["steps"], parameters["guidance"]) == (4, 1.5)
    for case, one in zip(cases, drawn, strict=True):
        exact = draw(case.prompt, case.width, case.height, random.Random(case.seed))
        assert exact.tobytes() == one.picture.tobytes()


def test_several_pictures_are_asked_for_at_once() -> None:
    together = Barrier(IN_FLIGHT, timeout=PATIENCE_S)

    def wait(prompt: Prompt, _: Parameters) -> Prompt:
        together.wait()
        return prompt

    assert len(draw_and_judge(Painter(wait), WAY, held_out_cases(IN_FLIGHT, (96, 96)))) == IN_FLIGHT


def test_a_picture_that_fails_ends_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in flight come to an end once no other is waited for."""
    ended = Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            ended.set()
            super().shutdown(wait)

    def fail(prompt: Prompt, parameters: Parameters) -> Prompt:
        if parameters["seed"] == 0:
            raise RankError("it died")
        assert ended.wait(PATIENCE_S)
        return prompt

    monkeypatch.setattr(drawing, "ThreadPoolExecutor", Pool)
    painter = Painter(fail)
    with pytest.raises(RankError, match="it died"):
        draw_and_judge(painter, WAY, held_out_cases(100, (96, 96)))
    assert len(painter.asked) <= IN_FLIGHT + 1
