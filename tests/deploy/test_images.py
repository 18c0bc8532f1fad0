"""The Dockerfile and the compose file: linted, and held to what the server takes and answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.http.page_files import PAGE
from launcher.licence.notice import notice
from tests.deploy.conftest import ROOT
from tests.deploy.served import served
from tests.launcher.processes import PATIENCE_S

DOCKERFILE, COMPOSE = ROOT / "deploy" / "Dockerfile", ROOT / "deploy" / "compose.yaml"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with its text in one line."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def last(name: str) -> str:
    return [rest for each, rest in instructions() if each == name][-1]


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=Path(sys.executable).parent)
    if program is None and sys.platform != "linux":
        pytest.skip("hadolint's package is for Linux")
    assert program is not None, "hadolint is missing, which make test installs"
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout
    assert not done.stdout


def test_it_runs_as_somebody_else_than_root_and_says_where_it_writes() -> None:
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last("USER"))
    home = dict(each.split("=") for each in last("ENV").split())["HOME"]
    assert home in json.loads(last("VOLUME"))
    caches = [value for value in re.findall(r"=(/\S+)", last("ENV")) if value != home]
    assert caches
    assert all(value.startswith(f"{home}/") for value in caches)


def test_it_gets_the_pinned_releases_and_no_tests() -> None:
    installs = [text for name, text in instructions() if name == "RUN" and "pip --python" in text]
    assert len(installs) == 2
    assert "--constraint constraints.txt" in installs[0]
    assert "--no-deps" in installs[1]
    assert "test" not in last("COPY") + "".join(installs)


def test_all_that_is_copied_is_let_through() -> None:
    """And nothing else than what the package is made of."""
    through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        file for name, text in instructions() if name == "COPY" and "--from" not in text for file in text.split()[:-1]
    }
    assert {file.split("/")[0] for file in copied - {"."}} <= through
    assert through == {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "krea2.py", "engine", "launcher"}
    assert all((ROOT / file).exists() for file in through)
    assert PAGE.is_relative_to(ROOT / "launcher")


def test_it_has_the_licence_and_the_notice() -> None:
    *files, folder = next(text for name, text in instructions() if name == "COPY" and "NOTICE" in text).split()
    assert folder.startswith("/usr/share/doc/")
    assert (ROOT / "LICENSE").read_text() in (texts := [(ROOT / file).read_text() for file in files])
    assert notice() in texts


def test_it_starts_a_server_that_takes_sigterm() -> None:
    tini, dashes, krea2 = json.loads(last("ENTRYPOINT"))
    assert (tini, dashes, krea2) == ("tini", "--", "krea2")
    options = served(json.loads(last("CMD")))
    assert options["host"] == "0.0.0.0"
    assert str(options["port"]) == last("EXPOSE")
    assert last("STOPSIGNAL") == "SIGTERM"


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" and self.server.is_well else 503)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(PATIENCE_S)


def test_the_health_check_tells_a_server_that_answers_from_one_that_does_not(server: HTTPServer) -> None:
    python, *arguments = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    assert python == "python"
    arguments[1] = arguments[1].replace("30000", str(server.server_port))

    def check() -> int:
        proxy = {"http_proxy": "http://127.0.0.1:9"}  # where nobody listens: it is not asked
        return subprocess.run(
            [sys.executable, *arguments], env=proxy, timeout=PATIENCE_S, capture_output=True
        ).returncode

    server.is_well = True  # type: ignore[attr-defined]
    assert check() == 0
    server.is_well = False  # type: ignore[attr-defined]
    assert check() != 0
    arguments[1] = arguments[1].replace(str(server.server_port), "9")
    assert check() != 0


def compose() -> dict[str, Any]:
    """The services, each with the lines that they share."""
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return services


def test_the_compose_file_is_what_its_specification_says() -> None:
    check = [
        str(Path(sys.executable).parent / "check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
        str(COMPOSE),
    ]
    done = subprocess.run(check, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["krea2", "demo"])
def test_a_service_has_little_and_ends_in_its_time(name: str) -> None:
    service = compose()[name]
    options = served([re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", each) for each in service["command"]])
    assert int(service["stop_grace_period"].removesuffix("s")) >= options["drain_s"] + 10
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [each for each in service["tmpfs"] if each.startswith("/tmp:")]
    home = dict(each.split("=") for each in last("ENV").split())["HOME"]
    assert f"cache:{home}" in service["volumes"]
    if (audit := options["audit_log"]) is not None:
        (folder,) = [each.partition(":")[2] for each in service["volumes"] if each.startswith("audit:")]
        assert folder in json.loads(last("VOLUME"))
        assert audit.startswith(f"{folder}/")
    (port,) = service["ports"]
    assert port.endswith(f":30000:{options['port']}")
    assert port.startswith(("127.0.0.1:", "${KREA2_ADDRESS:-127.0.0.1}:"))
    assert options["insecure"] == (name == "demo")  # which nobody but this machine reaches
    assert ("KREA2_API_KEY" in service.get("environment", {})) == (name == "krea2")
