"""What a front-end does with what filters say: of prompts before they are queued, of pictures before they leave."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest

from engine.errors import (
    FilterUnavailableError,
    ModerationBlockedError,
    QueueFullError,
)
from launcher.client.results import ImageFile, PreviewFile, Result
from launcher.messages.client_messages import Accepted
from launcher.requests.timings import STAGES
from tests.launcher.fake_ranks import run
from tests.launcher.frontend.delivery.fake_gate import WORD, filtered_engine, until
from tests.launcher.http.http_requests import error_of
from tests.launcher.http_servers import PATH, PROMPT, events_of, http_server


def test_a_prompt_that_is_blocked_reaches_no_rank(run_folder: Path) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder) as (fakes, client, gate):
            other = asyncio.create_task(client.generate(PROMPT, seed=1, steps=1, moderation="low"))
            with pytest.raises(ModerationBlockedError, match=r"the prompt was blocked .*fake \(words\)") as blocked:
                await client.generate(f"a {WORD} thing", steps=1)
            assert (blocked.value.parameter, blocked.value.category) == ("prompt", "words")
            assert (await other).seed == 1
            assert [len(step.start) for step in fakes.ranks[0].steps if step.start] == [1]
            assert sorted(moderation for _, moderation in gate.prompts) == ["auto", "low"]
            assert b'krea2_requests_total{outcome="moderation_blocked"} 1.0' in await client.metrics()

    run(test())


def test_a_negative_prompt_is_checked_where_it_is_used(run_folder: Path) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder) as (_, client, gate):
            for guidance in (0.0, 2.0):
                await client.generate(PROMPT, steps=1, guidance=guidance, negative_prompt="fog")
            assert [prompt.negative for prompt, _ in gate.prompts] == [None, "fog"]

    run(test())


def test_an_image_that_is_blocked_ends_its_request_and_no_other(run_folder: Path) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder, {"blocked": {7}}) as (_, client, gate):
            calls = [client.generate(PROMPT, seed=seed, num_images=2, steps=2) for seed in (1, 6, 20)]
            first, second, third = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(second, ModerationBlockedError)
            assert (second.category, second.parameter) == ("red", None)
            for result, seeds in ((first, [1, 2]), (third, [20, 21])):
                assert isinstance(result, Result)
                assert [image.getpixel((0, 0))[0] for image in result.images] == seeds  # type: ignore[index]
            assert {(each.kind, each.width, each.height, each.prompt) for each in gate.pictures} == {
                ("image", 128, 128, PROMPT)
            }

    run(test())


def test_a_blurred_image_is_what_is_sent_and_its_client_is_told(run_folder: Path) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder, {"blurred": {7}}) as (_, client, _):
            result = await client.generate(PROMPT, seed=6, num_images=2, steps=1)
            assert [image.getcolors() for image in result.images] == [
                [(128 * 128, (6, result.images[0].getpixel((0, 0))[1], 7))],  # type: ignore[index]
                [(128 * 128, (128, 128, 128))],
            ]
            assert result.warnings == ("the image was blurred by the content filter fake (red)",)

    run(test())


def test_what_filters_find_is_in_the_log_and_never_the_prompt(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="krea2")

    async def test() -> None:
        async with filtered_engine(run_folder, {"blocked": {7}, "blurred": {8}}) as (_, client, _):
            await client.generate(PROMPT, seed=8, steps=1, request_id="a")
            for prompt, name in ((PROMPT, "b"), (WORD, "c")):
                with pytest.raises(ModerationBlockedError):
                    await client.generate(prompt, seed=7, steps=1, request_id=name)

    run(test())
    found = [vars(record)["fields"] for record in caplog.records if record.message == "content found"]
    assert [(each["request_id"], each["kind"], each["action"], each["category"]) for each in found] == [
        ("a", "image", "blur", "red"),
        ("b", "image", "block", "red"),
        ("c", "prompt", "block", "words"),
    ]
    assert WORD not in str([vars(record) for record in caplog.records])


def test_previews_are_held_back_while_filters_have_them_and_blocked_ones_for_good(run_folder: Path) -> None:
    """Fake ranks give a preview the number of its step as its red."""

    async def test() -> None:
        async with filtered_engine(run_folder, {"blocked": {1}, "held": {"preview"}}) as (fakes, client, gate):
            rank = fakes.ranks[0]
            rank.hold_after_preview = True
            shown: list[int] = []

            async def watch() -> None:
                async for event in client.stream(PROMPT, seed=9, steps=6, preview_every=1):
                    if isinstance(event, PreviewFile):
                        shown.append(event.step)

            watching = asyncio.create_task(watch())
            await until(lambda: len(gate.seen("preview")) == 1)
            gate.go_on("preview")
            await until(lambda: b'krea2_held_previews_total{reason="blocked"} 1.0' in gate_metrics(fakes))
            gate.held.add("preview")
            rank.resume()
            await until(lambda: len(gate.seen("preview")) == 2)
            rank.resume()  # the third comes while they have the second
            await until(lambda: b'krea2_held_previews_total{reason="busy"} 1.0' in gate_metrics(fakes))
            assert shown == []
            gate.go_on("preview")
            await until(lambda: shown == [2])
            gate.broken.add("preview")
            rank.resume()
            await until(lambda: b'krea2_held_previews_total{reason="unavailable"} 1.0' in gate_metrics(fakes))
            rank.hold_after_preview = False
            rank.resume()
            await watching
            assert shown == [2]
            assert {(each.width, each.height) for each in gate.seen("preview")} == {(4, 2)}

    run(test())


def gate_metrics(fakes: object) -> bytes:
    metrics: bytes = fakes.frontend._reports.render_metrics()  # type: ignore[attr-defined]
    return metrics


def test_a_preview_does_not_come_after_its_image(run_folder: Path) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder, {"held": {"preview", 10}}) as (fakes, client, gate):
            came: list[tuple[str, int]] = []

            async def watch() -> None:
                async for event in client.stream(PROMPT, seed=9, num_images=2, steps=2, preview_every=1):
                    if isinstance(event, PreviewFile | ImageFile):
                        came.append((type(event).__name__, event.index))

            watching = asyncio.create_task(watch())
            await until(lambda: came)
            assert len(gate.seen("preview")) == 2
            gate.go_on("preview")
            await until(lambda: len(came) == 2)
            gate.go_on(10)
            await watching
            assert came == [("ImageFile", 0), ("PreviewFile", 1), ("ImageFile", 1)]
            assert not fakes.frontend._requests._finishing._previewing

    run(test())


@pytest.mark.parametrize("kind", ["prompt", "image"])
def test_filters_that_do_not_answer_are_told_and_others_are_served_again(run_folder: Path, kind: str) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder, {"broken": {kind}}) as (_, client, gate):
            with pytest.raises(FilterUnavailableError, match="fake did not answer") as failed:
                await client.generate(PROMPT, steps=1)
            assert failed.value.retry_after_s == 3.0
            gate.broken.clear()
            assert (await client.generate(PROMPT, seed=4, steps=1)).seed == 4

    run(test())


def test_what_filters_take_is_part_of_timings_explanations_and_estimates(run_folder: Path) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder, {"image_s": 40.0}) as (fakes, client, _):
            rank = fakes.ranks[0]
            rank.encode_s = rank.denoise_s = rank.decode_s = 1e-6  # as long as they take, at most
            await client.generate(PROMPT, steps=1)  # after which speeds are known
            accepted: list[Accepted] = []
            async for event in client.stream(PROMPT, steps=1, explain=True):
                if isinstance(event, Accepted):
                    accepted.append(event)
                elif isinstance(event, Result):
                    result = event
            assert accepted[0].estimated_s is not None
            assert accepted[0].estimated_s > 40
            with pytest.raises(QueueFullError, match=r"takes about 40 s by itself, and its timeout_s is 20"):
                await client.generate(PROMPT, steps=1, timeout_s=20)
            timings = result.timings
            assert sum(timings[stage] for stage in STAGES) == pytest.approx(timings["total"])
            assert timings["filter_prompt"] > 0
            assert timings["filter_image"] > 0
            assert result.explanation is not None
            stages = {stage.name for stage in result.explanation.told.stages}
            assert {"filter_prompt", "filter_image", "check", "file"} <= stages
            assert sum(result.explanation.told.parts.values()) == pytest.approx(result.explanation.told.total_s)

    run(test())


def test_http_says_what_was_blocked_and_when_to_come_back(run_folder: Path) -> None:
    async def test() -> None:
        async with filtered_engine(run_folder, {"blocked": {7}}) as (fakes, _, gate), http_server(fakes.address) as web:
            for body in ({"prompt": WORD}, {"prompt": PROMPT, "seed": 7}):
                answer = await web.post(PATH, json={**body, "steps": 1})
                error = error_of(answer)
                assert answer.status_code == 400
                assert (error["type"], error["code"]) == ("image_generation_user_error", "moderation_blocked")
                assert error["category"] in ("words", "red")
                assert WORD not in error["message"]
            streamed = await web.post(PATH, json={"prompt": PROMPT, "seed": 7, "steps": 1, "stream": True})
            assert [(name, data["error"]["code"]) for name, data in events_of(streamed.text)] == [
                ("error", "moderation_blocked")
            ]
            gate.broken.add("image")
            answer = await web.post(PATH, json={"prompt": PROMPT, "steps": 1})
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3")
            assert error_of(answer)["code"] == "filter_unavailable"
            gate.not_ready = "content filter fake is replaced"
            ready = await web.get("/ready")
            assert ready.status_code == 503
            assert re.search("filter fake is replaced", ready.text)

    run(test())
