"""What filters block, and what becomes of a request whose filter fails; reports of pictures, and the licence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from launcher.licence.notice import DEMO
from tests.launcher.http_servers import PATH, PROMPT
from tests.launcher.ray.both.sent import A1111, BODY, CHAT, EDITS, TXT2IMG, data_url, events, images, png, refused
from tests.launcher.ray.servers import AUDIT, FAULTS, Served

pytestmark = pytest.mark.cluster
NUDE = {"prompt": f"{PROMPT} finds:nude=0.9"}
LOW = {"moderation": "low"}
RED = LOW | {"prompt": "a white star on a red background"}
SAID_OF_PROMPT = "the prompt was blocked by the content filter python (nude)"
SAID_OF_IMAGE = "the image was blocked by the content filter python (red)"


def blocked(answer: httpx.Response) -> tuple[str, str | None]:
    """The sentence of an answer that a filter blocked, and the parameter that it is about."""
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("moderation_blocked", "image_generation_user_error")
    assert error["category"] in error["message"]
    assert "b64_json" not in answer.text
    return error["message"], error["param"]


def test_a_prompt_is_blocked_by_every_api_and_let_through_by_the_other_thresholds(server: Served) -> None:
    said = [{"role": "user", "content": NUDE["prompt"]}]
    bodies: list[tuple[str, Any]] = [
        (PATH, BODY | NUDE),
        (PATH, BODY | NUDE | {"stream": True}),
        (EDITS, BODY | NUDE | {"image": data_url(png())}),
        (CHAT, {"messages": said}),
        (TXT2IMG, A1111 | NUDE),
    ]
    for path, body in bodies:
        assert blocked(server.post(path, body))[0] == SAID_OF_PROMPT, path
    assert blocked(server.post(PATH, BODY | NUDE))[1] == "prompt"
    assert images(server.post(PATH, BODY | NUDE | LOW))


def test_a_picture_is_blocked_and_so_is_one_that_is_sent(server: Served) -> None:
    assert blocked(server.post(PATH, BODY | RED)) == (SAID_OF_IMAGE, None)
    (_, error) = events(server.post(PATH, BODY | RED | {"stream": True, "partial_images": 1}).text)[-1]
    assert (error["error"]["code"], error["error"]["message"]) == ("moderation_blocked", SAID_OF_IMAGE)
    sent = server.post(EDITS, BODY | LOW | {"image": data_url(png(colour=(250, 0, 0)))})
    assert blocked(sent)[1] == "image"
    assert images(server.post(PATH, BODY | RED | {"moderation": "auto"}))


def test_a_filter_that_dies_at_one_engine_costs_a_cluster_nothing(server: Served) -> None:
    """It is tried twice there, and then the request goes to another engine, if there is one."""
    expected = images(server.post(PATH, BODY))
    faults = server.marked.folder / FAULTS
    answer = server.post(PATH, BODY | {"prompt": f"dies {PROMPT}"})
    assert len(list(faults.iterdir())) == 2
    if server.replicas == 1:
        assert answer.status_code == 503
        error = refused(answer)["error"]
        assert error["code"] == "filter_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
    else:
        assert len(images(answer)) == 1
        metrics = server.ask("GET", "/metrics").text
        assert re.search(r'^krea2_ingress_replays_total{.*reason="filter_unavailable"} 1.0$', metrics, re.MULTILINE)
    (again,), (before,) = images(server.post(PATH, BODY)), expected
    assert np.abs(again.astype(int) - before).max() <= 1  # by either engine


def test_a_reported_picture_leads_to_the_request_that_made_it(server: Served) -> None:
    drawn = server.post(PATH, BODY | {"seed": 77, "user": "somebody"})
    (image,) = drawn.json()["data"]
    assert server.ask("GET", "/v1/settings").json()["reports"]
    report = server.post("/v1/reports", {"image": image["b64_json"], "reason": "It is mine."})
    assert report.status_code == 200, report.text
    code, stdout, stderr = server.marked.run_krea2("audit", "reports", "--audit-log", str(audit(server)), "--json")
    assert code == 0, stderr
    (report,) = map(json.loads, stdout.splitlines())
    assert report["reason"] == "It is mine."
    leads = [lead for lead in report["leads"] if lead["request_id"].startswith(drawn.headers["x-request-id"])]
    assert [(lead["event"], lead["user"], lead["seed"]) for lead in leads] == [("image", "somebody", 77)]


def audit(server: Served) -> Path:
    return server.marked.folder / AUDIT


def test_the_licence_is_told_to_anybody(server: Served) -> None:
    told = server.ask("GET", "/license", headers={"Authorization": "", "Accept": "application/json"}).json()
    assert (told["license"], told["model"]) == (DEMO.name, "krea")
