"""How many replicas a cluster should have, under loads that are computed here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.ray.scaling import Load, QueuedSeconds, Rule, remember, wanted_replicas

RULE = Rule(minimum=1, maximum=50)
REQUEST_S = 0.4


def run(
    work: Callable[[float], float], *, seconds: float, replicas: int = 1, rule: Rule = RULE, start_s: float = 30.0
) -> Iterator[tuple[float, int]]:
    """Give (time, target) for `work` seconds that come in each second, on replicas that take `start_s` to start."""
    step_s, queued_s, target = 1.0, 0.0, replicas
    ready = [-1.0] * replicas  # when each replica runs
    loads: Sequence[Load] = ()
    for number in range(int(seconds / step_s)):
        at = number * step_s
        running = sum(time <= at for time in ready)
        load_s = queued_s + work(at) * step_s
        busy = min(running, load_s / step_s)
        queued_s = load_s - busy * step_s
        backlog_s = queued_s + busy * REQUEST_S
        loads = remember(loads, Load(at, target, running, backlog_s, busy, int(queued_s / REQUEST_S)), rule)
        target = wanted_replicas(loads, rule)
        ready = sorted(ready)[:target] + [at + start_s] * (target - len(ready))
        yield at, target


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(1, 50), st.floats(1.0, 10.0), st.floats(0.0, 60.0))
def test_a_constant_load_gets_what_it_needs_and_then_nothing_changes(
    work: int, replicas: int, backlog_target_s: float, start_s: float
) -> None:
    rule = Rule(1, 50, backlog_target_s, down_delay_s=40.0)
    targets = [target for _, target in run(lambda _: work, seconds=800, replicas=replicas, rule=rule, start_s=start_s)]
    settled = targets[600:]
    assert len(set(settled)) == 1
    assert settled[0] >= work
    changes = [(before, after) for before, after in pairwise(targets) if before != after]
    ups = [after > before for before, after in changes]
    assert ups == sorted(ups, reverse=True), changes  # up to what is enough, and down once: never to and fro


def test_a_burst_is_decided_upon_when_it_is_first_seen() -> None:
    idle = Load(0.0, 1, 1, 0.0, 0.0)
    loads = remember([idle], Load(1.0, 1, 1, 60.0, 1.0, 150), RULE)
    assert wanted_replicas(loads, RULE) >= 4
    assert wanted_replicas([Load(1.0, 1, 1, 60.0, 1.0, 150)], RULE) >= 4  # the first that is heard at all
    assert wanted_replicas([Load(1.0, 1, 1, 4.9, 1.0, 10)], RULE) == 1


def test_the_queue_that_grows_while_replicas_start_does_not_call_for_many_times_what_the_load_needs() -> None:
    targets = [target for _, target in run(lambda _: 3.0, seconds=300, start_s=60.0)]
    assert max(targets) <= 12  # 3 are needed, and the minute's queue worked off; by the queue alone they would be 24
    assert targets[20] >= 4


def test_a_ramp_is_followed_up_and_down_again() -> None:
    def work(at: float) -> float:
        return max(0.5, 40.0 - abs(at - 1800) / 45)

    targets = dict(run(work, seconds=5400, start_s=60.0))
    assert targets[1800] >= 40
    assert targets[5399] <= 2
    ups = sum(after > before for before, after in pairwise(targets.values()))
    assert ups < 60


@given(
    st.lists(
        st.builds(
            Load,
            at=st.floats(0, 1e5),
            target=st.integers(0, 100),
            running=st.integers(0, 100),
            backlog_s=st.floats(0, 1e6),
            busy=st.floats(0, 100),
            waiting=st.integers(0, 1000),
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(0, 5),
    st.integers(5, 60),
)
def test_it_is_always_within_its_bounds_and_never_less_while_more_wait_than_are_idle(
    heard: list[Load], minimum: int, maximum: int
) -> None:
    rule = Rule(minimum, maximum)
    loads: Sequence[Load] = ()
    for load in heard:
        loads = remember(loads, load, rule)
        wanted = wanted_replicas(loads, rule)
        assert minimum <= wanted <= maximum
        if load.waiting > load.running - load.busy:
            assert wanted >= min(load.target, maximum)


def test_what_is_remembered_is_bounded() -> None:
    loads: Sequence[Load] = ()
    for number in range(20_000):
        loads = remember(loads, Load(number / 10, 1, 1, 0.0, 0.0), RULE)
    assert 300 <= len(loads) <= 303
    assert loads[0].at <= loads[-1].at - 300


def test_serve_s_context_is_read() -> None:
    def series(*values: float) -> list[SimpleNamespace]:
        return [SimpleNamespace(timestamp=float(at), value=value) for at, value in enumerate(values)]

    context = SimpleNamespace(
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        raw_metrics={
            "backlog_s": {"a": series(0.0, 3.0), "b": series(9.0, 100.0), "new": []},
            "waiting": {"a": series(0.0, 1.0), "b": series(20.0, 40.0)},
        },
        current_time=1000.0,
        target_num_replicas=3,
        current_num_replicas=2,
        policy_state={},
    )
    wanted, state = QueuedSeconds(backlog_target_s=5.0)(context)
    assert wanted == 4
    assert state["loads"] == [Load(1000.0, 3, 2, 103.0, 1.5, 41)]
    context.policy_state, context.raw_metrics, context.current_time = state, None, 1001.0
    assert QueuedSeconds()(context)[0] == 3


@pytest.mark.parametrize(
    "options", [{"backlog_target_s": 0.0}, {"backlog_target_s": math.nan}, {"down_delay_s": 0.0}, {"down_delay_s": 1e9}]
)
def test_seconds_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be between"):
        QueuedSeconds(**options)
