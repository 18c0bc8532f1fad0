"""How many engines a cluster should have: by the seconds of work that are queued, not by counting requests.

`wanted_replicas` decides, of numbers alone. `QueuedSeconds` is what Ray Serve calls: a policy of its autoscaler.

More are wanted when more than `backlog_target_s` of work are queued for each replica, those that are starting included.
How many: what comes in and what is queued beyond the target tell, not the queue alone, which goes on growing while
replicas start, and would call for more of them than the load needs. Fewer are wanted when for a while fewer would have
done, with room left, so that a constant load never lets the number go to and fro.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_INFLOW_S = 20.0  # over which the work that comes in is measured
_DRAIN = 4.0  # times the target: in that time what is queued beyond it should be worked off
_FULL = 0.85  # share of the time that replicas should be busy when some are added, and
_ROOM = 0.7  # at most, when some are taken away: the gap between the two keeps the number where it is
_CALM = 0.5  # of the target, that may be queued for each replica when some are taken away
_PARTS = 4  # of the time looked back upon before some are taken away: the busiest of them counts
_LEAST_LEFT = 0.5  # of the replicas, however few would do
_SAMPLE_S = 1.0  # between two samples that are kept
_STATE = "loads"
# The defaults of a rule, and the least and the most that it may have: seconds of work, and of time.
BACKLOG_TARGET_S, BACKLOG_TARGETS_S = 5.0, (0.1, 86_400.0)
DOWN_DELAY_S, DOWN_DELAYS_S = 300.0, (0.1, 3600.0)


class Load(NamedTuple):
    """A cluster at one time. target: the replicas that it is to have; running: those that it has. backlog_s: of all
    together. busy: replicas at work, as a number that need not be whole. waiting: requests that have not begun."""

    at: float
    target: int
    running: int
    backlog_s: float
    busy: float
    waiting: int = 0


class Rule(NamedTuple):
    """What is wished for. down_delay_s: for how long fewer must have been enough before some are taken away."""

    minimum: int
    maximum: int
    backlog_target_s: float = BACKLOG_TARGET_S
    down_delay_s: float = DOWN_DELAY_S


def wanted_replicas(loads: Sequence[Load], rule: Rule) -> int:
    """Say how many replicas there should be. loads: the newest last, as `remember` keeps them; at least one."""
    now = loads[-1]
    wanted = now.target
    beyond_s = now.backlog_s - now.target * rule.backlog_target_s
    if beyond_s > 0:
        needed = _inflow(loads) / _FULL + beyond_s / (_DRAIN * rule.backlog_target_s)
        wanted = max(wanted, math.ceil(needed))
    elif _calm(loads, rule):
        enough = math.ceil(_busiest(loads, now.at - rule.down_delay_s) / _ROOM - 1e-9)
        wanted = min(wanted, max(enough, math.ceil(_LEAST_LEFT * now.target)))
    return max(rule.minimum, min(rule.maximum, wanted))


def remember(loads: Sequence[Load], load: Load, rule: Rule) -> list[Load]:
    """Add a load to those of before, and forget what is not looked back upon any more: one a second is kept, the newest
    always. One of before the newest, of a clock that was put back, begins anew."""
    if loads and load.at < loads[-1].at:
        return [load]
    kept = [*loads[:-1], load] if len(loads) > 1 and loads[-1].at - loads[-2].at < _SAMPLE_S else [*loads, load]
    since = load.at - max(rule.down_delay_s, _INFLOW_S)
    first = next(place for place, old in enumerate(kept) if old.at >= since)
    return kept[max(0, first - 1) :]  # one that is older, so that the whole time is covered


def _inflow(loads: Sequence[Load]) -> float:
    """Seconds of work that come in each second: what replicas do, and by how much the queue grows."""
    now = loads[-1]
    recent = [load for load in loads if load.at >= now.at - _INFLOW_S]
    busy = max(now.busy, sum(load.busy for load in recent) / len(recent))
    growth = (now.backlog_s - recent[0].backlog_s) / _INFLOW_S
    return busy + max(0.0, growth if len(recent) > 1 else now.backlog_s / _INFLOW_S)


def _calm(loads: Sequence[Load], rule: Rule) -> bool:
    """Whether the number has stood for long enough, with all replicas there and nothing queued to speak of."""
    now = loads[-1]
    if loads[0].at > now.at - rule.down_delay_s or now.running < now.target:
        return False
    looked_at = [load for load in loads if load.at >= now.at - rule.down_delay_s]
    return now.waiting <= now.running - now.busy and all(
        load.target == now.target and load.backlog_s <= _CALM * rule.backlog_target_s * load.target
        for load in looked_at
    )


def _busiest(loads: Sequence[Load], since: float) -> float:
    """Replicas at work, on average over that part of the time since then in which most were."""
    length = (loads[-1].at - since) / _PARTS
    parts: dict[int, list[float]] = {}
    for load in loads:
        if load.at >= since:
            parts.setdefault(min(_PARTS - 1, int((load.at - since) / length) if length else 0), []).append(load.busy)
    return max(sum(part) / len(part) for part in parts.values())


class QueuedSeconds:
    """The policy of Serve's autoscaler. Its own delays (`upscale_delay_s`, `downscale_delay_s`) should be 0.

    Raises `ValueError` for seconds that are not within `BACKLOG_TARGETS_S` or `DOWN_DELAYS_S`.
    """

    def __init__(self, backlog_target_s: float = BACKLOG_TARGET_S, down_delay_s: float = DOWN_DELAY_S) -> None:
        _check("backlog_target_s", backlog_target_s, *BACKLOG_TARGETS_S)
        _check("down_delay_s", down_delay_s, *DOWN_DELAYS_S)
        self._backlog_target_s, self._down_delay_s = backlog_target_s, down_delay_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Say how many replicas Serve should have, and what to remember until it asks again."""
        rule = Rule(
            context.capacity_adjusted_min_replicas,
            context.capacity_adjusted_max_replicas,
            self._backlog_target_s,
            self._down_delay_s,
        )
        load = measured(
            context.raw_metrics or {},
            at=context.current_time,
            target=context.target_num_replicas,
            running=context.current_num_replicas,
        )
        loads = remember(context.policy_state.get(_STATE, ()), load, rule)
        return wanted_replicas(loads, rule), {_STATE: loads}


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} must be between {least:g} and {most:g}, got {value}")


def measured(metrics: Mapping[str, Mapping[Any, Sequence[Any]]], *, at: float, target: int, running: int) -> Load:
    """Add up what replicas have recorded of themselves (`record_autoscaling_stats`): series of values by replica, by
    name. The last of each counts, and of those of work the share that is not 0 says for how much of the time it was
    busy."""
    backlogs = [[point.value for point in series] for series in metrics.get("backlog_s", {}).values() if series]
    waiting = [series[-1].value for series in metrics.get("waiting", {}).values() if series]
    busy = sum(sum(value > 0 for value in values) / len(values) for values in backlogs)
    return Load(at, target, running, sum(values[-1] for values in backlogs), busy, int(sum(waiting)))
