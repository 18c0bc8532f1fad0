"""What a process knows of the engines of a cluster, on a clock that tests put forward."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.ray.fleet import Fleet, rendezvous
from launcher.ray.wire import Hints

NAMES = ("a", "b", "c", "d")


@dataclass
class Setting:
    """A fleet of `NAMES`, and its time."""

    now: float = 100.0
    fleet: Fleet = field(init=False)

    def __post_init__(self) -> None:
        self.fleet = Fleet(lambda: self.now, random.Random(0).random)
        self.fleet.replicas_are(NAMES)

    def first(self, **hints: object) -> str:
        return self.fleet.rank(NAMES, Hints(ticket="asked", **hints))[0]  # type: ignore[arg-type]


@pytest.fixture
def setting() -> Setting:
    return Setting()


def test_the_replica_with_the_least_work_ahead_comes_first(setting: Setting) -> None:
    for seconds, name in enumerate(NAMES, start=1):
        setting.fleet.stats(name, 10.0 * seconds, 3, 1)
    assert setting.fleet.rank(NAMES) == list(NAMES)
    assert setting.fleet.backlog_s == pytest.approx(10.0)


def test_work_becomes_less_as_time_passes(setting: Setting) -> None:
    for name in NAMES:
        setting.fleet.stats(name, 10.0, 1, 1)
    setting.now += 7
    assert setting.fleet.backlog_s == pytest.approx(3.0)
    setting.now += 7
    assert setting.fleet.backlog_s == 0.0


def test_what_was_sent_counts_at_once_and_ends_with_its_request(setting: Setting) -> None:
    taken = []
    for number in range(4):
        taken.append(setting.first())
        setting.fleet.sent(f"ticket {number}", taken[-1], 1.0)
    assert sorted(taken) == list(NAMES)
    for number in range(4):
        setting.fleet.ended(f"ticket {number}")
    assert setting.fleet.backlog_s == 0.0


def test_an_answer_says_when_its_replica_is_free(setting: Setting) -> None:
    setting.fleet.sent("one", "a", 1.0)
    setting.fleet.accepted("one", 30.0)
    for name in NAMES[1:]:
        setting.fleet.stats(name, 29.0, 1, 1)
    assert setting.first() != "a"
    setting.fleet.ended("one")  # cancelled: its work is not done
    assert setting.first() == "a"


def test_a_unit_of_work_takes_the_seconds_that_it_took_before(setting: Setting) -> None:
    for number in range(20):
        setting.fleet.sent(f"ticket {number}", "a", 8.0)
        setting.fleet.accepted(f"ticket {number}", 4.0)
        setting.now += 4.0
        setting.fleet.ended(f"ticket {number}")
    setting.fleet.sent("next", "b", 6.0)
    setting.fleet.stats("c", 2.9, 1, 1)
    setting.fleet.stats("d", 3.1, 1, 1)
    assert setting.fleet.rank(NAMES) == ["a", "c", "b", "d"]


def test_the_same_ticket_sent_again_moves(setting: Setting) -> None:
    setting.fleet.sent("one", "a", 1.0)
    setting.fleet.sent("one", "b", 1.0)
    assert setting.fleet.where("one") == "b"
    assert setting.fleet.rank(NAMES)[-1] == "b"


def test_a_key_goes_to_its_replica_however_much_that_has_to_do_unless_it_is_to_be_avoided(setting: Setting) -> None:
    owners = Counter(setting.first(key=f"key {number}") for number in range(400))
    assert set(owners) == set(NAMES)
    assert max(owners.values()) < 160
    owner = setting.first(key="mine")
    setting.fleet.stats(owner, 1000.0, 9, 1)
    assert setting.first(key="mine") == owner
    assert setting.fleet.rank(NAMES, Hints(ticket="asked", key="mine", avoid=(owner,)))[-1] == owner


@given(st.sets(st.text(max_size=4), min_size=2, max_size=12), st.text(max_size=8))
def test_a_key_changes_its_replica_only_when_that_is_gone(names: set[str], key: str) -> None:
    owner = rendezvous(key, names)
    for gone in names - {owner}:
        assert rendezvous(key, names - {gone}) == owner


def test_replicas_that_are_to_be_avoided_come_last(setting: Setting) -> None:
    for name in NAMES[2:]:
        setting.fleet.stats(name, 100.0, 9, 1)
    assert set(setting.fleet.rank(NAMES, Hints(ticket="asked", avoid=("a", "b")))[:2]) == {"c", "d"}


def test_who_asked_is_told_of_replicas_that_take_no_more_requests(setting: Setting) -> None:
    heard: list[set[str]] = []
    stop = setting.fleet.on_leaving(lambda names: heard.append(set(names)))
    setting.fleet.sent("one", "a", 1.0)
    setting.fleet.replicas_are(("b", "c", "new"))
    assert heard == [{"a", "d"}]
    assert (setting.fleet.takes("a"), setting.fleet.takes("new")) == (False, True)
    assert setting.fleet.where("one") == "a"
    setting.fleet.replicas_are(("b", "c", "new"))
    assert len(heard) == 1
    stop()
    stop()
    setting.fleet.replicas_are(())
    assert len(heard) == 1
    assert setting.fleet.backlog_s is None


def test_a_replica_that_comes_back_has_nothing_ahead(setting: Setting) -> None:
    setting.fleet.stats("a", 50.0, 5, 1)
    setting.fleet.replicas_are(NAMES[1:])
    setting.fleet.stats("a", 50.0, 5, 1)
    setting.fleet.replicas_are(NAMES)
    assert setting.fleet.backlog_s == 0.0


def test_forgotten_tickets_expire(setting: Setting) -> None:
    setting.fleet.sent("old", "a", 1.0)
    setting.now += 3601
    setting.fleet.sent("new", "a", 1.0)
    assert (setting.fleet.where("old"), setting.fleet.where("new")) == (None, "a")
    for number in range(70_000):
        setting.fleet.sent(f"ticket {number}", "b", 1.0)
    assert setting.fleet.where("new") is None
    assert setting.fleet.where("ticket 69999") == "b"


def test_a_replica_that_hangs_comes_last_for_a_while_or_until_it_says_something(setting: Setting) -> None:
    setting.fleet.stats("b", 9.0, 1, 1)
    for last in (lambda: setting.fleet.stats("a", 0.0, 0, 0), lambda: setattr(setting, "now", setting.now + 61.0)):
        setting.fleet.hangs("a")
        assert setting.fleet.rank(["a", "b"])[-1] == "a"
        last()
        assert setting.fleet.rank(["a", "b"])[0] == "a"
    setting.fleet.hangs("nobody")
    setting.fleet.hangs(None)


@pytest.mark.parametrize("backlog_s", [float("nan"), -1.0])
def test_a_backlog_that_is_no_number_of_seconds_is_ignored(setting: Setting, backlog_s: float) -> None:
    setting.fleet.stats("a", backlog_s, 0, 0)
    assert setting.fleet.backlog_s == 0.0


_NAME = st.sampled_from([*NAMES, "other"])
_TICKET = st.sampled_from([f"ticket {number}" for number in range(6)])
_SECONDS = st.floats(allow_nan=True, allow_infinity=True)
_EVENT = st.one_of(
    st.tuples(st.just("replicas_are"), st.sets(_NAME)),
    st.tuples(st.just("stats"), _NAME, _SECONDS, st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("sent"), _TICKET, _NAME, st.floats(0, 1e9)),
    st.tuples(st.just("accepted"), _TICKET, st.none() | _SECONDS),
    st.tuples(st.just("ended"), _TICKET),
    st.tuples(st.just("wait"), st.floats(0, 1e4)),
)


@given(st.lists(_EVENT, max_size=40), st.sets(_NAME), st.none() | st.text(max_size=3))
def test_whatever_happens_every_replica_is_ranked_once_and_no_backlog_is_negative(
    events: list[tuple[object, ...]], names: set[str], key: str | None
) -> None:
    setting = Setting()
    for name, *arguments in events:
        if name == "wait":
            setting.now += float(str(arguments[0]))
        else:
            getattr(setting.fleet, str(name))(*arguments)
        backlog_s = setting.fleet.backlog_s
        assert backlog_s is None or 0 <= backlog_s < float("inf")
    ranked = setting.fleet.rank(sorted(names), Hints(ticket="asked", key=key, avoid=("a",)))
    assert sorted(ranked) == sorted(names)
    assert "a" not in ranked or ranked[-1] == "a"


@pytest.mark.parametrize("estimated_s", [None, 0.5])
def test_a_replica_that_accepts_nothing_comes_last_until_it_does(setting: Setting, estimated_s: float | None) -> None:
    fleet = setting.fleet
    for name in NAMES[1:]:
        fleet.stats(name, 50.0, 5, 1)
    taken = []
    for number in range(20):  # to `a`, which hangs, and would seem to have done the former each time
        taken.append(setting.first())
        fleet.sent(f"ticket {number}", taken[-1], 1.0)
        if taken[-1] != "a":
            fleet.accepted(f"ticket {number}", estimated_s)
        setting.now += 1.1
    assert 1 <= taken.count("a") <= 4
    assert setting.first(avoid=NAMES[1:]) == "a"  # rather than those that have failed the request
    key = next(key for key in map(str, range(1000)) if rendezvous(key, NAMES) == "a")
    assert setting.first(key=key) != "a"
    fleet.accepted("ticket 0", estimated_s)
    assert setting.first() == setting.first(key=key) == "a"


def test_a_replica_whose_requests_have_ended_before_it_accepted_them_is_not_thought_to_hang(setting: Setting) -> None:
    fleet = setting.fleet
    fleet.sent("hung up", "a", 1.0)
    fleet.replicas_are(NAMES[1:])
    fleet.replicas_are(NAMES)  # another, of the same name
    fleet.sent("refused", "a", 1.0)
    fleet.ended("hung up")
    fleet.ended("refused")
    for name in NAMES[1:]:
        fleet.stats(name, 50.0, 5, 1)
    setting.now += 10.0
    assert setting.first() == "a"


@pytest.mark.parametrize(
    ("said_s", "others_s", "elsewhere"),
    [(9.0, 5.0, True), (9.0, 7.5, False), (1.5, 0.0, False), (2.5, 0.0, True), (9.0, None, False)],
)
def test_a_request_would_wait_less_elsewhere_if_that_is_by_more_than_it_takes(
    setting: Setting, said_s: float, others_s: float | None, elsewhere: bool
) -> None:
    setting.fleet.sent("before", "a", 8.0)
    setting.fleet.accepted("before", 1.0)
    setting.fleet.ended("before")
    setting.fleet.sent("asked", "a", 8.0)
    assert not setting.fleet.waits_less_elsewhere("asked")  # it has not been accepted
    setting.fleet.accepted("asked", said_s)
    for name in NAMES[1:]:
        setting.fleet.stats(name, 7.5 if others_s is None else others_s, 1, 1)
    if others_s is None:
        setting.fleet.replicas_are("a")
    assert setting.fleet.waits_less_elsewhere("asked") == elsewhere
    assert not setting.fleet.waits_less_elsewhere("unknown")


def test_a_replica_that_may_hang_is_no_reason_to_leave(setting: Setting) -> None:
    setting.fleet.sent("before", "a", 8.0)
    setting.fleet.accepted("before", 1.0)
    setting.fleet.ended("before")
    for name in NAMES[1:]:
        setting.fleet.hangs(name)
    setting.fleet.sent("asked", "a", 8.0)
    setting.fleet.accepted("asked", 9.0)
    assert not setting.fleet.waits_less_elsewhere("asked")
    setting.fleet.stats("b", 0.0, 0, 0)
    assert setting.fleet.waits_less_elsewhere("asked")


def test_what_a_replica_said_that_others_had_sent_stays_there_when_its_request_leaves(setting: Setting) -> None:
    setting.fleet.sent("before", "a", 8.0)
    setting.fleet.accepted("before", 1.0)
    setting.fleet.ended("before")
    setting.now += 1.0
    setting.fleet.sent("asked", "a", 8.0)
    setting.fleet.accepted("asked", 9.0)  # 8 s of them of others
    for name in NAMES[1:]:
        setting.fleet.stats(name, 5.0, 1, 1)
    assert setting.fleet.waits_less_elsewhere("asked")
    setting.fleet.ended("asked")
    assert setting.first() != "a"
    for name in NAMES[1:]:
        setting.fleet.stats(name, 50.0, 1, 1)
    assert setting.first() == "a"
    assert setting.fleet.backlog_s == pytest.approx(8.0)
