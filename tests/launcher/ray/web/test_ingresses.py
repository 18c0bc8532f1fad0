"""What ingresses ask each other, and what all engines say, made into one answer."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from launcher.http.apis.automatic1111.neighbours import Question, Seen
from launcher.ray.web.ingresses import Ingresses
from launcher.ray.web.summary import add_status, join_metrics
from tests.launcher.messages.status_stand_in import STATUS, status

SEEN = Seen(
    name="txt2img", num_images=1, began=1.0, position=0, step=1, steps=4, ends=None, images_done=0, interrupted=False,
    preview=None,
)  # fmt: skip


def _two() -> tuple[Ingresses, Ingresses]:
    both: dict[str, Ingresses] = {}

    async def ask(question: bytes) -> dict[str, bytes]:
        return {name: each.answer(question) for name, each in both.items()}

    both["a"], both["b"] = Ingresses("a", ask), Ingresses("b", ask, lambda: b"replays 1\n")
    return both["a"], both["b"]


def test_requests_are_seen_and_ended_from_the_other_ingress_and_only_their_callers() -> None:
    async def run() -> None:
        here, there = _two()
        asked: list[Question] = []

        def tell(question: Question) -> Seen:
            asked.append(question)
            return msgspec.structs.replace(SEEN, ends=time.monotonic() + 5.0)

        async with there.neighbours.asking("address 1", tell):
            (seen,) = await here.neighbours.ask("address 1", Question(interrupt=True))
            assert await here.neighbours.ask("address 2", Question()) == []
            assert await there.neighbours.ask("address 1", Question()) == []  # which knows its own by itself
        assert asked == [Question(interrupt=True)]
        assert seen.ends == pytest.approx(time.monotonic() + 5.0, abs=60.0)
        assert await here.neighbours.ask("address 1", Question()) == []

    asyncio.run(run())


def test_metrics_are_of_all_ingresses_and_one_that_hangs_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        here, there = _two()
        await there.metrics(lambda: b"requests 2\n")
        assert await here.metrics(lambda: b"requests 1\n") == (
            b'requests{ingress="a"} 1\nrequests{ingress="b"} 2\nreplays{ingress="b"} 1\n'
        )

        async def hang(_: bytes) -> dict[str, bytes]:
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr("launcher.ray.web.ingresses._DEADLINE_S", 0.01)
        assert await Ingresses("a", hang).metrics(lambda: b"requests 1\n") == b'requests{ingress="a"} 1\n'
        assert await Ingresses("a", None).metrics(lambda: b"requests 1\n") == b'requests{ingress="a"} 1\n'

    asyncio.run(run())


def test_texts_of_metrics_become_one_with_what_is_said_of_each_metric_once() -> None:
    text = b'# HELP krea2_images Images\n# TYPE krea2_images counter\nkrea2_images{kind="a b{"} 1.0\nkrea2_images 2.0\n'
    assert join_metrics({"x": text, "y": text}, "replica") == (
        b"# HELP krea2_images Images\n# TYPE krea2_images counter\n"
        b'krea2_images{replica="x",kind="a b{"} 1.0\nkrea2_images{replica="x"} 2.0\n'
        b'krea2_images{replica="y",kind="a b{"} 1.0\nkrea2_images{replica="y"} 2.0\n'
    )
    assert join_metrics({}, "replica") == b""


def test_the_status_of_all_is_ready_if_one_engine_is_and_counts_all_requests() -> None:
    starting = status(ready=False, not_ready="it is loading", device=None, uptime_s=9.0)
    both = add_status([starting, STATUS])
    assert (both.ready, both.not_ready, both.device) == (True, None, "cpu")
    assert (both.waiting, both.running, both.done, both.failed, both.restarts) == (2, 4, 6, 8, 12)
    assert both.uptime_s == 9.0
    assert add_status([starting, starting]).not_ready == "it is loading"
