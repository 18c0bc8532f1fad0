"""What a request costs besides its compute: the front-end and its messages between steps, and HTTP on top of RPC."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.serve.traffic import ImageRequest, RequestFailed, Target, ask
from engine.errors import ArgumentError
from launcher.client.async_client import AsyncClient
from launcher.client.results import Result
from launcher.messages.client_messages import Progress

_WORK = (
    "queue",
    "encode_picture",
    "encode_text",
    "denoise",
    "decode",
    "file",
)  # what is no overhead of the stages' timings
MIN_STEPS = 3  # two progress events and a step between them


@dataclass(frozen=True)
class DispatchOverhead:
    """Seconds of one request, alone on the server.

    tick_s: wall time from one step's end to the next's, as the client hears of them, from the first to the last.
    denoise_s: what the ranks say they computed for a step. beyond_s: of the request as a whole, from its arrival to its
    file, what it waited between its stages: for steps and for decoding to begin, and to be answered.
    """

    steps: int
    tick_s: float
    denoise_s: float
    total_s: float
    beyond_s: float

    @property
    def share(self) -> float:
        """The part of a step in which the ranks did not denoise."""
        return (self.tick_s - self.denoise_s) / self.tick_s

    @property
    def beyond_share(self) -> float:
        return self.beyond_s / self.total_s


async def dispatch_overheads(
    client: AsyncClient, requests: Sequence[ImageRequest], deadline_s: float
) -> list[DispatchOverhead]:
    """Of each request, one after the other. The first one fills the server's caches and should not count.

    Raises `ArgumentError` for requests of fewer than `MIN_STEPS` steps, `RequestFailed` for one that is not done
    within `deadline_s`, and the errors of `AsyncClient.stream`.
    """
    for request in requests:
        if request.steps < MIN_STEPS:
            raise ArgumentError.of("steps", f"at least {MIN_STEPS} to see the time between them", request.steps)
    try:
        overheads = []
        for request in requests:
            async with asyncio.timeout(deadline_s):
                overheads.append(await _dispatch_overhead(client, request))
    except TimeoutError:
        raise RequestFailed("deadline", f"no answer within {deadline_s:g} s") from None
    return overheads


@dataclass(frozen=True)
class PreviewOverhead:
    """Medians over pairs of the same request with a preview after every step and with none: denoise seconds a step."""

    pairs: int
    with_s: float
    without_s: float
    share: float


async def preview_overhead(client: AsyncClient, requests: Sequence[ImageRequest], deadline_s: float) -> PreviewOverhead:
    """Each request with and without previews, in turn. Raises what `dispatch_overheads` does."""
    pairs: list[tuple[float, float]] = []
    try:
        for request in requests:
            async with asyncio.timeout(deadline_s):
                shown = await _dispatch_overhead(client, request, preview_every=1)
                plain = await _dispatch_overhead(client, request)
            pairs.append((shown.denoise_s, plain.denoise_s))
    except TimeoutError:
        raise RequestFailed("deadline", f"no answer within {deadline_s:g} s") from None
    return PreviewOverhead(
        pairs=len(pairs),
        with_s=statistics.median(shown for shown, _ in pairs),
        without_s=statistics.median(plain for _, plain in pairs),
        share=statistics.median(shown / plain - 1 for shown, plain in pairs),
    )


async def _dispatch_overhead(
    client: AsyncClient, request: ImageRequest, *, preview_every: int | None = None
) -> DispatchOverhead:
    ends: list[tuple[int, float]] = []
    timings: dict[str, float] = {}
    async for event in client.stream(
        request.prompt,
        seed=request.seed,
        width=request.width,
        height=request.height,
        steps=request.steps,
        guidance=request.guidance,
        preview_every=preview_every,
    ):
        if isinstance(event, Progress):
            ends.append((event.step, time.perf_counter()))
        elif isinstance(event, Result):
            timings = event.timings
    if len(ends) < 2:
        raise RequestFailed("progress", "the server told of fewer than two steps")
    (first_step, first_end), (last_step, last_end) = ends[0], ends[-1]
    return DispatchOverhead(
        steps=request.steps,
        tick_s=(last_end - first_end) / (last_step - first_step),
        denoise_s=timings["denoise"] / request.steps,
        total_s=timings["total"],
        beyond_s=timings["total"] - sum(timings[stage] for stage in _WORK),
    )


@dataclass(frozen=True)
class HttpOverhead:
    """Medians in seconds of the same request over both, and of the differences between neighbours."""

    pairs: int
    http_s: float
    rpc_s: float
    difference_s: float


async def http_overhead(
    http: Target, rpc: Target, request: ImageRequest, pairs: int, deadline_s: float
) -> HttpOverhead:
    """The same request over both, in turn, and either of them first every other time; one pair more is not counted.

    Raises `RequestFailed`.
    """
    times: list[tuple[float, float]] = []
    for pair in range(pairs + 1):
        seconds = {}
        for target in (http, rpc) if pair % 2 else (rpc, http):
            seconds[target] = (await ask(target, request, deadline_s)).latency_or_raise()
        times.append((seconds[http], seconds[rpc]))
    counted = times[1:]
    return HttpOverhead(
        pairs=pairs,
        http_s=statistics.median(over_http for over_http, _ in counted),
        rpc_s=statistics.median(over_rpc for _, over_rpc in counted),
        difference_s=statistics.median(over_http - over_rpc for over_http, over_rpc in counted),
    )
