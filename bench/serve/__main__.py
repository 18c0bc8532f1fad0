"""A load on a server of images: its throughput, its latencies, and where the time goes.

    python -m bench.serve --concurrency 16 [--mix 64x64:2:4,128x128:1:8] [--requests 64] [--json FILE]
    python -m bench.serve --rate 4
    python -m bench.serve --compare-concurrency 1,16
    python -m bench.serve --overhead
    python -m bench.serve --http-overhead --url http://HOST:PORT --rpc ADDRESS

The server is the one at `--url`, which may be anybody's with OpenAI's images API, or at `--rpc`, or an engine that is
started for the run (`--model`, `--tp`, `--device`). OpenAI's API has no steps, guidance and seed: `--fields krea` sends
them as the engine calls them, `--fields diffusers` as num_inference_steps and guidance_scale, the mix's guidance being
passed on as it is, and `--fields openai` not at all. Needs httpx, of the `test` extra.

`--concurrency` is a closed loop, `--rate` an open one with Poisson arrivals from a fixed seed. Every request has a
prompt of its own. Latencies are of the requests that got an image of the size they asked for; the others are counted by
kind, refused ones, for which the queue was full (429), apart from failed ones. The stages are what the server
says of itself in `timings`; `outside` is the latency less its `total`.

`--overhead` follows requests that are alone on the server, 100 steps at 256² unless `--mix` says otherwise, and
compares the time between two steps' ends with what the ranks computed in a step. What slows the ranks themselves, as a
front-end on the same cores may, is in their compute and not in the difference. `--http-overhead` sends the same request
over both in turn and gives the median of the differences. Ends with 1 if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

from bench.serve.overhead import dispatch_overheads, http_overhead, preview_overhead
from bench.serve.report import Report
from bench.serve.targets import BODY_FIELDS, FIELDS, HttpTarget, RpcTarget
from bench.serve.traffic import (
    REFUSED,
    ImageRequest,
    RequestFailed,
    Target,
    ask,
    closed_loop,
    draw_requests,
    open_loop,
    parse_mix,
)
from engine.errors import ArgumentError, Krea2Error
from launcher import AsyncClient, launch

MIX, OVERHEAD_MIX = "128x128:1:8", "256x256:1:100"
REQUESTS, OVERHEAD_REQUESTS = 64, 5


def main(argv: Sequence[str] | None = None) -> int:
    try:
        arguments = _parse(argv)
        with ExitStack() as stack:
            if arguments.url is None and arguments.rpc is None:
                engine = launch(arguments.model, tp=arguments.tp, device=arguments.device)
                arguments.rpc = stack.enter_context(engine).address
            return asyncio.run(_measure(arguments))
    except Krea2Error as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    except RequestFailed as error:
        print(f"error: {error.kind}: {error}", file=sys.stderr)
        return 1


async def _measure(arguments: argparse.Namespace) -> int:
    async with AsyncExitStack() as stack:
        client = http = None
        if arguments.rpc is not None:
            client = await stack.enter_async_context(AsyncClient(arguments.rpc))
        if arguments.url is not None:
            api_key = os.environ[arguments.api_key_variable] if arguments.api_key_variable is not None else None
            http = await stack.enter_async_context(
                HttpTarget(arguments.url, fields=arguments.fields, extra=dict(arguments.extra), api_key=api_key)
            )
        report = Report(arguments, await _describe(arguments.url, client))
        failed = 0
        if arguments.overhead:
            assert client is not None
            requests = draw_requests(arguments.mix, 1 + arguments.requests)
            report.dispatch((await dispatch_overheads(client, requests, arguments.deadline))[1:])
            report.previews(await preview_overhead(client, requests[1:], arguments.deadline))
        elif arguments.http_overhead:
            assert client is not None
            assert http is not None
            (request,) = draw_requests(arguments.mix, 1)
            pairs, deadline_s = arguments.requests, arguments.deadline
            report.http(await http_overhead(http, RpcTarget(client), request, pairs, deadline_s))
        elif http is not None:
            failed = await _loads(http, arguments, report)
        else:
            assert client is not None
            failed = await _loads(RpcTarget(client), arguments, report)
        report.write()
    return 1 if failed else 0


async def _loads(target: Target, arguments: argparse.Namespace, report: Report) -> int:
    """Runs the loads one after the other; returns how many requests failed, the refused ones not among them."""
    levels = arguments.compare_concurrency or [arguments.concurrency]
    await _warm_up(target, draw_requests(arguments.mix, arguments.warmup), arguments.deadline)
    first, failed, runs = arguments.warmup, 0, []
    for level in levels:
        requests = draw_requests(arguments.mix, arguments.requests, first=first)
        first += len(requests)
        if level is None:
            run = await open_loop(target, requests, arguments.rate, arguments.deadline)
        else:
            run = await closed_loop(target, requests, level, arguments.deadline)
        report.load(run, concurrency=level, rate=arguments.rate)
        failed += sum(count for kind, count in run.failures.items() if kind != REFUSED)
        runs.append(run)
    for level, run in zip(levels[1:], runs[1:], strict=True):
        report.ratio(levels[0], runs[0], level, run)
    return failed


async def _warm_up(target: Target, requests: list[ImageRequest], deadline_s: float) -> None:
    """Raises `RequestFailed` for what would not work later either."""
    for request in requests:
        (await ask(target, request, deadline_s)).latency_or_raise()


async def _describe(url: str | None, client: AsyncClient | None) -> dict[str, Any]:
    """The server, as far as it says what it is."""
    server: dict[str, Any] = {} if url is None else {"url": url}
    if client is not None:
        status = await client.status()
        server |= {"model": status.model, "tp": status.tp, "device": status.device}
    return server


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises `ArgumentError` for a value that is not allowed."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=(__doc__ or "").split("\n")[0])
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--concurrency", type=_number("concurrency", int), help="requests at once, all the time")
    load.add_argument("--rate", type=_number("rate", float), help="requests a second, whatever becomes of them")
    load.add_argument("--compare-concurrency", type=_levels, metavar="C,C…", help="one closed loop after the other")
    load.add_argument("--overhead", action="store_true", help="of dispatching steps, over RPC")
    load.add_argument("--http-overhead", action="store_true", help="of HTTP over RPC; needs --url and --rpc")
    parser.add_argument("--mix", help=f"WIDTHxHEIGHT:WEIGHT:STEPS[:GUIDANCE],… (default: {MIX})")
    parser.add_argument(
        "--requests",
        type=_number("requests", int),
        help=f"counted requests a load (default: {REQUESTS}; {OVERHEAD_REQUESTS} with --overhead)",
    )
    parser.add_argument("--warmup", type=_number("warmup", int, least=0), default=4, help="uncounted ones before")
    parser.add_argument("--deadline", type=_number("deadline", float), default=300.0, help="seconds for a request")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON lines there too")
    parser.add_argument("--url", help="a server with OpenAI's images API, as http://127.0.0.1:30000")
    parser.add_argument("--fields", choices=FIELDS, default="krea", help="how --url calls steps and guidance")
    parser.add_argument(
        "--extra", type=_extra, action="append", default=[], metavar="NAME=VALUE", help="a field more, for --url"
    )
    parser.add_argument("--api-key-variable", metavar="NAME", help="of the environment, with the key for --url")
    parser.add_argument("--rpc", metavar="ADDRESS", help="an engine's tcp:// or ipc:// address")
    parser.add_argument("--model", default="demo", help="of the engine to start")
    parser.add_argument("--tp", type=_number("tp", int), default=1)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args(argv)
    arguments.argv = sys.argv[1:] if argv is None else argv
    arguments.mix = parse_mix(arguments.mix or (OVERHEAD_MIX if arguments.overhead else MIX))
    arguments.requests = arguments.requests or (OVERHEAD_REQUESTS if arguments.overhead else REQUESTS)
    if arguments.api_key_variable not in (None, *os.environ):
        raise ArgumentError.of("api-key-variable", "set in the environment", arguments.api_key_variable)
    if arguments.http_overhead:
        if arguments.url is None or arguments.rpc is None:
            raise ArgumentError("--http-overhead needs --url and --rpc, both of the same server", parameter="url")
    elif arguments.url is not None and (arguments.overhead or arguments.rpc is not None):
        raise ArgumentError("--url goes with neither --rpc nor --overhead, which is over RPC", parameter="url")
    return arguments


def _number(name: str, kind: type[int] | type[float], *, least: int | None = None) -> Callable[[str], float]:
    allowed = f"a {'whole ' if kind is int else ''}number {'above 0' if least is None else f'of at least {least}'}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise ArgumentError.of(name, allowed, text) from None
        if not (value > 0 if least is None else least <= value) or value == float("inf"):
            raise ArgumentError.of(name, allowed, text)
        return value

    return parse


def _levels(text: str) -> list[float]:
    levels = [_number("compare-concurrency", int)(level) for level in text.split(",")]
    if len(levels) < 2:
        raise ArgumentError.of("compare-concurrency", "two or more numbers, comma-separated", text)
    return levels


def _extra(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ArgumentError.of("extra", "NAME=VALUE, the value in JSON or plain text", text)
    if name in BODY_FIELDS:
        raise ArgumentError.of("extra", "a field other than " + ", ".join(BODY_FIELDS), name)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())
