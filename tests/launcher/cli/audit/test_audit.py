"""`krea2 audit` finds a picture's request, and shows what was refused and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.audit.entries import Entry, Found, encode, timestamp
from launcher.audit.fingerprint import Fingerprint
from launcher.audit.fingerprint_process import look
from launcher.audit.hashes import dhash, hash_text, pixels_sha256, read_key, sha256
from launcher.audit.log import AuditLog
from tests.launcher.audit.pictures import drawn, file_of
from tests.launcher.conftest import Krea2

IMAGES = [drawn(seed) for seed in range(4)]
COPY = file_of(IMAGES[2].resize((128, 96)), "jpeg", quality=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of four images, a refusal, and a report of a copy of the third image."""
    folder = tmp_path / "log"
    log, reports = AuditLog(str(folder)), AuditLog(str(folder), "reports")
    key = read_key(str(folder))
    for seed, image in enumerate(IMAGES):
        rgb = image.tobytes()
        entry = Entry(
            time=timestamp(100 + seed), event="image", request_id=f"id{seed}.f", user=f"u{seed}", seed=seed,
            prompt_hash=hash_text(key, f"fox {seed}"), file_sha256=sha256(file_of(image)), width=256, height=192,
            pixels_sha256=pixels_sha256(*image.size, rgb), dhash=dhash(*image.size, rgb),
        )  # fmt: skip
        log.append(encode(entry))
    found = Found(filter="words", kind="prompt", action="block", category="nudity", score=1.0)
    log.append(encode(Entry(time=timestamp(200), event="refused", request_id="no.f", key="ann", findings=(found,))))
    seen = look(COPY)
    report = Entry(
        time=timestamp(300), event="report", report="report-1", reason="It shows me.\x1b[2J", dhash=seen.dhash,
        file_sha256=sha256(COPY), pixels_sha256=seen.pixels_sha256,
    )  # fmt: skip
    reports.append(encode(report))
    log.close()
    reports.close()
    return folder


@pytest.fixture
def find(
    krea2: Krea2, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """`find(data, *options)`: krea2 audit find of a file with this data, which this process looks at itself."""
    monkeypatch.setattr(
        "launcher.cli.audit.find.fingerprint",
        lambda data, _: Fingerprint(file_sha256=sha256(data), seen=look(data)),
    )

    def run(data: bytes, *options: str) -> tuple[int, str, str]:
        file = tmp_path / "picture"
        file.write_bytes(data)
        return krea2("audit", "find", str(file), "--audit-log", str(folder), *options)

    return run


def test_a_copy_leads_to_its_request(find: Callable[..., tuple[int, str, str]]) -> None:
    code, stdout, _ = find(COPY)
    assert code == 0
    assert stdout.startswith("looks alike: ")
    assert "request_id=id2.f user=u2" in stdout
    assert len(stdout.splitlines()) == 2  # and not the report itself
    code, stdout, _ = find(file_of(IMAGES[1]), "--json", "--distance", "0")
    (match,) = map(json.loads, stdout.splitlines())
    assert (code, match["how"], match["request_id"], match["differs"]) == (0, "same file", "id1.f", 0)


def test_a_picture_of_nobody_is_not_found(find: Callable[..., tuple[int, str, str]]) -> None:
    assert find(file_of(drawn(77))) == (1, "", "the log has no such picture\n")


def test_a_report_is_shown_with_the_request_that_it_leads_to(krea2: Krea2, folder: Path) -> None:
    code, stdout, _ = krea2("audit", "reports", "--audit-log", str(folder))
    assert code == 0
    assert "reason: It shows me." in stdout
    assert "\x1b" not in stdout
    (lead,) = (line for line in stdout.splitlines() if "→" in line)
    assert "looks alike" in lead
    assert "request_id=id2.f" in lead
    _, stdout, _ = krea2("audit", "reports", "--audit-log", str(folder), "--json")
    (report,) = map(json.loads, stdout.splitlines())
    assert [lead["request_id"] for lead in report["leads"]] == ["id2.f"]


def test_lines_are_shown_by_what_they_have(krea2: Krea2, folder: Path) -> None:
    def shown(*options: str) -> list[str]:
        code, stdout, stderr = krea2("audit", "show", "--audit-log", str(folder), "--json", *options)
        assert (code, stderr) == (0, "")
        return [json.loads(line).get("request_id") for line in stdout.splitlines()]

    assert shown() == ["id0.f", "id1.f", "id2.f", "id3.f", "no.f", None]
    assert shown("--event", "refused") == shown("--key", "ann") == ["no.f"]
    assert shown("--prompt", "fox 3") == shown("--user", "u3") == shown("--request", "id3") == ["id3.f"]
    assert shown("--since", "1970-01-01T00:05") == shown("--since", "1970-01-01 00:05") == [None]
    assert shown("--until", "1970-01-01T00:03:20.000z", "--since", "1970", "--key", "ann") == ["no.f"]
    for wrong in ("yesterday", "1970-13-01", "1970-01-01T", "300", "1970-1-1"):
        code, stdout, stderr = krea2("audit", "show", "--audit-log", str(folder), "--since", wrong)
        assert (code, stdout) == (2, "")
        assert f"{wrong!r} is not a time in UTC" in stderr
    _, stdout, _ = krea2("audit", "show", "--audit-log", str(folder), "--event", "refused")
    assert "words: block for nudity 1.00 (prompt)" in stdout


def test_what_is_no_log_and_no_picture_is_said(krea2: Krea2, tmp_path: Path, folder: Path) -> None:
    code, _, stderr = krea2("audit", "show", "--audit-log", str(tmp_path / "none"))
    assert code == 2
    assert "is no folder" in stderr
    code, _, stderr = krea2("audit", "find", str(tmp_path / "none.png"), "--audit-log", str(folder))
    assert code == 2
    assert "none.png: cannot be read: No such file or directory" in stderr
    (folder / "audit-2.jsonl").write_bytes(b'{"time": \n')
    code, _, stderr = krea2("audit", "show", "--audit-log", str(folder))
    assert (code, stderr) == (0, "warning: 1 lines of the log cannot be read\n")
