"""docs/clients.md is held to what the server has, and its examples are tried."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.launcher.fake_ranks import DEADLINE_S
from tests.launcher.http.clients.conftest import NAMES
from tests.launcher.http.clients.tables.rows import drawn, picture
from tests.launcher.http.clients.test_rows import ROWS

DOCS = Path(__file__).parents[4] / "docs"
DOCUMENT = (DOCS / "clients.md").read_text()
ADDRESS = "http://127.0.0.1:30000"


def test_every_route_that_is_named_is_there(url: str) -> None:
    routes = httpx.get(f"{url}/openapi.json", timeout=DEADLINE_S).json()["paths"]
    named = re.findall(r"`(GET|POST) (/[\w/-]+)`", DOCUMENT)
    assert ("POST", "/v1/images/generations") in named
    missing = [f"{method} {path}" for method, path in named if not _is_there(url, method, path, routes)]
    assert not missing


def _is_there(url: str, method: str, path: str, routes: dict[str, dict[str, object]]) -> bool:
    if method == "POST":
        return "post" in routes.get(path, {})
    return httpx.get(url + path, timeout=DEADLINE_S).status_code == 200


def test_every_client_whose_requests_are_tested_is_described() -> None:
    assert not {row.client for row in ROWS if row.client.split("'s ")[0] not in DOCUMENT}


def test_the_names_of_its_command_are_those_of_the_tests() -> None:
    (command,) = re.findall(r"^    krea2 serve .*$", DOCUMENT, re.MULTILINE)
    assert set(re.findall(r"--served-model-name (\S+)", command)) <= set(NAMES)
    assert "--any-model" in command


def test_the_lines_for_the_openai_package_draw(url: str, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(drawn())
    script = "".join(re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL))
    (chat,) = re.findall(r"# (!\[.*)", script)
    script = script.replace(ADDRESS, url) + "print(image.data[0].seed, len(image.data[0].b64_json) > 100, edited.size)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S, cwd=tmp_path
    )
    assert done.stdout == f"{chat}\n27 True 192x128\n", done.stderr


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl or jq is not installed")
def test_the_lines_for_curl_draw(url: str, tmp_path: Path) -> None:
    (lines,) = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    subprocess.run(lines.replace(ADDRESS, url), shell=True, cwd=tmp_path, timeout=DEADLINE_S, check=True)
    picture((tmp_path / "circle.png").read_bytes(), seed=27)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl or jq is not installed")
def test_the_lines_for_curl_draw_over_a_picture(url: str, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(drawn())
    (tmp_path / "mask.png").write_bytes(drawn(mode="L", colour=255))
    (lines,) = re.findall(r"```sh\n(curl.*?edits.*?)```", (DOCS / "operations.md").read_text(), re.DOTALL)
    done = subprocess.run(
        lines.replace(ADDRESS, url), shell=True, cwd=tmp_path, timeout=DEADLINE_S, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    assert picture((tmp_path / "edited.png").read_bytes(), seed=27).size == (192, 128)
    link, _, usage = done.stdout.partition("\n")
    assert picture(httpx.get(link, timeout=DEADLINE_S).content).size == (256, 128)
    assert json.loads(usage)["input_tokens_details"]["image_tokens"] == 12 * 8
