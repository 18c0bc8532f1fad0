"""One status of what all engines of a cluster say."""

from __future__ import annotations

import pytest

from launcher.ray.web.summary import add_status
from tests.launcher.messages.status_stand_in import status


def test_requests_are_added_up_and_one_engine_that_is_ready_is_enough() -> None:
    starting = status(ready=False, not_ready="it warms up", waiting=2, running=0)
    found = [starting, status(waiting=3, running=1, uptime_s=9.0)]
    both = add_status(found)
    assert (both.ready, both.not_ready, both.waiting, both.running, both.uptime_s) == (True, None, 5, 1, 9.0)


@pytest.mark.parametrize(
    ("backlogs", "least"), [((4.0, 2.5), 2.5), ((None, 4.0), 4.0), ((0.0, 4.0), 0.0), ((None, None), None)]
)
def test_the_backlog_is_that_of_the_engine_with_the_least_that_is_ready(
    backlogs: tuple[float | None, ...], least: float | None
) -> None:
    found = [status(backlog_s=backlog_s) for backlog_s in backlogs]
    assert add_status([status(ready=False, backlog_s=0.0), *found]).backlog_s == least


def test_a_cluster_is_given_up_when_all_of_its_engines_are() -> None:
    assert not add_status([status(given_up=True), status()]).given_up
    assert add_status([status(given_up=True), status(given_up=True)]).given_up
