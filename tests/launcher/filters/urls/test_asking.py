"""Asking a service: answers in order, within a deadline and limits, and whatever goes wrong is said."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from launcher.filters.protocol import Unavailable
from launcher.filters.urls.address import read_address
from launcher.filters.urls.asking import MOST_BYTES, Service
from tests.launcher.filters.urls.stand_in import Reply, StandIn
from tests.launcher.processes import PATIENCE_S

SECRET, PROMPT = "sk-1234567890", "a prompt that is nobody's business"


@contextmanager
def asking(stand_in: StandIn, *, timeout_s: float = PATIENCE_S, connections: int = 8) -> Iterator[Service]:
    address = read_address(stand_in.url, "moderations", insecure=False)
    service = Service(address, key=SECRET, timeout_s=timeout_s, connections=connections, pause_s=0.0)
    try:
        yield service
    finally:
        service.close()


def questions(count: int) -> list[Callable[[], object]]:
    return [lambda number=number: {"number": number, "input": PROMPT} for number in range(count)]  # type: ignore[misc]


def test_answers_come_in_the_order_of_the_questions_by_few_connections_that_are_kept(stand_in: StandIn) -> None:
    stand_in.reply = lambda body: Reply({"answer": body["number"]})
    with asking(stand_in, connections=3) as service:
        for _ in range(3):
            assert service.ask_all(questions(20)) == [{"answer": number} for number in range(20)]
        assert service.ask_all([]) == []
    assert len(stand_in.connections) <= 3
    path, headers = stand_in.requests[0]
    assert (path, headers["Authorization"]) == ("/v1/moderations", f"Bearer {SECRET}")


def test_questions_are_asked_at_the_same_time(stand_in: StandIn) -> None:
    all_there = threading.Barrier(4, timeout=PATIENCE_S)

    def reply(body: Any) -> Reply:
        all_there.wait()
        return Reply({})

    stand_in.reply = reply
    with asking(stand_in, connections=4) as service:
        assert service.ask_all(questions(4)) == [{}] * 4


def test_a_connection_that_the_service_has_closed_meanwhile_is_replaced(stand_in: StandIn) -> None:
    stand_in.reply = lambda body: Reply({"answer": body["number"]})
    with asking(stand_in, connections=1) as service:
        service.ask_all(questions(1))
        (kept,) = service._idle
        assert kept.sock is not None
        kept.sock.shutdown(2)
        assert service.ask_all(questions(1)) == [{"answer": 0}]
    assert len(stand_in.connections) == 2


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(b"<html>hello"), "what is no JSON"),
        (Reply(b"\xff\xfe\x00"), "what is no JSON"),
        (Reply(b""), "what is no JSON"),
        (Reply(b"[" * 5000), "what is no JSON, or has too many parts"),
        (Reply(b"{}", length=MOST_BYTES + 1), f"answered more than {MOST_BYTES} bytes"),
        (Reply(b" " * (MOST_BYTES + 1)), f"answered more than {MOST_BYTES} bytes"),
        (Reply({}, 204), "answered 204"),
        (
            Reply({"error": {"code": "invalid_api_key", "message": f"{SECRET} {PROMPT}"}}, 401),
            r"401 \(invalid_api_key\): look",
        ),
        (Reply({"error": {"code": PROMPT, "type": None}}, 400), "answered 400$"),
        (Reply({"error": PROMPT}, 404), "answered 404$"),
        (Reply({}, 302, {"Location": "http://example.com/"}), "answered 302, which is not followed"),
        (Reply({}, 308, {"Location": "/elsewhere"}), "answered 308, which is not followed"),
    ],
    ids=lambda value: value.status if isinstance(value, Reply) else None,
)
def test_garbage_and_refusals_are_said_without_what_was_sent(stand_in: StandIn, reply: Reply, told: str) -> None:
    stand_in.reply = lambda body: reply
    with asking(stand_in) as service, pytest.raises(Unavailable, match=told) as refused:
        service.ask_all(questions(1))
    assert len(stand_in.asked) == 1  # it is not asked again
    assert stand_in.url.removeprefix("http://") in str(refused.value)
    assert SECRET not in str(refused.value)
    assert PROMPT not in str(refused.value)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
def test_what_may_pass_is_asked_again_and_at_last_said(stand_in: StandIn, status: int) -> None:
    replies = [
        Reply({}, status),
        Reply({}, status, {"Retry-After": "0"}),
        Reply({"fine": True}),
        *[Reply({}, status)] * 3,
    ]
    stand_in.reply = lambda body: replies[len(stand_in.asked) - 1]
    with asking(stand_in) as service:
        assert service.ask_all(questions(1)) == [{"fine": True}]
        with pytest.raises(Unavailable, match=f"answered {status}$"):
            service.ask_all(questions(1))
    assert len(stand_in.asked) == 6


def test_a_service_that_wants_to_be_asked_after_the_deadline_is_not_waited_for(stand_in: StandIn) -> None:
    stand_in.reply = lambda body: Reply({}, 429, {"Retry-After": "3600"})
    with asking(stand_in, timeout_s=59.0) as service, pytest.raises(Unavailable, match="answered 429"):
        service.ask_all(questions(1))
    assert len(stand_in.asked) == 1


@pytest.mark.parametrize(
    "late", [Reply({}, hangs=True), Reply(b"[", length=100_000, drips=True), Reply(b"[", length=9)],
    ids=["no answer", "a byte at a time", "half an answer"],
)  # fmt: skip
def test_one_late_answer_fails_all_in_time_and_the_next_are_answered(stand_in: StandIn, late: Reply) -> None:
    stand_in.reply = lambda body: late if body["number"] == 1 else Reply({})
    with asking(stand_in, timeout_s=0.15, connections=2) as service:
        for _ in range(2):  # as many as there are threads
            with pytest.raises(Unavailable, match=r"did not answer within 0.15 s"):
                service.ask_all(questions(2))
    with asking(stand_in, connections=2) as service:
        assert service.ask_all(questions(1)) == [{}]


def test_threads_that_wait_for_late_answers_are_free_again(stand_in: StandIn) -> None:
    stand_in.reply = lambda body: Reply({}, hangs=True)
    with asking(stand_in, timeout_s=0.2, connections=1) as service:
        with pytest.raises(Unavailable):
            service.ask_all(questions(1))
        stand_in.reply = lambda body: Reply({"late": False})
        service.timeout_s = PATIENCE_S
        assert service.ask_all(questions(1)) == [{"late": False}]


def test_a_service_that_is_not_there_is_said() -> None:
    with socket.socket() as taken:  # a port on which nobody listens, and nobody else can
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        address = read_address(f"http://{host}", "moderations", insecure=False)
        with pytest.raises(Unavailable, match=f"^{host} cannot be asked: Connection refused$"):
            Service(address, pause_s=0.0).ask_all(questions(1))


def test_a_service_that_speaks_something_else_is_said(stand_in: StandIn) -> None:
    address = read_address(stand_in.url.replace("http:", "https:"), "moderations", insecure=False)
    with pytest.raises(Unavailable, match="cannot be asked"):
        Service(address, pause_s=0.0).ask_all(questions(1))
    assert stand_in.asked == []
