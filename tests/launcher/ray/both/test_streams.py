"""Streams: events one by one, previews, deadlines, and clients that hang up."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.launcher.http_servers import PATH
from tests.launcher.processes import PATIENCE_S, wait_until
from tests.launcher.ray.both.sent import BODY, CHAT, LONG, SAID, events, images, pixels, refused
from tests.launcher.ray.servers import WITH_KEY, Served

DEADLINE_S = 6.0  # more than two pictures are expected to take, also where much else runs
pytestmark = pytest.mark.cluster


def test_a_stream_tells_of_the_queue_of_steps_and_previews_and_ends_with_the_picture(server: Served) -> None:
    body = BODY | {"steps": 8, "stream": True, "partial_images": 2, "progress": True}
    answer = server.post(PATH, body, **{"X-Request-ID": "streamed"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers.get_list("x-request-id") == ["streamed"]
    found = events(answer.text)
    names = [name.removeprefix("image_generation.") for name, _ in found]
    assert names[0] == "accepted"
    assert names[-1] == "completed"
    assert names.count("partial_image") <= 2  # one that was not passed on before the next was there is left out
    assert {"progress"} <= {*names[1:-1]} <= {"progress", "partial_image"}
    assert all(data["type"] == name and data["request_id"] == "streamed" for name, data in found)
    steps = [data["step"] for name, data in found if name.endswith("progress")]
    assert steps == sorted(steps)
    assert steps[-1] == 8
    partial = [data for name, data in found if name.endswith("partial_image")]
    assert [data["partial_image_index"] for data in partial] == [*range(len(partial))]
    assert all(pixels(data["b64_json"]).shape[2] == 3 for data in partial)
    completed = found[-1][1]
    assert completed["seed"] == BODY["seed"]
    plain = images(server.post(PATH, BODY | {"steps": 8}))[0]
    assert np.array_equal(pixels(completed["b64_json"]), plain)
    wait_until(lambda: server.post(PATH, body).text.count("event: image_generation.partial_image") == 2, "all previews")


def test_without_being_asked_for_a_stream_has_pictures_alone(server: Served) -> None:
    found = events(server.post(PATH, BODY | {"stream": True, "n": 2}).text)
    assert [name for name, _ in found] == ["image_generation.completed"] * 2
    assert sorted(data["index"] for _, data in found) == [0, 1]


def test_previews_come_without_progress_too(server: Served) -> None:
    body = LONG | {"stream": True, "preview_every": 1}
    with server.client() as client, client.stream("POST", PATH, json=body) as answer:
        assert next(answer.iter_lines()) == "event: image_generation.partial_image"
    server.wait_for_rest()


def test_events_arrive_while_the_picture_is_drawn(server: Served) -> None:
    body = LONG | {"stream": True, "progress": True}
    with server.client() as client, client.stream("POST", PATH, json=body) as answer:
        seen = 0
        for line in answer.iter_lines():  # of a picture that takes minutes
            seen += line.startswith("event: image_generation.progress")
            if seen == 3:
                break
        assert seen == 3
    server.wait_for_rest()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"), [(PATH, LONG), (CHAT, {"messages": SAID, "steps": 200, "n": 10, "size": "256x256"})]
)
def test_hanging_up_cancels_what_runs(server: Served, path: str, body: dict[str, object], stream: bool) -> None:
    server.wait_for_rest()
    address = httpx.URL(server.url)
    sent = json.dumps(body | {"stream": stream}).encode()
    with socket.create_connection((address.host, address.port), timeout=PATIENCE_S) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {WITH_KEY['Authorization']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n".encode()
            + sent
        )
        wait_until(lambda: server.load() == (0, 1), "the beginning")
    server.wait_for_rest()


def test_a_deadline_that_passes_ends_a_request_and_one_that_does_not_changes_nothing(server: Served) -> None:
    in_time = server.post(PATH, BODY | {"timeout_s": PATIENCE_S})
    assert images(in_time)[0].shape == (96, 96, 3)
    ranks = server.marked.alive("_rank")
    assert len(ranks) == server.replicas
    for rank in ranks:
        rank.suspend()
    try:
        bodies = (BODY | {"timeout_s": DEADLINE_S, **more} for more in ({}, {"stream": True, "progress": True}))
        with ThreadPoolExecutor(2) as pool:
            late, stream = pool.map(lambda body: server.post(PATH, body), bodies)
    finally:
        for rank in ranks:
            rank.resume()
    assert (late.status_code, refused(late)["error"]["code"]) == (504, "timeout")
    streamed = events(stream.text)
    assert (streamed[0][0], streamed[-1][0]) == ("image_generation.accepted", "error")
    assert streamed[-1][1]["error"]["code"] == "timeout"
    server.wait_for_rest()
    assert server.post(PATH, BODY).status_code == 200
