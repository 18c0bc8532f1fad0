"""Refuses a request at once that would not be done within its `timeout_s`, by the scheduler's estimate. Pure."""

from __future__ import annotations

from engine.errors import QueueFullError
from engine.scheduling.scheduler import Scheduler
from launcher.requests.plan import Plan

_MARGIN = 1.25  # an estimate may be too long by a quarter, and then the request is let in
_TRIED = 10  # see `Deadlines`


class Deadlines:
    """Compares estimates of queued requests with their `timeout_s`, once speeds are known.

    Only work corrects speeds. So that a server that was slow for a while does not refuse all for good, every tenth
    request in a row that it would refuse with nothing else to do is tried nevertheless.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._refused_idle = 0  # in a row

    def check(
        self,
        request: int,
        plan: Plan,
        timeout_s: float | None,
        *,
        idle: bool,
        now: float,
        waited_s: float = 0.0,
        filter_s: float = 0.0,
    ) -> None:
        """Raise `QueueFullError` if a request, whose jobs are queued, would not be done in time.

        It says when to come back, or names `timeout_s` as at fault if the request's own work takes longer. idle: there
        is no other request. waited_s: what has passed of its time. filter_s: what filters take over a finished image.
        """
        estimate = self._scheduler.estimate(request, now)
        expected_s = None if estimate is None or estimate.seconds is None else estimate.seconds + filter_s
        if timeout_s is None or expected_s is None or waited_s + expected_s <= _MARGIN * timeout_s:
            self._refused_idle = 0
            return
        if idle:
            self._refused_idle = (self._refused_idle + 1) % _TRIED
            if self._refused_idle == 0:
                return
        wait_s = max(1.0, expected_s - timeout_s)
        alone_s = self._alone_s(plan) + filter_s
        if alone_s > _MARGIN * timeout_s:
            takes = f"the request takes about {_shown(alone_s)} s by itself, and its timeout_s is {timeout_s:g}"
            remedy = "give it more time, fewer steps or a smaller size"
            raise QueueFullError(f"{takes}: {remedy}", parameter="timeout_s", retry_after_s=wait_s)
        takes = f"the request would be done in about {_shown(expected_s)} s, and its timeout_s is {timeout_s:g}"
        raise QueueFullError(f"{takes}: try again in about {wait_s:.0f} s, or give it more time", retry_after_s=wait_s)

    def _alone_s(self, plan: Plan) -> float:
        """Seconds that the jobs of a plan take where there are no others."""
        real = self._scheduler
        scheduler = Scheduler(real.token_budget, costs=real.costs, decodes_in_turn=real.decodes_in_turn)
        for job in plan.jobs:
            scheduler.add(job, segments=plan.segments, request=0, now=0.0)
        estimate = scheduler.estimate(0, 0.0)
        assert estimate is not None
        return estimate.seconds or 0.0


def _shown(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
