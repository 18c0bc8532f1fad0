"""The lines for curl and the Python programs of /docs run as they stand."""

from __future__ import annotations

import asyncio
import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.http_servers import http_server
from tests.launcher.processes import PATIENCE_S

_UNKNOWN = ("/files/", "/v1/loras")  # of what the server does not have, or does not allow


def test_the_snippets_of_every_route_run_as_they_are_shown(run_folder: Path, tmp_path: Path) -> None:
    async def start(*command: str, folder: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"KREA2_API_KEY": "it's secret", "no_proxy": "*"}
        (tmp_path / folder).mkdir(exist_ok=True)
        return await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path / folder, env=environment, capture_output=True, text=True,
            timeout=PATIENCE_S,
        )  # fmt: skip

    async def test() -> None:
        config = {"api_keys": ("it's secret",), "audit_log": str(run_folder / "audit")}
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, **config) as client:
            page = (await client.get("/docs")).text
            for route in page.split("<article ")[1:]:
                path = re.search('data-path="([^"]+)"', route)[1]  # type: ignore[index]
                curl, python = (
                    html.unescape(re.sub("</?span[^>]*>", "", code))
                    for code in re.findall(r'class="snippet".*?<code>(.*?)</code>', route, re.DOTALL)
                )
                assert "secret" not in curl + python
                if any(unknown in f"/{path}" for unknown in _UNKNOWN):
                    continue
                if "body" in python or path == "v1/models":  # those of other routes differ from this one's in the path
                    ended = await start(sys.executable, "-c", python, folder="python")
                    assert (ended.returncode, ended.stderr) == (0, ""), path
                if shutil.which("curl"):
                    ended = await start("sh", "-c", curl, folder="curl")
                    assert (ended.returncode, ended.stderr) == (0, ""), path
                    assert '"error"' not in ended.stdout, path

    run(test())
    with Image.open(tmp_path / "python" / "picture-0.png") as image:
        assert image.size in ((128, 128), (96, 96))  # which is the smallest that the demo was made for
