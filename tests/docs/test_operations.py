"""docs/operations.md names every error code, metric and log event that there is, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from engine import errors
from launcher.frontend.metrics import Metrics
from launcher.http.errors import STATUS_OF_CODE
from launcher.http.workers.metrics import HttpMetrics
from launcher.messages.limits import Limits
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
