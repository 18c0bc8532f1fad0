"""LoRAs that `user_config` declares: how they are written, and what is loaded and unloaded when they change."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.config.demo_checkpoints import DEMO_LORAS
from engine.errors import ArgumentError, LoraError
from launcher.ray.engine.loras import LoraSet, declared_loras

INK = {"name": "ink", "path": "/loras/ink.safetensors", "strength": 0.8}


class FakeClient:
    """Remembers what was asked of it. `bad` files cannot be loaded."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.bad: set[str] = set()

    async def load_lora(self, name: str, path: str, strength: float) -> None:
        if path in self.bad:
            raise LoraError(f"{path}: is damaged")
        self.done.append(("load", name, path, strength))

    async def unload_lora(self, name: str) -> None:
        self.done.append(("unload", name))


def test_they_are_written_as_on_the_command_line_or_as_maps() -> None:
    as_text = declared_loras({"loras": ["ink=/loras/ink.safetensors:0.8", "demo-outlined"]})
    assert as_text["demo-outlined"].path == str(DEMO_LORAS["demo-outlined"])
    assert as_text == declared_loras({"loras": [INK, {"path": "demo-outlined"}]})
    assert declared_loras({"loras": ["ink.safetensors"]}, "/loras")["ink"].path == "/loras/ink.safetensors"
    assert declared_loras({}) == declared_loras({"loras": None}) == {}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ([INK], "user_config must be a map with loras and nothing else"),
        ({"lora": [INK]}, "user_config must be a map with loras and nothing else"),
        ({"loras": "ink"}, "loras must be a list of [NAME=]PATH[:STRENGTH], or of maps"),
        ({"loras": [INK, INK]}, "two LoRAs are called 'ink'"),
        ({"loras": [INK | {"weight": 1}]}, "loras must be a list"),
        ({"loras": [{"name": "ink"}]}, "loras must be a list"),
        ({"loras": [INK | {"name": "a/b"}]}, "the name of a LoRA must be"),
        ({"loras": [INK | {"strength": 1000}]}, "the strength of a LoRA must be"),
        ({"loras": ["ink.safetensors"]}, "the path of a LoRA must be an absolute path"),
    ],
)
def test_what_is_none_is_refused_with_what_is_allowed(config: Any, sentence: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        declared_loras(config)
    assert sentence in raised.value.message


def test_a_repositorys_name_stays_one_until_a_node_loads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    declared = {"loras": ["someone/ink@v1:0.5", {"path": "someone/pen/b/pen.safetensors"}]}
    for folder in (None, "/nowhere"):
        assert [(lora.name, lora.path) for lora in declared_loras(declared, folder).values()] == [
            ("ink", "someone/ink@v1"),
            ("pen", "someone/pen/b/pen.safetensors"),
        ]
    (tmp_path / "someone/ink@v1").mkdir(parents=True)
    assert declared_loras(declared, str(tmp_path))["ink"].path == f"{tmp_path}/someone/ink@v1"
    (tmp_path / "someone/ink@v1").rmdir()
    monkeypatch.setattr(
        "launcher.requests.lora_files.find_lora", lambda path, most_bytes: f"/cache/{path}" if most_bytes else ""
    )
    client = FakeClient()
    asyncio.run(LoraSet().declare(declared, client))  # type: ignore[arg-type]
    assert [each[2] for each in client.done] == ["/cache/someone/ink@v1", "/cache/someone/pen/b/pen.safetensors"]


def test_only_what_has_changed_is_loaded_and_unloaded() -> None:
    async def run() -> None:
        client, loras = FakeClient(), LoraSet()
        demo = {"path": "demo-outlined"}
        await loras.declare({"loras": [INK, demo]}, client)  # type: ignore[arg-type]
        assert [each[:2] for each in client.done] == [("load", "ink"), ("load", "demo-outlined")]
        client.done.clear()
        await loras.declare({"loras": [INK | {"strength": 0.5}, demo]}, client)  # type: ignore[arg-type]
        assert client.done == [("unload", "ink"), ("load", "ink", INK["path"], 0.5)]
        client.done.clear()
        await loras.declare({"loras": [demo]}, client)  # type: ignore[arg-type]
        assert client.done == [("unload", "ink")]

    asyncio.run(run())


def test_a_file_that_cannot_be_used_is_told_of_and_tried_again() -> None:
    async def run() -> None:
        client, loras = FakeClient(), LoraSet()
        client.bad.add(INK["path"])  # type: ignore[arg-type]
        with pytest.raises(LoraError, match="is damaged"):
            await loras.declare({"loras": [INK, "demo-outlined"]}, client)  # type: ignore[arg-type]
        assert [each[:2] for each in client.done] == [("load", "demo-outlined")]
        client.bad.clear()
        await loras.declare({"loras": [INK, "demo-outlined"]}, client)  # type: ignore[arg-type]
        assert [each[:2] for each in client.done] == [("load", "demo-outlined"), ("load", "ink")]

    asyncio.run(run())
