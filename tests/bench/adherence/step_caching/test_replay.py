"""Decisions are carried to a longer schedule, where the rule's own limits hold again."""

from __future__ import annotations

from dataclasses import replace

from bench.adherence.step_caching.replay import Schedule, replay
from engine.step_cache.settings import StepCache
from engine.step_cache.step_plan import StepKind, plan_of

BLOCKS = StepCache("blocks", warmup_steps=8, max_consecutive=2, order=1, max_cached=200)
VELOCITY = StepCache("velocity", warmup_steps=8, max_consecutive=2, order=1, max_cached=200)
DEMO, REAL = Schedule(40, True, 6), Schedule(52, True, 28)


def of(schedule: Schedule, cache: StepCache, window: tuple[float, float] = (0.0, 1.0)) -> Schedule:
    return replace(schedule, cache=cache, window=window)


def always_saved(schedule: Schedule) -> list[tuple[int, ...]]:
    """Blocks by step, of a model whose first blocks always say that a step may be saved."""
    plans = plan_of(schedule)
    assert plans is not None
    assert schedule.cache is not None
    halves = []
    for plan in plans:
        ran: list[int] = []
        for kind in plan:
            row = 0
            while row < len(ran) and ran[-1 - row] == 1:
                row += 1
            save = kind is StepKind.MAY_BE_CACHED and row < schedule.cache.max_consecutive
            ran.append(0 if kind is StepKind.LEFT_OUT else 1 if save else schedule.blocks)
        halves.append(ran)
    return list(zip(*halves, strict=True))


def test_a_schedule_is_its_own_replay() -> None:
    for window in ((0.0, 1.0), (0.0, 0.6), (0.1, 1.0)):
        demo = of(DEMO, BLOCKS, window)
        ran = always_saved(demo)
        assert replay(ran, demo, demo) == sum(map(sum, ran)) < DEMO.block_evaluations


def test_what_is_always_saved_reaches_the_ceiling_of_the_rule() -> None:
    demo = of(DEMO, BLOCKS)
    assert DEMO.block_evaluations == 480
    ran = always_saved(demo)
    # a warm-up of 8, at most 2 in a row, the last one computed: 8 + 10 + 1 of 40 steps, and 8 + 14 + 1 of 52
    assert sum(map(sum, ran)) == 2 * (19 * 6 + 21)
    assert replay(ran, demo, of(REAL, BLOCKS)) == 2 * (23 * 28 + 29)


def test_a_step_decides_as_the_one_at_its_place_did_and_not_as_one_without_a_choice() -> None:
    demo, real = of(DEMO, BLOCKS), of(REAL, BLOCKS)
    ran = [(6, 6)] * 40
    assert replay(ran, demo, real) == REAL.block_evaluations
    # the second half of the prompt's steps is saved, by twos: the third, which must not be, decides nothing
    ran = [(1 if 20 <= step < 39 and step % 3 != 1 else 6, 6) for step in range(40)]
    by_twos = [1 if 26 <= step < 51 and (step - 26) % 3 != 2 else 28 for step in range(52)]
    assert replay(ran, demo, real) == sum(by_twos) + 52 * 28


def test_what_is_known_beforehand_needs_no_decision() -> None:
    demo, real = of(DEMO, VELOCITY, (0.0, 0.5)), of(REAL, VELOCITY, (0.0, 0.5))
    kinds = plan_of(real)
    assert kinds is not None
    computed = sum(plan.count(StepKind.COMPUTED) for plan in kinds)
    assert replay([(6, 6)] * 40, demo, real) == 28 * computed
    assert kinds[1].count(StepKind.LEFT_OUT) == 26
    unsaved = Schedule(8, False, 6)
    assert replay([], unsaved, replace(unsaved, blocks=28)) == 8 * 28


def test_no_more_steps_are_saved_altogether_than_the_rule_allows() -> None:
    few = replace(BLOCKS, max_cached=5)
    demo = of(DEMO, few)
    ran = [(1, 1) if step in (8, 9, 11, 12, 14) else (6, 6) for step in range(40)]
    assert replay(ran, demo, of(REAL, few)) == 2 * (47 * 28 + 5)
