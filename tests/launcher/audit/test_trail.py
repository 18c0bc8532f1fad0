"""What leaves and what is refused is written down, without prompts unless they are wanted, and before it leaves."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, ServerError
from launcher.audit.entries import Entries, Entry
from launcher.audit.fingerprint_process import look
from launcher.audit.hashes import hash_text, read_key, sha256
from launcher.audit.trail import Trail
from launcher.filters.verdicts import Finding, blocked_error
from launcher.messages.client_messages import Generate
from launcher.messages.configs import FrontendConfig
from tests.launcher.audit.pictures import drawn, file_of

ASKED = Generate(request_id="abc.1", prompt="a fox", negative_prompt="", user="hash-of-somebody", moderation="low")
FOUND = (Finding("words", "prompt", "log", "violence", 0.123456), Finding("eye", "image", "block", "nsfw", 1.0))


def trail_of(folder: Path, counts: Counter[str], **config: Any) -> Trail:
    settings = FrontendConfig(engine=EngineConfig(), audit_log=str(folder), **config)
    trail = Trail.of(settings, lambda event: counts.update([event]))
    assert trail is not None
    return trail


async def write_all(trail: Trail) -> None:
    image = drawn(1)
    size, rgb = image.size, image.tobytes()
    more = {"index": 2, "seed": 7, "action": "log"}
    await trail.image("abc.1", "ann", ASKED, size, rgb, file_of(image), FOUND[:1], **more)
    await trail.refused("abc.1", "anonymous", ASKED, blocked_error(FOUND), (size, rgb), index=3)
    await trail.refused("abc.1", "ann", ASKED, blocked_error(FOUND, "prompt"))
    trail.close()


@pytest.mark.parametrize("content", [False, True])
def test_a_line_has_who_asked_for_what_and_what_knows_the_picture_again(tmp_path: Path, *, content: bool) -> None:
    counts: Counter[str] = Counter()
    asyncio.run(write_all(trail_of(tmp_path, counts, audit_content=content)))
    left, held, refused = Entries(str(tmp_path))
    assert [entry.event for entry in (left, held, refused)] == ["image", "held", "refused"]
    assert counts == Counter(["image", "held", "refused"])
    data = file_of(drawn(1))
    seen = look(data)
    assert (left.file_sha256, held.file_sha256) == (sha256(data), None)
    for entry in (left, held):
        assert (entry.pixels_sha256, entry.dhash, entry.width) == (seen.pixels_sha256, seen.dhash, 256)
        assert entry.model == "demo"
    assert (left.request_id, left.key, left.user, left.moderation) == ("abc.1", "ann", "hash-of-somebody", "low")
    assert (left.index, left.seed, left.action, held.key) == (2, 7, "log", None)
    assert [(each.filter, each.category, each.score) for each in left.findings] == [("words", "violence", 0.1235)]
    assert [each.filter for each in refused.findings] == ["words", "eye"]
    assert (refused.code, refused.parameter, held.code) == ("moderation_blocked", "prompt", "moderation_blocked")
    assert {entry.prompt_hash for entry in (left, held, refused)} == {hash_text(read_key(str(tmp_path)), "a fox")}
    assert {entry.negative_prompt_hash for entry in (left, held, refused)} == {None}
    assert {entry.prompt for entry in (left, held, refused)} == {"a fox" if content else None}
    assert content == (b"a fox" in (tmp_path / "audit.jsonl").read_bytes())


@pytest.mark.parametrize("fail_open", [False, True])
def test_a_picture_whose_line_cannot_be_written_does_not_leave_unless_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fail_open: bool
) -> None:
    counts: Counter[str] = Counter()
    trail = trail_of(tmp_path, counts, filter_fail_open=fail_open)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("launcher.audit.log.AuditLog.append", full)

    async def write() -> str:
        await trail.refused("abc.1", "ann", ASKED, blocked_error(FOUND, "prompt"))  # which is refused all the same
        try:
            await trail.image("abc.1", "ann", ASKED, (1, 1), b"\0\0\0", b"file", ())
        except ServerError as error:
            return error.message
        return "left"

    told = asyncio.run(write())
    assert told == ("left" if fail_open else "the audit log cannot be written, and nothing leaves without it")
    assert counts == Counter({"failed": 2})


def test_without_a_folder_nothing_is_written_and_a_bad_one_is_said(tmp_path: Path) -> None:
    assert Trail.of(FrontendConfig(engine=EngineConfig()), lambda _: None) is None
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="cannot be written to"):
        trail_of(tmp_path / "file", Counter())
    (tmp_path / "prompt-hashes.key").mkdir()
    with pytest.raises(ArgumentError, match="its key cannot be read"):
        trail_of(tmp_path, Counter())


def test_every_field_of_a_line_is_described() -> None:
    document = (Path(__file__).parents[3] / "docs" / "audit.md").read_text()
    for name in Entry.__struct_fields__:
        if name not in ("report", "reason", "contact", "picture"):  # of reports, which are described below
            assert f"`{name}`" in document, name
