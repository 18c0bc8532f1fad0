"""What clients are told of a request that several engines have had: seeds, names, and where the time went."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.explanation import PARTS, Explanation, Stage, add_up, timeline
from launcher.messages.client_messages import LONGEST_REQUEST_ID, Generate, Image
from launcher.messages.message_parts import CacheChoice
from launcher.ray.replaying.history import ticket_of
from launcher.ray.replaying.retelling import Usual, routing_key, with_seed, with_time_before, work_of
from launcher.ray.settled import settle
from tests.launcher.ray.replaying.fake_engines import Drawn, FakeCluster, dies_after, well
from tests.launcher.ray.replaying.instant_time import run_instantly


def make(**fields: Any) -> Generate:
    """A request without a seed."""
    return Generate(**{"request_id": "request", "prompt": "a fox", **fields})


def explain(total_s: float) -> Explanation:
    """A short life."""
    stages = (
        Stage(name="check", begin_s=0.0, end_s=0.1, attempt=1),
        Stage(name="denoise", begin_s=0.1, end_s=total_s, attempt=1, rank=0),
    )
    return Explanation(
        total_s=total_s, clock_s=50.0, parts=add_up(timeline(stages, total_s)), mode="tp 1", device="", ranks=1,
        num_images=1, width=64, height=64, steps=4, attempt=1, prompt_tokens=(40,), segments=(22,), image_tokens=16,
        floor_source="none", notes=("a note",), stages=stages,
    )  # fmt: skip


def test_a_seed_is_drawn_where_there_is_none_and_is_that_of_the_key_where_there_is_one() -> None:
    seeds = {with_seed(make(seed=seed)).seed for seed in (None, -1) for _ in range(20)}
    assert len(seeds) == 40
    assert all(seed is not None and 0 <= seed < 2**32 for seed in seeds)
    assert with_seed(make(seed=27, idempotency_key="key")).seed == 27
    keyed = {with_seed(make(seed=seed, idempotency_key="key", caller="me")).seed for seed in (None, -1)}
    assert len(keyed) == 1
    others = {
        with_seed(make(idempotency_key=key, caller=caller)).seed
        for key, caller in (
            ("key", "me"),
            ("key", "you"),
            ("key", None),
            ("other", "me"),
            ("me key", ""),
            ("key ", "me"),
        )
    }
    assert len(others) == 6


def test_a_key_is_routed_by_whose_it_is_and_says_nothing_of_it() -> None:
    assert routing_key(make()) is None
    mine = routing_key(make(idempotency_key="secret", caller="me"))
    assert mine is not None
    assert "secret" not in mine
    assert mine == routing_key(make(idempotency_key="secret", caller="me", seed=3))
    assert mine != routing_key(make(idempotency_key="secret", caller="you"))


def test_work_is_steps_times_pixels_of_the_model_where_a_request_does_not_say_them() -> None:
    turbo, raw = Usual(8, 1024, 512, 0.0), Usual(52, 1024, 1024, 3.5)
    assert work_of(make(steps=4, width=64, height=64, num_images=3), turbo) == 3 * 4 * 64 * 64
    assert work_of(make(steps=4, width=64, height=64, guidance=3.0), turbo) == 2 * 4 * 64 * 64
    assert work_of(make(), turbo) == 8 * 1024 * 512
    assert work_of(make(), raw) == 2 * 52 * 1024 * 1024
    assert work_of(make(guidance=0.0, width=256), raw) == 52 * 256 * 1024
    assert work_of(make(steps=-1, num_images=0), turbo) == 1.0  # which an engine refuses
    demo = settle({"model": "demo", "device": "cpu"}).model
    assert Usual.of(demo) == (demo.default_steps, demo.default_width, demo.default_height, demo.default_guidance, 6)


def test_what_is_saved_of_steps_is_no_work() -> None:
    turbo, raw = Usual(8, 64, 64, 0.0, blocks=10), Usual(40, 64, 64, 3.5, blocks=10)
    assert work_of(make(guidance_until=0.5), raw) == (40 + 20) * 64 * 64
    assert work_of(make(guidance_until=0.5), turbo) == 8 * 64 * 64
    assert work_of(make(sigmas=(1.0, 0.5, 0.2, 0.0)), turbo) == 3 * 64 * 64
    velocity = CacheChoice(method="velocity", warmup_steps=9, max_consecutive=2, max_cached=20)
    # nine of warm-up, ten times two forecast and one computed
    assert work_of(make(cache=velocity), raw) == 2 * (40 - 20) * 64 * 64
    blocks = CacheChoice(warmup_steps=4, max_consecutive=1)  # of four steps two may be cached, which saves 9 of 10
    assert work_of(make(cache=blocks), turbo) == pytest.approx((8 - 4 * 0.9 / 3) * 64 * 64, rel=0.05)
    for wrong in ("brief", CacheChoice(order=7)):
        assert work_of(make(cache=wrong), turbo) == work_of(make(), turbo)  # an engine refuses it
    assert work_of(make(cache="fast", steps=10**12), turbo) == 10**12 * 64 * 64


@pytest.mark.parametrize("length", [1, 59, 62, 64])
def test_each_attempt_has_a_name_of_its_own(length: int) -> None:
    first, other = "x" * length, "x" * (length - 1) + "y"
    names = [ticket_of(name, number) for name in (first, other) for number in range(1, 120)]
    assert len({*names}) == len(names)
    assert max(map(len, names)) <= LONGEST_REQUEST_ID
    assert names[0] == first
    if length < 60:
        assert names[1] == f"{first}.r2"


def test_the_time_before_the_last_attempt_is_part_of_it_all() -> None:
    drawn = Drawn("one", make(seed=7), [], True, (), None)
    image, _ = drawn.image(0, explanation=explain(0.75))
    assert isinstance(image, Image)
    told = with_time_before(image, lost_s=3.0, waited_s=2.0, restarts=2, moves=1)
    assert told.timings == {"queue": 5.25, "denoise": 0.5, "total": 5.75}
    life = told.explanation
    assert life is not None
    assert life.total_s == pytest.approx(5.75)
    assert life.clock_s == pytest.approx(45.0)
    assert life.attempt == 3
    assert life.parts == pytest.approx(add_up(timeline(life.stages, life.total_s)))
    assert sum(life.parts.values()) == pytest.approx(life.total_s)
    assert life.parts["lost"] == pytest.approx(3.0)
    assert life.parts["queue"] == pytest.approx(2.0)
    assert [stage.attempt for stage in life.stages] == [2, 3, 3, 3]
    assert set(life.parts) == set(PARTS)
    assert len(life.notes) == 3


def test_the_last_image_says_where_the_time_went_whichever_image_the_engine_says_it_with() -> None:
    """Image 0 comes from the first engine, and the second one says all with its own image 0, which comes last."""

    async def test() -> None:
        async def first(drawn: Drawn) -> Any:
            yield [drawn.accepted(), drawn.step(1), drawn.image(0)]
            async for replies in dies_after(0)(drawn):
                yield replies

        async def second(drawn: Drawn) -> Any:
            yield [drawn.accepted(), drawn.step(1), drawn.image(1)]
            yield [drawn.image(0, explanation=explain(0.75))]

        cluster = FakeCluster(one=first, two=second)
        cluster.fleet.stats("two", 9.0, 1, 1)
        replies = [reply async for reply, _ in cluster.replay.replies(make(seed=7, num_images=2, explain=True))]
        images = [reply for reply in replies if isinstance(reply, Image)]
        assert [image.index for image in images] == [0, 1]
        assert images[1].explanation is not None
        assert images[1].explanation.attempt == 2
        cluster.engines["two"] = first
        cluster.add(three=dies_after(0))
        again = make(request_id="again", seed=7, num_images=1, explain=True)
        (image,) = [it async for it, _ in cluster.replay.replies(again) if isinstance(it, Image)]
        assert image.index == 0  # an engine without an explanation, of another release, is none that has failed

    run_instantly(test())


def test_nothing_is_added_to_the_time_of_a_request_that_went_well() -> None:
    async def test() -> None:
        cluster = FakeCluster(one=well)
        *_, (image, _) = [told async for told in cluster.replay.replies(make(seed=7))]
        assert image == cluster.drawn[0].image(0)[0]

    run_instantly(test())
