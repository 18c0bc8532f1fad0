"""docs/operations.md names every error code, metric and log event that there is, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from engine import errors
from engine.config.bounded_json import FILE_LIMITS, LARGEST_JSON
from launcher import lines
from launcher.frontend import dispatcher, intake, live_requests
from launcher.frontend.admission import deadlines, followers, repeats
from launcher.frontend.delivery import clients
from launcher.frontend.delivery.metrics import Metrics
from launcher.http import bodies, guard, protocol
from launcher.http.answers.errors import STATUS_OF_CODE, error_body
from launcher.http.page_files import PAGE
from launcher.http.workers import held_files, worker
from launcher.http.workers.metrics import HttpMetrics
from launcher.messages import api_keys, encoding
from launcher.messages.connections import entrance
from launcher.messages.limits import Limits
from launcher.ranks import gpu_health, outstanding
from launcher.requests.lora_files import MAX_FILE_BYTES

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "operations.md").read_text()


def first_cells(title: str) -> list[str]:
    """The first cells of the rows of the table under a title."""
    section = DOCUMENT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]


def test_every_error_code_with_its_status() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Krea2Error)]
    raised = {kind.code: STATUS_OF_CODE.get(kind.code, 500) for kind in kinds}
    listed = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", DOCUMENT, re.MULTILINE)
    assert {code: int(status) for status, code in listed} == raised | STATUS_OF_CODE


def test_every_metric() -> None:
    text = Metrics().render([{"weights": 1}]) + HttpMetrics().render()
    names = set(re.findall(r"^# TYPE (\w+)", text.decode(), re.MULTILINE))
    assert {name for cell in first_cells("Metrics") for name in re.findall(r"`(\w+)`", cell)} == names


def test_every_log_event() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "launcher").rglob("*.py"))
    calls = re.findall(r'(?:log_event|self\._log)\(\s*"([^"]+)"(?: if \w+ else "([^"]+)")?', sources)
    events = {event for call in calls for event in call if event}
    assert {name for cell in first_cells("Logs") for name in re.findall(r"`([^`]+)`", cell)} == events


def test_the_bounds_of_loras() -> None:
    section = " ".join(DOCUMENT.partition("\n## LoRAs\n")[2].partition("\n## ")[0].split())
    assert f"at most {MAX_FILE_BYTES // 2**30} GiB" in section
    assert f"At most {Limits.max_loras} are loaded" in section
    assert f"and {Limits.max_request_loras} chosen by a request" in section


def test_the_example_of_a_proxy_goes_with_what_the_server_bounds() -> None:
    example = DOCUMENT.partition("```nginx\n")[2].partition("```")[0]
    assert f"of {Limits.max_queue} that may wait" in example
    assert re.findall(r"limit_conn \w+ (\d+);", example) == [str(Limits.max_queue // 8)]
    page = len(list(PAGE.rglob("*.*"))) + len(("/", "/ready", "/v1/settings", "/v1/loras")) - len(("index.html",))
    (burst, told) = re.findall(r"burst=(\d+) nodelay;  # the page with all its files is (\d+)", example)[0]
    assert page <= int(told) < int(burst) / 2
    refusal = json.loads(re.findall(r"return 429 '(.*?)';", example, re.DOTALL)[0])
    assert refusal["error"].keys() == error_body(errors.RateLimitedError("x"), "1")["error"].keys()  # type: ignore[attr-defined]
    assert refusal["error"]["code"] == errors.RateLimitedError.code


@pytest.mark.parametrize(
    ("row", "bounds"),
    [
        ("requests that wait", [Limits.max_queue, f"{deadlines._MARGIN:g} ×"]),
        (
            "a body over HTTP",
            [f"{guard.BODY_S:g} s", f"{bodies._MOST.values:,} values", f"{bodies._MOST.depth} levels"],
        ),
        ("a body over HTTP", [f"{protocol._FREE_CHUNKS:,} chunks", f"every {protocol._BYTES_A_CHUNK} bytes"]),
        ("the rest of a body", [f"{protocol.LINGER_S:g} s, {protocol.LINGER_BYTES >> 20} MiB"]),
        ("the head of a request", [f"{protocol._MAX_HEADER_BYTES >> 10} KiB"]),
        (
            "a message over RPC",
            [
                f"{encoding.MAX_REQUEST_BYTES >> 10} KiB; {Limits.max_image_bytes // 10**6} MB, "
                f"{encoding.most_frame_bytes(Limits()) // 10**6} MB; {clients._MESSAGES_UNREAD} |"
            ],
        ),
        ("pictures of requests", [f"{intake._MOST_PICTURE_BYTES >> 30} GiB"]),
        (
            "connections over RPC",
            [f"{entrance.MOST:,} at most; {clients.MAX_CLIENTS:,}; {clients._HANDSHAKE_MS // 1000} s"],
        ),
        ("connections over RPC", [f"{entrance.SILENT_S:g} s |"]),
        ("images behind urls", [f"{held_files.HELD_S / 3600:g} hour", f"{held_files.HELD_BYTES >> 20} MiB", "10,000"]),
        ("images that a client over RPC", [f"{intake._MOST_KEPT_BYTES >> 20} MiB"]),
        (
            "answers kept",
            [f"{repeats.KEPT_S / 60:g} minutes, {repeats.KEPT_BYTES >> 20} MiB, {repeats.KEPT_ANSWERS:,}"],
        ),
        ("answers kept", [f"; {followers.MOST_FOLLOWERS}; {live_requests._LINGER_S:g} s"]),
        ("lines of the log", [f"{lines.MAX_LINES:,} and {lines.MAX_BYTES >> 20} MiB", f"{lines.LONGEST:,} characters"]),
        ("json files", [f"{LARGEST_JSON >> 20} MiB; {FILE_LIMITS.values:,} values", f"{FILE_LIMITS.depth} levels"]),
        ("files of keys", [f"{api_keys.MAX_FILE_BYTES >> 20} MiB, {api_keys.MAX_KEYS:,} keys"]),
        ("images with the decoder", [dispatcher._MAX_DECODING]),
        ("an HTTP process that hangs", [f"{worker.SILENT_S:g} s, {worker._FIRST_BEAT_S:g} s"]),
        ("ranks: their start", [f"{outstanding._HANG_FACTOR} times", f"{outstanding._HANG_S:g} s at least"]),
        ("failures of a GPU", [gpu_health._FAILURES]),
    ],
)
def test_the_table_of_bounds(row: str, bounds: list[str | int]) -> None:
    section = DOCUMENT.partition("\n## What is bounded\n")[2].partition("\n## ")[0]
    (line,) = [line for line in section.splitlines() if line.startswith(f"| {row}")]
    assert [bound for bound in map(str, bounds) if bound not in line] == []
