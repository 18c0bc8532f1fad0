"""What the README says about serving is tried: its curl lines, and its lines for the openai package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.demo_server import Server
from tests.launcher.processes import PATIENCE_S, wait_until

README = (Path(__file__).parents[3] / "README.md").read_text()
ADDRESS = "http://127.0.0.1:30000"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_for_a_server_work(server: Server) -> None:
    url = server.http
    assert ADDRESS in README
    (block,) = re.findall(r"```sh\n(curl.*?)```", README, re.DOTALL)
    images, stream, ready = block.replace(ADDRESS, url).split("\n\n")

    def shell(line: str) -> str:
        return subprocess.run(line, shell=True, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout

    wait_until(lambda: json.loads(shell(ready)).get("status") == "ready", "the warm-up's end")
    (asked,) = map(json.loads, re.findall(r"-d '(.*)'", images))
    answer = json.loads(shell(images))
    assert (answer["seed"], answer["size"], len(answer["data"])) == (asked["seed"], asked["size"], asked["n"])
    events = [line.removeprefix("event: ") for line in shell(stream).splitlines() if line.startswith("event: ")]
    assert events[0] == "image_generation.accepted"
    assert events.count("image_generation.partial_image") in (1, 2)  # the end may overtake the last one
    assert events.count("image_generation.progress") >= 1
    assert events[-1] == "image_generation.completed"

    (script,) = re.findall(r"```python\n(import openai.*?)```", README, re.DOTALL)
    script = script.replace(ADDRESS, url) + "print(len(images.data))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == "2\n", done.stderr
