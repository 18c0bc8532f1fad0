"""The autoscaler under a load that rises from what one replica bears to what fifty do, and falls again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from random import Random

from bench.cluster.simulation.arrivals import arrivals, percentile
from bench.cluster.simulation.cluster import Cluster, Plan
from bench.cluster.simulation.replicas import Replica
from bench.cluster.simulation.routers import SecondsOfWork
from launcher.ray.scaling import Load, Rule, remember, wanted_replicas

MOST = 50
_START_S = 60.0  # until a replica runs: its weights are on a local disk
_PUSH_S = 2.0  # between what replicas tell the controller, as `launcher.ray.app` has it
_RECORD_S = 0.5  # between what they note for that, of the last
_LOOK_BACK_S = 10.0
_DECIDE_S = 1.0
_LOAD = 0.7  # of the replicas that the peak of the ramp is made for


@dataclass
class Course:
    """What the autoscaler did. targets: (seconds, replicas), where they changed."""

    targets: list[tuple[float, int]] = field(default_factory=list)
    replica_s: float = 0.0  # that replicas were there for
    waits: list[float] = field(default_factory=list)
    refused: int = 0
    needed: list[float] = field(default_factory=list)  # replicas' worth of work that came in, at each decision
    had: list[int] = field(default_factory=list)

    @property
    def most(self) -> int:
        return max((target for _, target in self.targets), default=1)

    @property
    def turns(self) -> int:
        """How many times it changed its mind between up and down."""
        ways = [after > before for (_, before), (_, after) in pairwise(self.targets)]
        return sum(way != next_way for way, next_way in pairwise(ways))

    def wait_s(self, share: float) -> float:
        """A percentile of the requests' waits."""
        return percentile(self.waits, share)


class _Told:
    """What the controller has heard of a replica."""

    def __init__(self) -> None:
        self.recorded: deque[float] = deque(maxlen=int(_LOOK_BACK_S / _RECORD_S))
        self.backlog_s, self.busy, self.waiting = 0.0, 0.0, 0


def follow(seed: int, busy_s: float, *, seconds: float, tp: int = 4, ingresses: int = 4, rule: Rule) -> Course:
    """Run a cluster of at most `MOST` replicas, of which the autoscaler has as many as it wants, through a ramp: half
    the time up to the load of `MOST` replicas that are busy for `_LOAD` of their time, then down again."""
    most = MOST * _LOAD / busy_s
    course = Course()

    def rate(at: float) -> float:
        return max(0.02 * most, most * (1 - abs(at - 0.4 * seconds) / (0.4 * seconds)))

    cluster = _Scaled(Plan(hosts=MOST, gpus=tp, tp=tp, ingresses=ingresses), seed, rule, course, seconds)
    stream = arrivals(Random(seed), rate, most, seconds=seconds, ingresses=ingresses)
    outcome = cluster.run(stream, lambda cluster, random: SecondsOfWork(lambda: cluster.now, random), seconds=seconds)
    course.waits, course.refused = [wait for _, wait in outcome.waits], outcome.refused + outcome.lost
    course.needed = [busy_s * rate(at * _DECIDE_S) for at in range(len(course.had))]
    return course


class _Scaled(Cluster):
    """A cluster with the autoscaler, which begins with one replica."""

    def __init__(self, plan: Plan, seed: int, rule: Rule, course: Course, seconds: float) -> None:
        super().__init__(plan, seed)
        self._rule, self._course, self._seconds = rule, course, seconds
        self._told: dict[str, _Told] = {}  # of those that run
        self._target, self._loads = 1, list[Load]()
        self._starting: set[str] = set()
        self._stopping: set[str] = set()
        course.targets.append((0.0, 1))
        self.after(0.0, self._begin)

    def _begin(self) -> None:
        self._runs(next(iter(self.replicas)))
        self._decide()

    def _runs(self, name: str) -> None:
        self._starting.discard(name)
        if len(self._told) < self._target:
            self._told[name] = _Told()
            self._say_which()
            self._record(name)
            self.after(_PUSH_S * self.random.random(), lambda: self._push(name))

    def _say_which(self) -> None:
        for heard, router in zip(self._heard, self._routers, strict=True):
            heard.clear()
            heard.update(self._told)
            router.replicas_are(list(self._told))

    def _record(self, name: str) -> None:
        if name in self._told and self.now < self._seconds:
            self._told[name].recorded.append(self.replicas[name].backlog_s)
            self.after(_RECORD_S, lambda: self._record(name))

    def _push(self, name: str) -> None:
        told = self._told.get(name)
        if told is not None and self.now < self._seconds:
            told.backlog_s, told.waiting = told.recorded[-1], self.replicas[name].waiting
            told.busy = sum(value > 0 for value in told.recorded) / len(told.recorded)
            self.after(_PUSH_S, lambda: self._push(name))

    def _decide(self) -> None:
        told, running = self._told.values(), len(self._told)
        load = Load(
            self.now,
            self._target,
            running,
            sum(one.backlog_s for one in told),
            sum(one.busy for one in told),
            sum(one.waiting for one in told),
        )
        self._loads = remember(self._loads, load, self._rule)
        target = wanted_replicas(self._loads, self._rule)
        if target != self._target:
            self._course.targets.append((self.now, target))
            self._target = target
            self._follow_target()
        self._course.had.append(running)
        self._course.replica_s += running * _DECIDE_S
        if self.now < self._seconds:
            self.after(_DECIDE_S, self._decide)

    def _follow_target(self) -> None:
        for name in self._idle_first()[: max(0, len(self._told) - self._target)]:
            del self._told[name]  # what it has begun ends there
            self._say_which()
        free = [name for name in self.replicas if name not in self._told and name not in self._starting]
        free.sort(key=lambda name: self.replicas[name].ongoing)
        for name in free[: max(0, self._target - len(self._told) - len(self._starting))]:
            self._starting.add(name)
            self.after(_START_S, partial(self._runs, name))

    def _idle_first(self) -> Sequence[str]:
        replicas: list[Replica] = sorted((self.replicas[name] for name in self._told), key=lambda one: one.ongoing)
        return [replica.name for replica in replicas]
