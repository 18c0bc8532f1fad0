"""Reports of pictures are written down with what knows the picture again, within limits, and only where they are
taken."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.errors import ServerError
from launcher.audit import reports as audit_reports
from launcher.audit.entries import Entries, Entry
from launcher.audit.fingerprint import Fingerprint
from launcher.audit.fingerprint_process import look
from launcher.audit.hashes import sha256
from launcher.http.apis.reports import PATH
from tests.launcher.audit.pictures import drawn, file_of
from tests.launcher.http.apis.fake_link import fake_server

PICTURE = file_of(drawn(1), "jpeg")
URL = f"data:image/jpeg;base64,{base64.b64encode(PICTURE).decode()}"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pictures looked at in this process."""
    monkeypatch.setattr(
        audit_reports, "fingerprint", lambda data: Fingerprint(file_sha256=sha256(data), seen=look(data))
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "log"


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with fake_server(audit_log=str(folder), audit_content=True, max_body_bytes=9000) as (client, _):
        yield client


def written(folder: Path, report: str) -> Entry:
    (entry,) = (entry for entry in Entries(str(folder)) if entry.report == report)
    return entry


@pytest.mark.parametrize("as_form", [True, False])
@pytest.mark.usefixtures("looked_at")
def test_a_report_is_written_with_its_picture_and_what_knows_that_again(
    client: TestClient, folder: Path, *, as_form: bool
) -> None:
    said = {"reason": "It shows me.", "contact": "a@b.example", "request_id": "abc"}
    if as_form:
        answer = client.post(PATH, data=said, files={"image": ("a.jpg", PICTURE, "image/jpeg")})
    else:
        answer = client.post(PATH, json=said | {"image": URL})
    assert answer.status_code == 200, answer.text
    entry = written(folder, answer.json()["id"])
    assert (entry.event, entry.reason, entry.contact, entry.request_id) == ("report", *said.values())
    seen = look(PICTURE)
    assert (entry.file_sha256, entry.dhash, entry.width, entry.format) == (sha256(PICTURE), seen.dhash, 256, "jpeg")
    assert entry.picture is not None
    assert (folder / entry.picture).read_bytes() == PICTURE
    assert os.stat(folder / entry.picture).st_mode & 0o077 == 0


def test_a_request_without_a_picture_can_be_reported(client: TestClient, folder: Path) -> None:
    answer = client.post(PATH, json={"reason": " ugly ", "request_id": "abc", "contact": "", "image": None})
    entry = written(folder, answer.json()["id"])
    assert (entry.reason, entry.request_id, entry.contact, entry.dhash) == ("ugly", "abc", None, None)
    assert client.get("/v1/settings").json()["reports"] is True


@pytest.mark.parametrize(
    ("sent", "parameter", "message"),
    [
        ({"reason": "x"}, "image", "a report needs an image, or the request_id of its answer"),
        ({"request_id": "a"}, "reason", "reason is required"),
        ({"request_id": "a", "reason": " "}, "reason", "reason must say what is wrong with the picture"),
        ({"request_id": "a", "reason": "x" * 4001}, "reason", "reason must be at most 4000 characters, got 4001"),
        ({"request_id": "a" * 129, "reason": "x"}, "request_id", "request_id must be at most 128 characters, got 129"),
        ({"request_id": "a", "reason": "x", "contact": "c" * 321}, "contact", "contact must be at most 320 characters"),
        ({"image": "http://a.example/b.png", "reason": "x"}, "image", "image is an address"),
        ({"image": "####", "reason": "x"}, "image", "image is no base64"),
        ({"image": URL[:500], "reason": "x"}, "image", "image "),
        ({"image": URL, "mask": URL, "reason": "x"}, "mask", "unknown parameter 'mask'"),
        ({"image": URL, "reason": 7}, "reason", "reason must be a valid string, got 7"),
    ],
)
@pytest.mark.usefixtures("looked_at")
def test_what_is_no_report_is_an_error_that_says_why(
    client: TestClient, sent: dict[str, Any], parameter: str, message: str
) -> None:
    answer = client.post(PATH, json=sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, parameter)
    assert error["message"].startswith(message)


def test_without_an_audit_log_none_are_taken() -> None:
    with fake_server() as (client, _):
        answer = client.post(PATH, json={"reason": "x", "request_id": "a"})
        assert answer.status_code == 404
        assert "--audit-log" in answer.json()["error"]["message"]
        assert client.get("/v1/settings").json()["reports"] is False


@pytest.mark.usefixtures("looked_at")
def test_pictures_are_kept_only_where_content_is_and_while_there_is_room(
    tmp_path: Path, client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = {"image": URL, "reason": "x"}
    with fake_server(audit_log=str(tmp_path)) as (frugal, _):
        entry = written(tmp_path, frugal.post(PATH, json=report).json()["id"])
        assert (entry.file_sha256, entry.picture) == (sha256(PICTURE), None)
        assert not (tmp_path / "reported").exists()
    monkeypatch.setattr(audit_reports, "MOST_KEPT_BYTES", 1)
    entry = written(folder, client.post(PATH, json=report).json()["id"])
    assert (entry.file_sha256, entry.picture) == (sha256(PICTURE), None)


def test_reports_without_end_leave_room_on_the_disk(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = {"request_id": "a", "reason": "x"}
    assert client.post(PATH, json=report).status_code == 200
    there = sum(file.stat().st_size for file in folder.glob("reports*.jsonl"))
    monkeypatch.setattr(audit_reports, "MOST_LINES_BYTES", there + 10)
    assert client.post(PATH, json=report).status_code == 429
    assert sum(file.stat().st_size for file in folder.glob("reports*.jsonl")) == there


def test_a_report_that_cannot_be_written_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    taking = audit_reports.Reports(str(tmp_path / "file"), keep_pictures=False).take(
        request_id="a", picture=None, reason="x", contact=None, key=None
    )
    with pytest.raises(ServerError) as caught:
        asyncio.run(taking)
    assert caught.value.retry_after_s == 5
