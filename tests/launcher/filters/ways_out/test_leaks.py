"""A filter blocks one picture in three, another one a word: of all bytes that left, none are of a blocked picture."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from engine.step import Step
from launcher.filters.gate import Gate
from launcher.filters.spec import read_specs
from launcher.messages.rank_messages import Previewed
from tests.launcher.demo_server import serve_demo
from tests.launcher.fake_ranks import FakeRank, fake_engine, run
from tests.launcher.filters.ways_out.checked import answers, check_all_that_left, recorded_doors
from tests.launcher.filters.ways_out.planted import FORBIDDEN, PLANTED, WORD
from tests.launcher.filters.ways_out.recorder import Recorder
from tests.launcher.filters.ways_out.search import pictures_in
from tests.launcher.filters.ways_out.ways import EDITING, PLAIN, WAYS, Ask, Door, Way
from tests.launcher.http_servers import http_server

FORMATS = ("png", "jpeg", "webp")
RED_UPLOAD = (220, 30, 30)


class ColouredRank(FakeRank):
    """Draws red where the seed is 200 or more, and previews as the images become."""

    def _preview(self, step: Step) -> None:
        for job_id in step.denoise:
            job, done = self._jobs[job_id], self._steps_of[job_id] + 1
            self._steps_of[job_id] = done
            if job.preview_every and done % job.preview_every == 0 and done < job.steps:
                rgb = bytes([job.seed % 256, job_id % 256, done]) * 32
                self.send(Previewed(rank=0, job_id=job_id, step=done, width=8, height=4), rgb)


def asks_of(count: int, *, side: int, steps: int, red: str) -> list[tuple[Way, Ask]]:
    """Requests by all ways in turn. Of each way one in three is to be red, as `red` says by prompt or seed; one in ten
    has the forbidden word, and some bring a picture that is blocked."""
    asks = []
    for index, way in zip(range(count), itertools.cycle(WAYS), strict=False):
        turn = index // len(WAYS)
        is_red = (turn + index) % 3 == 0
        ground = "red" if is_red and red == "prompt" else ("blue", "green")[turn % 2]
        seed = index % 40 + (210 if is_red and red == "seed" else 0)
        ask = Ask(f"a white circle on a {ground} background", seed, steps, side, count=1 + turn % 2)
        if way not in PLAIN:
            ask = replace(ask, format=FORMATS[(turn + index) % 3])
        if index % 10 == 7:
            ask = replace(ask, prompt=f"{ask.prompt}, {FORBIDDEN}")
        if way in EDITING and turn % 3 == 2:
            ask = replace(ask, upload=RED_UPLOAD)
        asks.append((way, ask))
    return asks


async def check(door: Door, recorders: list[Recorder], asks: list[tuple[Way, Ask]], seen: Path, at_once: int) -> None:
    """Every request is answered as it must be, and no byte that left is of a picture that is blocked."""
    got = await answers(door, asks, at_once=at_once)
    for way, ask in asks:
        files = got[way, ask]
        if FORBIDDEN in ask.prompt or (way in EDITING and ask.upload == RED_UPLOAD):
            assert files is None
        assert files is None or len(files) == ask.count
    received = [file for files in got.values() for file in files or ()]
    found = [picture for recorder in recorders for sent in recorder.sent for picture in pictures_in(bytes(sent))]
    shown = check_all_that_left(found, seen, received)
    print(f"{len(asks)} requests, {len(received)} images received, {len(found)} pictures found in what left; {shown}")
    assert len(found) >= len({*received})
    for kind in ("image", "preview", "upload"):
        assert shown[kind]
        assert shown[f"{kind}!"]
    assert 0.15 < shown["image!"] / (shown["image"] + shown["image!"]) < 0.5


def test_nothing_that_is_blocked_leaves_by_any_way(run_folder: Path, tmp_path: Path) -> None:
    """With ranks that compute nothing, and filters in processes of their own."""
    specs = read_specs([WORD, f"{PLANTED},seen={tmp_path}"])
    asks = asks_of(3 * len(WAYS), side=64, steps=3, red="seed")

    async def test() -> None:
        async with (
            fake_engine(run_folder, make_rank=ColouredRank, make_gate=lambda _: Gate(specs, fail_open=False)) as fakes,
            http_server(fakes.address) as http,
            recorded_doors(str(http.base_url), fakes.address) as (door, recorders),
        ):
            await check(door, recorders, asks, tmp_path, at_once=8)

    run(test())


@pytest.mark.slow
def test_nothing_that_is_blocked_leaves_in_500_requests(tmp_path: Path) -> None:
    asks = asks_of(504, side=96, steps=4, red="prompt")

    async def test() -> None:
        with serve_demo("--filter", WORD, "--filter", f"{PLANTED},seen={tmp_path}") as server:
            async with recorded_doors(server.http, server.rpc) as (door, recorders):
                await check(door, recorders, asks, tmp_path, at_once=8)

    asyncio.run(test())
