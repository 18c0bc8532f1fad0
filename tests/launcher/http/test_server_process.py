"""`krea2 serve` with its HTTP process: what it prints, what happens when a process dies, and what is left."""

from __future__ import annotations

import base64
import io
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from subprocess import Popen
from typing import Any

import httpx
import pytest
from PIL import Image

from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, LaunchError
from launcher.cli.main import commands
from launcher.http.server_process import check_http, listen
from launcher.messages.configs import HttpConfig
from launcher.messages.limits import Limits
from tests.launcher.conftest import Krea2
from tests.launcher.http_servers import PATH, PROMPT
from tests.launcher.processes import PATIENCE_S, Marked, read_log, wait_until

# Hold images behind urls for a moment.
BRIEFLY = """
import sys
if "_http" in sys.orig_argv:
    from launcher.http.workers import held_files
    held_files.HELD_S = held_files.SWEEP_S = 0.5
"""
BODY = {"prompt": PROMPT, "size": "64x64", "steps": 2, "seed": 1}


def start(marked: Marked, *arguments: str) -> tuple[Popen[str], str]:
    """A server of hollow ranks and its url. Its log goes to a file `log`."""
    marked.use_hollow_ranks()
    with (marked.folder / "log").open("w") as log:
        process = marked.start_krea2("serve", "--device", "cpu", "--port", "0", *arguments, stderr=log)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("http: http://127.0.0.1:"), (line, (marked.folder / "log").read_text())
    assert process.stdout.readline().startswith("rpc: ")
    return process, line.removeprefix("http: ").strip()


def http_config(**options: Any) -> HttpConfig:
    return HttpConfig(engine=EngineConfig(), limits=Limits(), **options)


def image(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))


def test_it_makes_images_comes_back_when_it_is_killed_and_leaves_nothing(marked: Marked) -> None:
    marked.run_first(BRIEFLY)
    process, url = start(marked)
    log = marked.folder / "log"
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        wait_until(lambda: client.get("/ready").status_code == 200, "readiness")
        first = image(client.post(PATH, json=BODY, headers={"X-Request-ID": "the-first"}))
        assert (first.format, first.size) == ("PNG", (64, 64))
        assert client.post(PATH, json=BODY | {"response_format": "url"}).status_code == 200
        wait_until(lambda: not list(marked.folder.glob("krea2-*/images/*")), "the end of its time")

    def of_the_first() -> list[tuple[str, str, int]]:
        found = [entry for entry in read_log(log) if entry.get("request_id") == "the-first" and "path" in entry]
        return [(entry["method"], entry["path"], entry["status"]) for entry in found]

    wait_until(lambda: of_the_first() == [("POST", PATH, 200)], "its line in the log")
    (killed,) = marked.wait_for("_http", 1)
    killed.send_signal(signal.SIGKILL)
    wait_until(lambda: [found.pid for found in marked.alive("_http")] not in ([], [killed.pid]), "another HTTP process")
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        wait_until(lambda: client.get("/ready").status_code == 200, "readiness")
        assert image(client.post(PATH, json=BODY)).tobytes() == first.tobytes()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    marked.expect_nothing_left()
    assert of_the_first() == [("POST", PATH, 200)]
    assert any(entry["event"] == "http process lost" for entry in read_log(log))


def test_the_death_of_one_of_several_processes_leaves_the_other_and_all_that_they_share(marked: Marked) -> None:
    process, url = start(marked, "--http-workers", "2")

    def ask(method: str, path: str, **options: Any) -> httpx.Response:
        """On a connection of its own, which either process may accept."""
        return httpx.request(method, url + path, timeout=PATIENCE_S, **options)

    def answered_by(worker: int) -> bool:
        assert (found := ask("GET", link)).content == file
        assert found.headers["Content-Type"] == "image/png"
        return any(entry.get("path") == link and entry["worker"] == worker for entry in read_log(marked.folder / "log"))

    def counted(request: str) -> float:
        """How many of these all processes have counted, each of them right after its answer."""
        text = ask("GET", "/metrics").text
        counts = dict(re.findall(r'^krea2_http_requests_total{method="(.*",route=".*)",status="200"} (.*)', text, re.M))
        return float(counts.get(request, 0.0))

    first = marked.wait_for("_http", 2)
    wait_until(lambda: ask("GET", "/ready").status_code == 200, "readiness")
    answer = ask("POST", PATH, json=BODY | {"response_format": "url"})
    link = answer.json()["data"][0]["url"].removeprefix(url)
    file = ask("GET", link).content
    for worker in (0, 1):
        wait_until(lambda worker=worker: answered_by(worker), f"an answer of worker {worker}")
    first[0].kill()
    for _ in range(20):
        assert ask("GET", link).content == file
        assert ask("GET", "/v1/models").json()["data"][0]["created"] > 0
    wait_until(lambda: len(marked.alive("_http")) == 2, "another HTTP process")
    wait_until(lambda: ask("GET", "/ready").status_code == 200, "readiness")
    wait_until(lambda: counted('GET",route="/v1/models') == 20, "the count of all answers")
    assert counted(f'POST",route="{PATH}') == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    marked.expect_nothing_left()


def test_what_runs_when_it_is_stopped_is_still_answered(marked: Marked) -> None:
    (drain_s,) = (parameter for parameter in commands.commands["serve"].params if parameter.name == "drain_s")
    assert drain_s.default > 0
    process, url = start(marked, "--drain-s", str(PATIENCE_S))
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client, ThreadPoolExecutor() as threads:
        wait_until(lambda: client.get("/ready").status_code == 200, "readiness")
        rank = marked.rank(0)
        rank.suspend()
        first = threads.submit(client.post, PATH, json=BODY)
        wait_until(lambda: client.get("/ready").json()["running"] == 1, "the first step")
        process.send_signal(signal.SIGTERM)
        # also on connections that come after it
        wait_until(lambda: httpx.get(f"{url}/ready", timeout=PATIENCE_S).status_code == 503, "the end of readiness")
        refused = httpx.post(url + PATH, json=BODY, timeout=PATIENCE_S)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_unavailable")
        rank.resume()
        assert image(first.result(PATIENCE_S)).size == (64, 64)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    marked.expect_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_http_ends_with_the_server_however_that_ends(marked: Marked, number: signal.Signals) -> None:
    marked.use_hollow_ranks()
    process = marked.start_krea2("serve", "--device", "cpu", "--port", "0")
    marked.wait_for("_http", 1)  # before the engine is ready
    process.send_signal(number)
    wait_until(lambda: not marked.alive(), "the end of all processes")


def test_a_port_in_use_is_one_line_and_nothing_runs(krea2: Krea2) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, stdout, stderr = krea2("serve", "--port", str(port))
    assert (code, stdout) == (1, "")
    taken_by = "Address already in use; choose another --port, or 0 for any that is free"
    assert stderr == f"error: cannot listen on 127.0.0.1:{port}: {taken_by}\n"


def test_a_host_that_others_reach_needs_a_key_or_to_be_insecure(krea2: Krea2) -> None:
    code, _, stderr = krea2("serve", "--host", "0.0.0.0", "--port", "0")
    assert code == 2
    assert stderr.startswith("error: --host 0.0.0.0 can be reached from other machines")
    for host, has_keys, insecure, warns in (
        ("0.0.0.0", True, False, False),
        ("0.0.0.0", False, True, True),
        ("::", True, True, False),
        ("localhost", False, False, False),
        ("::1", False, False, False),
    ):
        keys = ("key",) if has_keys else ()
        assert check_http(http_config(host=host, api_keys=keys), insecure=insecure) is warns
    with pytest.raises(ArgumentError, match="host :: can be reached"):
        check_http(http_config(host="::"), insecure=False)


def test_ports_and_hosts_that_cannot_be() -> None:
    with pytest.raises(ArgumentError, match="port must be between 0 and 65535, got 65536"):
        listen("127.0.0.1", 65536)
    with pytest.raises(LaunchError, match=r"cannot listen on \[::ffff:1:2:3\]:0: "):
        listen("::ffff:1:2:3", 0)


def test_an_answer_of_two_packets_does_not_wait_for_an_acknowledgement() -> None:
    """Which would add 40 ms to every one: `python -m bench.serve --http-overhead` times it."""
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--api-key", "", "--api-key must not be empty"),
        ("--served-model-name", "", "--served-model-name must not be empty"),
        ("--served-model-name", "gpt-image-1,", "--served-model-name must not be empty"),
        ("--allowed-host", "images.example:80", "--allowed-host must be a host name or address without port, as "),
        (
            "--allow-origin",
            "https://app.example/",
            "--allow-origin must be * or scheme://host[:port] without a path, as https://app.example, got ",
        ),
        (
            "--public-url",
            "images.example",
            "--public-url must be http:// or https://, a host, and a path or none, got ",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(krea2: Krea2, option: str, value: str, message: str) -> None:
    code, _, stderr = krea2("serve", "--port", "0", option, value)
    assert code == 2
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["images.example", "localhost", "a_b", "10.0.0.1", "::1", "x" * 253])
def test_names_and_addresses_are_hosts(name: str) -> None:
    check_http(http_config(allowed_hosts=(name,)), insecure=False)


@pytest.mark.parametrize("name", ["", "*", "images.example:80", "http://images.example", "a b", ".a", "x" * 254, "é"])
def test_anything_else_is_not_a_host(name: str) -> None:
    with pytest.raises(ArgumentError, match="allowed_host must be a host name or address without port"):
        check_http(http_config(allowed_hosts=(name,)), insecure=False)


@pytest.mark.parametrize(
    "url", ["https://images.example", "http://images.example:8080/", "https://[::1]:1/krea/2", "http://10.0.0.1"]
)
def test_links_may_begin_with_these(url: str) -> None:
    check_http(http_config(public_url=url), insecure=False)


@pytest.mark.parametrize(
    "url",
    [
        "", "images.example", "ftp://images.example", "https://", "https:///path", "https://a:b@images.example",
        "https://images.example?x", "https://images.example#x", "https://images.example:99999", "https://a b",
        "https://a\n.example", "https://[::1", "https://é.example", "https://a.example:0", "https://*.example",
    ],
)  # fmt: skip
def test_links_cannot_begin_with_those(url: str) -> None:
    with pytest.raises(ArgumentError, match="public_url must be http:// or https://, a host, and a path or none"):
        check_http(http_config(public_url=url), insecure=False)


def test_the_public_url_is_where_the_page_is() -> None:
    for url in ("https://images.example/v1", "https://images.example/krea2/v1/"):
        with pytest.raises(ArgumentError, match="public_url must be where the page is, without /v1 at its end, got "):
            check_http(http_config(public_url=url), insecure=False)
