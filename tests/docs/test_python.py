"""What documents show in Python runs, against ranks that compute nothing."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import krea2
from engine.config.demo_checkpoints import DEMO_LORAS
from launcher.messages.configs import LoraFile
from tests.docs.documents import ROOT
from tests.launcher.fake_ranks import fake_engine, run

SERVER = '"tcp://127.0.0.1:5555"'
LORAS = (LoraFile(name="outlined", path=str(DEMO_LORAS["demo-outlined"])),)


def snippets(document: str) -> list[str]:
    text = (ROOT / document).read_text()
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [snippet for snippet in found if "import openai" not in snippet]


def launcher_of(address: str) -> Callable[..., krea2.Client]:
    signature = inspect.signature(krea2.launch)

    def launch(*args: Any, **options: Any) -> krea2.Client:
        signature.bind(*args, **options)
        return krea2.Client(address)

    return launch


def async_launcher_of(address: str) -> Callable[..., krea2.AsyncClient]:
    signature = inspect.signature(krea2.launch_async)

    def launch_async(*args: Any, **options: Any) -> krea2.AsyncClient:
        signature.bind(*args, **options)
        return krea2.AsyncClient(address)

    return launch_async


@pytest.mark.parametrize("document", ["docs/python.md", "README.md"])
def test_snippets_run_one_after_the_other(
    document: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written = snippets(document)
    assert written

    def execute(address: str) -> None:
        monkeypatch.setattr("launcher.setup.launch.launch", launcher_of(address))
        monkeypatch.setattr("launcher.setup.async_launch.launch_async", async_launcher_of(address))
        namespace: dict[str, Any] = {}
        for snippet in written:
            exec(compile(snippet.replace(SERVER, repr(address)), document, "exec"), namespace)

    async def test() -> None:
        async with fake_engine(run_folder, loras=LORAS) as fakes:
            await asyncio.to_thread(execute, fakes.address)

    run(test())
    assert os.listdir(tmp_path)
    for file in (file for file in tmp_path.rglob("*.*") if file.suffix != ".json"):
        with Image.open(file) as image:
            assert image.size[0] > 0
    if document == "docs/python.md":
        assert json.loads(Image.open("second.png").info["krea2"])["seed"] == 4
        said = capsys.readouterr().out
        assert "<Result: 2 images of 128 × 128, png, seeds 3 to 4, " in said
        assert "out/heart_0.webp" in said
        assert "steps must be between 1 and 200, got 1000 steps" in said
        assert "Accepted(" in said
