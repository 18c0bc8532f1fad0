"""What leaves a front-end is in its audit log before it does, and what filters refuse is there, too."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
from PIL import Image

from engine.errors import ArgumentError, ModerationBlockedError, ServerError
from launcher.audit.entries import Entries, Entry
from launcher.audit.fingerprint_process import look
from launcher.audit.hashes import sha256
from launcher.client.async_client import AsyncClient
from launcher.client.results import ImageFile, PreviewFile
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.frontend.delivery.fake_gate import WORD, filtered_engine
from tests.launcher.http.http_requests import error_of
from tests.launcher.http_servers import PATH, PROMPT, http_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def entries(folder: Path, *events: str) -> list[Entry]:
    return [entry for entry in Entries(str(folder)) if entry.event in events or not events]


def test_every_file_that_a_client_gets_has_its_line_when_it_comes(run_folder: Path, folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, audit_log=str(folder)) as fakes, AsyncClient(fakes.address) as client:
            came = 0
            async for event in client.stream(
                PROMPT, seed=3, num_images=2, steps=4, preview_every=1, user="u", request_id="r", output_format="webp"
            ):
                if isinstance(event, ImageFile | PreviewFile):
                    of_image = isinstance(event, ImageFile)
                    kinds = ("image", "webp", None) if of_image else ("preview", "jpeg", event.step)  # type: ignore[union-attr]
                    (entry,) = (
                        each
                        for each in entries(folder)
                        if (each.event, each.format, each.step, each.index) == (*kinds, event.index)
                    )
                    assert (entry.request_id, entry.user, entry.file_sha256) == ("r", "u", sha256(event.file))
                    came += 1
            assert came > 2
            left = sorted((each.seed, each.width, each.findings) for each in entries(folder, "image"))
            assert left == [(3, 128, ()), (4, 128, ())]
            assert b'krea2_audit_lines_total{event="image"} 2.0' in await client.metrics()

    run(test())


def test_what_filters_find_refuse_and_hold_back_is_written(run_folder: Path, folder: Path) -> None:
    async def test() -> None:
        gate = {"blocked": {7}, "blurred": {9}}
        async with filtered_engine(run_folder, gate, audit_log=str(folder)) as (_, client, _):
            with pytest.raises(ModerationBlockedError):
                await client.generate(f"a {WORD} thing", steps=1, request_id="word", moderation="low")
            with pytest.raises(ModerationBlockedError):
                await client.generate(PROMPT, seed=7, steps=1, request_id="held")
            blurred = await client.generate(PROMPT, seed=9, steps=1, request_id="blurred")
        (refused,) = entries(folder, "refused")
        assert (refused.request_id, refused.parameter, refused.moderation) == ("word", "prompt", "low")
        assert [(each.filter, each.category, each.action) for each in refused.findings] == [("fake", "words", "block")]
        (held,) = entries(folder, "held")
        assert (held.request_id, held.seed, held.code, held.file_sha256) == ("held", 7, "moderation_blocked", None)
        assert held.pixels_sha256
        (left,) = entries(folder, "image")
        assert (left.request_id, left.action) == ("blurred", "blur")
        file = blurred.files[0]
        assert (left.file_sha256, left.pixels_sha256) == (sha256(file), look(file).pixels_sha256)
        assert len(entries(folder)) == 3

    run(test())


def test_pixels_are_those_of_the_picture_that_leaves_where_it_begins_from_one(
    run_folder: Path, folder: Path, tmp_path: Path
) -> None:
    Image.effect_noise((160, 128), 90).convert("RGB").save(tmp_path / "a.png")
    mask = Image.new("L", (160, 128))
    mask.paste(255, (32, 32, 96, 96))
    mask.save(tmp_path / "m.png")

    async def test() -> None:
        async with fake_engine(run_folder, audit_log=str(folder)) as fakes, AsyncClient(fakes.address) as client:
            result = await client.generate(
                PROMPT, image=tmp_path / "a.png", mask=tmp_path / "m.png", mask_crop=8, steps=1
            )
        (left,) = entries(folder, "image")
        seen = look(result.files[0])
        assert (left.pixels_sha256, left.width, left.height) == (seen.pixels_sha256, 160, 128)

    run(test())


@pytest.mark.parametrize("fail_open", [False, True])
def test_without_a_line_nothing_leaves_unless_that_is_wanted(
    run_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, fail_open: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def test() -> None:
        config = {"audit_log": str(folder), "filter_fail_open": fail_open}
        async with fake_engine(run_folder, **config) as fakes, http_server(fakes.address) as http:
            with monkeypatch.context() as broken:
                broken.setattr("launcher.audit.log.AuditLog.append", full)
                answer = await http.post(PATH, json={"prompt": PROMPT, "steps": 1})
                if fail_open:
                    assert answer.status_code == 200
                else:
                    assert (answer.status_code, error_of(answer)["code"]) == (503, "server_unavailable")
                    assert answer.headers["Retry-After"] == "5"
                async with AsyncClient(fakes.address) as client:
                    if not fail_open:
                        with pytest.raises(ServerError, match="the audit log cannot be written"):
                            await client.generate(PROMPT, steps=1)
                    assert b"krea2_audit_failures_total 0.0" not in await client.metrics()
            answer = await http.post(PATH, json={"prompt": PROMPT, "steps": 1})  # there is room again
            assert answer.status_code == 200
            (left,) = entries(folder, "image")
            assert left.request_id is not None
            assert left.request_id.startswith(answer.headers["X-Request-ID"])

    run(test())


def test_a_folder_that_cannot_be_written_to_ends_the_start(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def test() -> None:
        async with fake_engine(run_folder, audit_log=str(tmp_path / "file")):
            raise AssertionError("it started")

    with pytest.raises(ArgumentError, match="cannot be written to"):
        asyncio.run(asyncio.wait_for(test(), 30))
