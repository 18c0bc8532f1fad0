"""Whoever waits for a request is told how far it is, and holds up nobody else."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image as PIL

from engine.errors import ArgumentError
from launcher.client import bars
from launcher.client.async_client import AsyncClient
from launcher.client.bars import is_watched
from launcher.client.client import Client
from launcher.client.results import PreviewFile, Result
from launcher.client.watching import Watching, check_callback
from launcher.messages.client_messages import Accepted, Progress
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run

PROMPT = "a red circle"


class Told(Exception):
    pass


def test_a_callback_hears_of_steps_and_previews_in_the_thread_that_waits(run_folder: Path) -> None:
    calls: list[tuple[int, int, PIL.Image | None]] = []
    threads = set()

    def use(address: str, resume: Callable[[], None]) -> int:
        def callback(step: int, steps: int, preview: PIL.Image | None) -> None:
            calls.append((step, steps, preview))
            threads.add(threading.get_ident())
            if len([preview for *_, preview in calls if preview is not None]) == 2:
                resume()

        with Client(address) as client:
            client.generate(PROMPT, steps=4, num_images=2, preview_every=2, callback=callback)
        return threading.get_ident()

    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with fake_engine(run_folder) as fakes:
            fakes.ranks[0].hold_after_preview = True
            resume = partial(loop.call_soon_threadsafe, fakes.ranks[0].resume)
            assert threads == {await asyncio.to_thread(use, fakes.address, resume)}

    run(test())
    steps = [step for step, *_ in calls]
    assert steps == sorted(steps)
    assert {steps for _, steps, _ in calls} == {8}
    previews = [preview for *_, preview in calls if preview is not None]
    assert sorted((preview.info["index"], preview.info["step"], preview.size) for preview in previews) == [
        (0, 2, (4, 2)),
        (1, 2, (4, 2)),
    ]


def test_a_preview_that_comes_before_any_progress_waits_for_it() -> None:
    file = io.BytesIO()
    PIL.new("RGB", (4, 2)).save(file, "jpeg")
    calls: list[Any] = []
    with Watching(lambda *call: calls.append(call), show=False) as watched:
        watched.hear(PreviewFile("id", 1, 1, 2, 4, file.getvalue()))
        assert calls == []
        for step in (3, 4):
            watched.hear(Progress(request_id="id", step=step, steps=8, estimated_s=None, attempt=1))
    assert [(step, steps, preview and preview.info["index"]) for step, steps, preview in calls] == [
        (3, 8, 1),
        (4, 8, None),
    ]


@pytest.mark.parametrize("kind", ["function", "coroutine function", "function of a thread"])
def test_what_a_callback_raises_cancels_the_request(run_folder: Path, kind: str) -> None:
    def raises(step: int, steps: int, preview: object) -> None:
        raise Told(step)

    async def raises_later(step: int, steps: int, preview: object) -> None:
        await asyncio.sleep(0)
        raises(step, steps, preview)

    def in_a_thread(address: str) -> Any:
        with Client(address) as client:
            with pytest.raises(Told):
                client.generate(PROMPT, steps=200, callback=raises)
            return client.status()

    async def in_the_loop(address: str) -> Any:
        callback: Any = raises if kind == "function" else raises_later
        async with AsyncClient(address) as client:
            with pytest.raises(Told):
                await client.generate(PROMPT, steps=200, callback=callback)
            return await client.status()

    async def test() -> None:
        async with fake_engine(run_folder) as fakes:
            fakes.ranks[0].hold = True
            call = asyncio.to_thread(in_a_thread, fakes.address) if "thread" in kind else in_the_loop(fakes.address)
            calling = asyncio.create_task(call)
            await fakes.ranks[0].has_steps(2)
            fakes.ranks[0].release()
            status = await calling
            assert (status.running, status.waiting, status.failed) == (0, 0, 1)

    run(test())


def test_a_slow_callback_holds_up_nobody_else(run_folder: Path) -> None:
    """Neither in another thread, nor in the same event loop."""
    go_on = threading.Event()
    steps: list[int] = []

    def slow(step: int, *_: object) -> None:
        steps.append(step)
        assert go_on.wait(DEADLINE_S)

    def use(address: str) -> None:
        with Client(address) as client:
            slow_one = threading.Thread(target=client.generate, args=(PROMPT,), kwargs={"steps": 100, "callback": slow})
            slow_one.start()
            client.generate(PROMPT, steps=100)
            go_on.set()
            slow_one.join(DEADLINE_S)
            assert not slow_one.is_alive()

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            await asyncio.to_thread(use, fakes.address)
            others = asyncio.Event()

            waits = asyncio.Event()

            async def slow_too(*_: object) -> None:
                waits.set()
                await others.wait()

            call = asyncio.create_task(client.generate(PROMPT, steps=3, callback=slow_too))
            await waits.wait()
            await client.generate(PROMPT, steps=3)
            others.set()
            assert (await call).seeds

    run(test())
    assert steps
    assert steps == sorted({*steps})


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (3, r"callback must be a function that is called as callback\(step, steps, preview\), got 3"),
        (lambda pipe, step, t, kwargs: kwargs, r"got <lambda>\(pipe, step, t, kwargs\)"),
        (asyncio.sleep, "callback must be no coroutine function, which AsyncClient takes"),
    ],
)
def test_what_cannot_be_called_back_is_refused_before_anything_is_asked(callback: Any, message: str) -> None:
    with Client("ipc:///nonexistent/krea2", connect=False) as client, pytest.raises(ArgumentError, match=message):
        client.generate(PROMPT, callback=callback)


def test_functions_of_any_kind_can_be_called_back() -> None:
    for callback in (None, print, lambda *all: None, lambda step, steps, preview=None: None, max):
        check_callback(callback)


def test_a_bar_counts_steps_begins_anew_with_the_request_and_tells_warnings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(step: int, attempt: int = 1) -> Progress:
        return Progress(request_id="id", step=step, steps=4, estimated_s=None, attempt=attempt)

    with Watching(None, True) as watched:
        bar = watched._bar
        resets: list[int] = []  # each starts the clock of its rate
        reset = bar.reset
        monkeypatch.setattr(bar, "reset", lambda total: (resets.append(total), reset(total)))
        accepted = Accepted(request_id="id", position=2, estimated_s=None, attempt=1, warnings=("not what\nyou think",))
        watched.hear(accepted)
        assert (bar.desc, bar.n, bar.total) == ("behind 2 images", 0, None)
        assert "warning: not what\\nyou think" in capsys.readouterr().err  # before the work
        for event, shown in (
            (progress(1), ("denoising", 1, 4)),
            (progress(3), ("denoising", 3, 4)),
            (progress(1, attempt=2), ("denoising", 1, 4)),
            (progress(4, attempt=2), ("decoding", 4, 4)),
        ):
            watched.hear(event)
            assert (bar.desc, bar.n, bar.total) == shown
        watched.hear(Result("id", 2, [b""], [7], 64, 64, "png", {}, ("not what\nyou think", "late")))
    assert resets == [4, 4]
    shown = capsys.readouterr().err
    assert "warning: late" in shown
    assert "you think" not in shown


def test_bars_are_for_those_who_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars.sys, "stderr", SimpleNamespace(isatty=lambda: False))
    assert not is_watched()
    shell = SimpleNamespace(config={})
    monkeypatch.setitem(bars.sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    assert not is_watched()
    shell.config["IPKernelApp"] = {}
    assert is_watched()
    shell.config.clear()
    monkeypatch.setattr(bars.sys, "stderr", SimpleNamespace(isatty=lambda: True))
    assert is_watched()
    monkeypatch.setattr(bars.sys, "stderr", None)
    assert not is_watched()
