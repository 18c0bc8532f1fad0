"""The load generator: against an engine whose ranks are fake, and a stand-in for a peer's HTTP server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL

from bench.serve.__main__ import main
from bench.serve.overhead import dispatch_overheads, http_overhead
from bench.serve.targets import HttpTarget, RpcTarget
from bench.serve.traffic import (
    REFUSED,
    Answer,
    ImageRequest,
    Outcome,
    RequestFailed,
    Run,
    Shape,
    Summary,
    ask,
    closed_loop,
    draw_requests,
    open_loop,
    parse_mix,
)
from engine.errors import ArgumentError
from launcher.client.async_client import AsyncClient
from launcher.messages.limits import Limits
from tests.bench.serve.virtual_time import run_in_virtual_time
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, fake_engine, run

MIX = parse_mix("64x64:3:2,128x64:1:4:0")


# ---- statistics and mixes


def test_a_summary_has_the_known_statistics() -> None:
    summary = Summary.of([float(value) for value in range(100, -1, -1)])
    assert summary == Summary(count=101, mean=50.0, median=50.0, p90=90.0, p99=99.0, max=100.0)
    assert Summary.of([2.0]) == Summary(1, 2.0, 2.0, 2.0, 2.0, 2.0)


def test_a_run_counts_only_images_as_throughput_and_latency() -> None:
    timings = {"queue": 0.25, "total": 0.75}
    failed = [Outcome(9.0, failure="refused"), Outcome(9.0, failure="HTTP 500"), Outcome(9.0, failure="refused")]
    load = Run(4.0, [Outcome(1.0, timings), Outcome(3.0), *failed])
    assert load.images_per_s == 0.5
    assert load.failures == {"refused": 2, "HTTP 500": 1}
    stages = load.seconds_by_stage()
    assert {name: (stage.count, stage.mean) for name, stage in stages.items()} == {
        "latency": (2, 2.0),
        "queue": (1, 0.25),
        "total": (1, 0.75),
        "outside": (1, 0.25),
    }
    assert Run(4.0, failed).seconds_by_stage() == {}


def test_a_mix_is_parsed_and_drawn_by_weight() -> None:
    assert list(MIX) == [Shape(64, 64, 3.0, 2), Shape(128, 64, 1.0, 4, 0.0)]
    requests = draw_requests(MIX, 400)
    assert sum(request.width == 64 for request in requests) == pytest.approx(300, abs=40)
    assert requests == draw_requests(MIX, 400)
    prompts = {request.prompt for request in (*requests, *draw_requests(MIX, 400, first=400))}
    assert len(prompts) == 800


@pytest.mark.parametrize(
    "text",
    [
        *("", "64", "64x64", "64x64:1", "64:1:4", "64x64x64:1:4", "64x64:1:4:0:0", "64x64:1:4,", "ax64:1:4"),
        *("0x64:1:4", "64x64:0:4", "64x64:1:0", "64x64:1:2.5", "64x64:1:-1", "64x64:inf:4", "64x64:1:inf"),
        *("64x64:nan:4", "64x64:1:4:-1", "64x64:1:4:nan", "64x64:1:4:inf"),
    ],
)
def test_a_bad_mix_is_named(text: str) -> None:
    with pytest.raises(ArgumentError, match="mix must be WIDTHxHEIGHT:WEIGHT:STEPS") as raised:
        parse_mix(text)
    assert raised.value.parameter == "mix"


# ---- loops


class Recorder:
    """A target that answers with an image after `delay_s`, and knows when it was asked, and by how many at once."""

    def __init__(self, delay_s: float = 0.0, size: tuple[int, int] | None = None) -> None:
        self.delay_s, self.size = delay_s, size
        self.asked: list[float] = []
        self.at_once = self.most_at_once = 0

    async def generate(self, request: ImageRequest) -> Answer:
        self.asked.append(asyncio.get_running_loop().time())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay_s)
        finally:
            self.at_once -= 1
        return Answer(png(*(self.size or (request.width, request.height))), {"total": 0.0})


def test_a_closed_loop_has_so_many_requests_at_once_and_no_more() -> None:
    target = Recorder(delay_s=0.25)
    load = run_in_virtual_time(closed_loop(target, draw_requests(MIX, 12), 3, deadline_s=10))
    assert load.images == len(target.asked) == 12
    assert target.most_at_once == 3
    assert load.seconds == pytest.approx(4 * 0.25)


def test_an_open_loop_does_not_wait_for_answers() -> None:
    target = Recorder(delay_s=0.5)
    load = run_in_virtual_time(open_loop(target, draw_requests(MIX, 20), rate=1000, deadline_s=10))
    assert load.images == 20
    assert target.most_at_once == 20
    assert all(outcome.latency_s == pytest.approx(0.5) for outcome in load.outcomes)


def test_an_open_loop_arrives_at_its_rate() -> None:
    target = Recorder()
    run_in_virtual_time(open_loop(target, draw_requests(MIX, 1001), rate=200, deadline_s=10))
    gaps = [after - before for before, after in pairwise(target.asked)]
    assert sum(gaps) == pytest.approx(5.0, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(1 / 200, rel=0.1)  # a Poisson process's gaps are exponential


def test_a_latency_counts_from_when_a_request_was_due() -> None:
    async def late() -> Outcome:
        due = asyncio.get_running_loop().time()
        await asyncio.sleep(2.0)
        (request,) = draw_requests(MIX, 1)
        return await ask(Recorder(delay_s=0.5), request, deadline_s=10, due=due)

    assert run_in_virtual_time(late()).latency_s == pytest.approx(2.5)


def test_a_late_answer_and_a_wrong_one_are_failures() -> None:
    late = run_in_virtual_time(closed_loop(Recorder(delay_s=60), draw_requests(MIX, 2), 2, deadline_s=0.05))
    assert late.failures == {"deadline": 2}
    assert late.seconds == pytest.approx(0.05)
    small = run_in_virtual_time(closed_loop(Recorder(size=(16, 16)), draw_requests(MIX, 1), 1, deadline_s=10))
    assert small.failures == {"wrong size": 1}
    assert small.outcomes[0].message == "asked for 128x64, got 16x16"


# ---- over RPC


def test_over_rpc_the_stages_are_the_engines(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            target = RpcTarget(client)
            closed = await closed_loop(target, draw_requests(MIX, 6), 2, DEADLINE_S)
            opened = await open_loop(target, draw_requests(MIX, 6), 100, DEADLINE_S)
        for load in (closed, opened):
            assert load.images == 6
            stages = load.seconds_by_stage()
            assert list(stages) == ["latency", "queue", "encode_text", "denoise", "decode", "file", "total", "outside"]
            assert stages["decode"].median == 0.125
            assert 0 < stages["total"].max < stages["latency"].max

    run(test())


class LetsGo(RpcTarget):
    """Lets a rank that holds its steps go on when so many requests were refused."""

    def __init__(self, client: AsyncClient, rank: FakeRank, refusals: int) -> None:
        super().__init__(client)
        self._rank, self._refusals = rank, refusals

    async def generate(self, request: ImageRequest) -> Answer:
        try:
            return await super().generate(request)
        except RequestFailed as error:
            self._refusals -= error.kind == REFUSED
            if self._refusals == 0:
                self._rank.resume()
            raise


def test_over_rpc_a_full_queue_refuses_and_other_errors_fail(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder, limits=Limits(max_queue=2)) as fakes, AsyncClient(fakes.address) as client:
            fakes.ranks[0].hold = True
            load = await closed_loop(LetsGo(client, fakes.ranks[0], 2), draw_requests(MIX, 5), 5, DEADLINE_S)
            assert (load.images, load.failures) == (3, {"refused": 2})  # one had begun, two waited
            target = RpcTarget(client)
            bad = await closed_loop(target, draw_requests(parse_mix("16x16:1:4"), 1), 1, DEADLINE_S)
            assert bad.failures == {"invalid_parameter": 1}
            fakes.ranks[0].hold = True
            late = await closed_loop(target, draw_requests(MIX, 3), 3, deadline_s=0.1)
            assert late.failures == {"deadline": 3}

    run(test())


def test_dispatch_overhead_is_the_part_of_a_tick_without_denoising(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            (overhead,) = await dispatch_overheads(client, draw_requests(parse_mix("64x64:1:10"), 1), DEADLINE_S)
            assert overhead.steps == 10
            assert overhead.denoise_s == 0.25  # as fake ranks say, at once
            assert overhead.tick_s > 0
            assert overhead.share == (overhead.tick_s - 0.25) / overhead.tick_s
            with pytest.raises(ArgumentError, match="steps must be at least 3"):
                await dispatch_overheads(client, draw_requests(parse_mix("64x64:1:2"), 1), DEADLINE_S)
            fakes.ranks[0].hold = True
            with pytest.raises(RequestFailed, match="no answer within"):
                await dispatch_overheads(client, draw_requests(parse_mix("64x64:1:3"), 1), 0.1)

    run(test())


def test_http_overhead_is_the_median_of_the_differences() -> None:
    slow, fast = Recorder(delay_s=0.5), Recorder(delay_s=0.125)
    (request,) = draw_requests(MIX, 1)
    overhead = run_in_virtual_time(http_overhead(slow, fast, request, pairs=3, deadline_s=10))
    assert (overhead.pairs, len(slow.asked), len(fast.asked)) == (3, 4, 4)
    assert (overhead.http_s, overhead.rpc_s) == pytest.approx((0.5, 0.125))
    assert overhead.difference_s == pytest.approx(0.375)
    assert [slow.asked[pair] < fast.asked[pair] for pair in range(4)] == [False, True, False, True]
    with pytest.raises(RequestFailed, match="16x16"):
        run_in_virtual_time(http_overhead(Recorder(size=(16, 16)), fast, request, pairs=1, deadline_s=10))


# ---- over HTTP


class Peer(BaseHTTPRequestHandler):
    """Answers as a server with OpenAI's images API does; every `fails_every`th request with `status` and `body`."""

    server: PeerServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body | {"path": self.path, "key": self.headers["Authorization"]})
            number = len(self.server.bodies)
        width, height = map(int, body["size"].split("x"))
        if self.server.fails_every and number % self.server.fails_every == 0:
            self._answer(self.server.status, self.server.body)
        else:
            image = base64.b64encode(png(width, height)).decode()
            answer = {"created": 0, "data": [{"b64_json": image}]} | self.server.more
            self._answer(200, json.dumps(answer).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class PeerServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, fails_every: int, status: int, body: bytes, more: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), Peer)
        self.fails_every, self.status, self.body, self.more = fails_every, status, body, more
        self.bodies: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def peer(fails_every: int = 0, status: int = 500, body: bytes = b"", **more: Any) -> Iterator[PeerServer]:
    server = PeerServer(fails_every, status, body, more)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def load_peer(server: PeerServer, count: int = 6, fields: str = "krea", **extra: Any) -> Run:
    async def load() -> Run:
        async with HttpTarget(server.url, fields=fields, extra=extra, api_key="sesame") as target:
            return await closed_loop(target, draw_requests(MIX, count), 3, DEADLINE_S)

    return asyncio.run(load())


def test_over_http_a_request_is_what_openais_client_sends_and_the_fields_that_were_chosen() -> None:
    mix = parse_mix("128x64:1:4:2.5")
    expected = {
        "krea": {"seed": 0, "steps": 4, "guidance": 2.5},
        "diffusers": {"seed": 0, "num_inference_steps": 4, "guidance_scale": 2.5},
        "openai": {},
    }
    for fields, own in expected.items():
        with peer() as server:

            async def load(url: str = server.url, fields: str = fields) -> Run:
                async with HttpTarget(url, fields=fields, extra={"model": "x"}, api_key=None) as target:
                    return await closed_loop(target, draw_requests(mix, 1), 1, DEADLINE_S)

            assert asyncio.run(load()).images == 1
        (body,) = server.bodies
        assert body.pop("prompt")
        assert body == own | {
            "path": "/v1/images/generations",
            "key": None,
            "n": 1,
            "size": "128x64",
            "response_format": "b64_json",
            "model": "x",
        }


def test_over_http_a_server_without_timings_has_a_latency_alone() -> None:
    with peer() as server:
        load = load_peer(server)
    assert load.images == 6
    assert list(load.seconds_by_stage()) == ["latency"]
    assert {body["key"] for body in server.bodies} == {"Bearer sesame"}
    with peer(timings={"queue": 0.5, "total": 0.75}) as server:
        stages = load_peer(server).seconds_by_stage()
    assert list(stages) == ["latency", "queue", "total", "outside"]
    assert stages["queue"].mean == 0.5


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, b"later", "refused"),
        (500, b"boom", "HTTP 500"),
        (200, b"no json", "bad answer"),
        (200, b'{"data": []}', "bad answer"),
        (200, b'{"data": [{"b64_json": "AAAA"}]}', "no image"),
    ],
)
def test_over_http_failures_are_counted_by_kind(status: int, body: bytes, kind: str) -> None:
    with peer(fails_every=3, status=status, body=body) as server:
        load = load_peer(server)
    assert (load.images, load.failures) == (4, {kind: 2})


def test_over_http_a_server_that_is_not_there_is_a_failure() -> None:
    with peer() as server:
        pass
    assert load_peer(server, count=1).failures == {"ConnectError": 1}


# ---- the command


def test_the_command_prints_tables_and_complete_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "serve.json"
    with peer(timings={"queue": 0.5, "total": 0.75}) as server:
        arguments = ["--url", server.url, "--mix", "64x64:1:2", "--requests", "6", "--warmup", "2", "--json", str(file)]
        assert main([*arguments, "--compare-concurrency", "1,3", "--extra", "user=me"]) == 0
    assert len(server.bodies) == 2 + 6 + 6
    assert len({body["prompt"] for body in server.bodies}) == 14
    assert {body["user"] for body in server.bodies} == {"me"}
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("1 at once: 6 requests, 6 images, 0 refused, 0 failed; ")
    assert output[1].split() == ["seconds", "mean", "median", "p90", "p99", "max"]
    assert [line for line in output if line.startswith("throughput of 3 at once to 1 at once: ")]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [json.loads(line) for line in output[-3:]]
    assert [line["benchmark"] for line in lines] == ["serve", "serve", "serve_ratio"]
    assert [line["concurrency"] for line in lines] == [1, 3, 3]
    assert lines[2]["throughput_ratio"] == lines[1]["images_per_s"] / lines[0]["images_per_s"]
    assert lines[0]["stages_s"]["queue"]["p99"] == 0.5
    assert lines[0]["command"].startswith("python -m bench.serve --url http://127.0.0.1:")
    assert lines[0]["server"] == {"url": server.url}
    assert lines[0]["hardware"]["cpu"]


def test_the_command_drives_an_engine_over_rpc_and_compares_http_with_it(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes:
            arguments = ["--rpc", fakes.address, "--mix", "64x64:1:2", "--requests", "3"]
            assert await asyncio.to_thread(main, [*arguments, "--concurrency", "2"]) == 0
            assert await asyncio.to_thread(main, [*arguments, "--http-overhead", "--url", server.url]) == 0

    with peer() as server:
        run(test())
    assert len(server.bodies) == 4
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("2 at once: 3 requests, 3 images, 0 refused, 0 failed; ")
    assert output[-2].startswith("HTTP adds ")
    line = json.loads(output[-1])
    assert line["http_s"] > 0
    assert line["rpc_s"] > 0
    assert "difference_s" in line
    assert line["server"] == {"url": server.url, "model": "demo", "tp": 1, "device": "fake"}


def test_the_command_says_which_requests_failed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--mix", "64x64:1:2", "--requests", "6", "--warmup", "0", "--rate", "1000"]
    with peer(fails_every=3, body=b"boom") as server:
        assert main(["--url", server.url, *arguments]) == 1
    output = capsys.readouterr().out
    assert "1000 requests/s: 6 requests, 4 images, 0 refused, 2 failed; " in output
    assert "2 × HTTP 500, the first: boom" in output
    with peer(fails_every=3, status=429) as server:
        assert main(["--url", server.url, *arguments]) == 0
    assert "4 images, 2 refused, 0 failed" in capsys.readouterr().out
    with peer(fails_every=1, body=b"boom") as server:
        assert main(["--url", server.url, *arguments, "--warmup", "1"]) == 1
    assert capsys.readouterr().err == "error: HTTP 500: boom\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency", "0"], "concurrency must be a whole number above 0, got '0'"),
        (["--rate", "inf"], "rate must be a number above 0, got 'inf'"),
        (["--compare-concurrency", "4"], "compare-concurrency must be two or more numbers"),
        (["--rate", "1", "--mix", "64"], "mix must be WIDTHxHEIGHT"),
        (["--rate", "1", "--warmup", "-1"], "warmup must be a whole number of at least 0, got '-1'"),
        (["--rate", "1", "--extra", "x"], "extra must be NAME=VALUE"),
        (["--rate", "1", "--extra", "n=2"], "extra must be a field other than prompt, n, size"),
        (["--rate", "1", "--url", "http://h:x"], "url must be as http://127.0.0.1:30000, got 'http://h:x'"),
        (["--rate", "1", "--url", "127.0.0.1:1"], "url must be as http://127.0.0.1:30000, got '127.0.0.1:1'"),
        (["--rate", "1", "--api-key-variable", "NO_SUCH"], "api-key-variable must be set in the environment"),
        (["--http-overhead", "--url", "http://127.0.0.1:1"], "--http-overhead needs --url and --rpc"),
        (["--overhead", "--url", "http://127.0.0.1:1"], "--url goes with neither --rpc nor --overhead"),
        (["--rate", "1", "--model", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_the_command_names_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_the_command_starts_an_engine_and_stops_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--overhead", "--mix", "64x64:1:4", "--requests", "2", "--device", "cpu"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert any(line.startswith("dispatch overhead: ") for line in output)
    assert any(line.startswith("a preview takes ") for line in output)
    line = json.loads(next(line for line in output if line.startswith("{")))
    assert line["server"] == {"model": "demo", "tp": 1, "device": "cpu"}
    assert [request["steps"] for request in line["requests"]] == [4, 4]
    for request in line["requests"]:
        assert request["tick_s"] > 0
        assert 0 < request["denoise_s"] * request["steps"] < request["total_s"]


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    PIL.new("RGB", (width, height)).save(file, "png")
    return file.getvalue()
