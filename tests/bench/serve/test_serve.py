"""python -m bench.serve: on an engine whose ranks are fake, and a stand-in for a peer's HTTP server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from bench.serve.__main__ import main
from tests.bench.serve.stand_ins import peer
from tests.launcher.fake_ranks import fake_engine, run


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
