"""What clients may load, and under which names."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from engine.config.demo_checkpoints import DEMO_LORAS
from engine.errors import ArgumentError, LoraError
from launcher.messages.configs import LoraFile
from launcher.messages.limits import Limits
from launcher.messages.message_parts import MadeFor
from tests.launcher.fake_ranks import run
from tests.launcher.lora_stand_in import engine, fake_adapters, write_adapter

__all__ = ["fake_adapters"]
pytestmark = pytest.mark.usefixtures("fake_adapters")
PROMPT = "a red circle on a blue background"


def test_files_that_are_no_loras_are_refused_and_the_name_stays_free(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "text.safetensors").write_text("hello")
        write_adapter(tmp_path / "nan.safetensors", is_finite=False)
        write_adapter(tmp_path / "more.safetensors", skipped=["x.lora_A.weight"])
        os.mkfifo(tmp_path / "pipe.safetensors")
        (tmp_path / "folder").mkdir()
        write_adapter(tmp_path / "fine.safetensors")
        write_adapter(tmp_path / "peft" / "adapter_model.safetensors")
        write_adapter(tmp_path / "diffusers" / "pytorch_lora_weights.safetensors")
        for name in ("a", "b"):
            write_adapter(tmp_path / "styles" / f"{name}.safetensors")
        async with engine(run_folder, tmp_path) as (fakes, client):
            for path, message in (
                ("text.safetensors", "text.safetensors: is not a Krea 2 LoRA"),
                ("nan.safetensors", "a.lora_A.weight: holds values that are not finite"),
                ("more.safetensors", "tensors that are for no layer of Krea 2: x.lora_A.weight"),
                ("pipe.safetensors", "pipe.safetensors: is not a file"),
                ("folder", "^folder: is a folder without a safetensors file"),
                ("styles", "^styles: is a folder of several files: name one of a.safetensors, b.safetensors$"),
                ("missing.safetensors", "No such file or directory"),
                ("x" * 300, "File name too long"),
            ):
                with pytest.raises(LoraError, match=message) as refusal:
                    await client.load_lora("style", path)
                assert str(tmp_path) not in refusal.value.message, path
            assert fakes.ranks[0].steps == []
            await client.load_lora("style", "fine.safetensors")
            await client.load_lora("from peft", "peft")
            await client.load_lora("from diffusers", "diffusers/")

    run(test())


def test_nothing_outside_of_the_folder_can_be_loaded_or_found_out(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        folder = tmp_path / "loras"
        write_adapter(tmp_path / "secret.safetensors")
        write_adapter(tmp_path / "loras-of-others" / "secret.safetensors")
        write_adapter(folder / "mine.safetensors")
        (folder / "out").symlink_to(tmp_path)
        (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
        (folder / "dangling.safetensors").symlink_to(tmp_path / "missing.safetensors")
        (folder / "loop.safetensors").symlink_to("loop.safetensors")
        (folder / "inside.safetensors").symlink_to("mine.safetensors")
        (folder / "others").symlink_to(tmp_path / "loras-of-others")
        (folder / "peft").mkdir()
        (folder / "peft" / "adapter_model.safetensors").symlink_to(tmp_path / "secret.safetensors")
        async with engine(run_folder, folder) as (fakes, client):
            for path in (
                "../secret.safetensors",
                "../missing.safetensors",
                "../loras-of-others/secret.safetensors",
                "x/../../secret.safetensors",
                str(tmp_path / "secret.safetensors"),
                str(folder / "mine.safetensors"),
                "out/secret.safetensors",
                "link.safetensors",
                "dangling.safetensors",
                "others",
                "peft",
                "mine.safetensors\0",
                "",
            ):
                with pytest.raises(ArgumentError, match="path must be relative to the server's --lora-dir") as refusal:
                    await client.load_lora("x", path)
                assert refusal.value.parameter == "path"
            with pytest.raises(LoraError, match="symbolic links"):
                await client.load_lora("x", "loop.safetensors")
            assert fakes.ranks[0].steps == []
            await client.load_lora("x", "inside.safetensors")

    run(test())


def test_the_demos_own_is_loaded_by_its_name_alone(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        shipped = write_adapter(tmp_path / "shipped" / "outlined.safetensors")
        monkeypatch.setitem(DEMO_LORAS, "demo-outlined", shipped)
        folder = tmp_path / "loras"
        write_adapter(folder / "a.safetensors")
        async with engine(run_folder, folder) as (_, client):
            await client.load_lora("demo-outlined")
            await client.load_lora("Lines", "demo-outlined", 0.5)
            listed = (await client.load_lora("a.safetensors")).loras
            assert [(lora.name, lora.file, lora.strength) for lora in listed] == [
                ("demo-outlined", "demo-outlined", 1.0),
                ("Lines", "demo-outlined", 0.5),
                ("a.safetensors", "a.safetensors", 1.0),
            ]
            write_adapter(shipped, skipped=["x"])
            with pytest.raises(LoraError, match=r"^demo-outlined: has tensors that are for no layer"):
                await client.load_lora("again", "demo-outlined")

    run(test())


def test_a_file_is_called_the_same_whoever_loads_it(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, shipped = tmp_path / "loras", write_adapter(tmp_path / "shipped" / "outlined.safetensors")
    monkeypatch.setitem(DEMO_LORAS, "demo-outlined", shipped)
    write_adapter(folder / "styles" / "ink.safetensors")
    (folder / "link.safetensors").symlink_to("styles/ink.safetensors")
    write_adapter(folder / "peft" / "adapter_model.safetensors")
    (tmp_path / "way").symlink_to(folder)
    elsewhere = LoraFile(name="elsewhere", path=str(write_adapter(tmp_path / "elsewhere.safetensors")))
    paths = ("styles/ink.safetensors", "link.safetensors", "peft")
    started = [LoraFile(name=f"-{path[:3]}", path=f"{tmp_path}/way/./{path}") for path in paths]
    started += [LoraFile(name="-demo", path=str(shipped)), elsewhere]

    async def test() -> None:
        async with engine(run_folder, folder, loras=tuple(started)) as (fakes, client):
            for path in (*paths, "demo-outlined"):
                await client.load_lora(path[:3], f"./{path}" if path in paths else path)
            files = [lora.file for lora in (await client.loras()).loras]
            assert files == [*paths, "demo-outlined", "elsewhere.safetensors", *paths, "demo-outlined"]
            # where a link lies, and not what it leads to: beside it is what says its scale
            own = ["ink", "link", "adapter_model", "outlined"]
            assert list(fakes.ranks[0].loaded.values()) == [*own, "elsewhere", *own]

    run(test())


def test_names_counts_and_strengths_are_limited(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        write_adapter(tmp_path / "a.safetensors")
        limits = Limits(max_loras=2, max_request_loras=1)
        async with engine(run_folder, tmp_path, limits=limits) as (_, client):
            for name in ("", " a", "a/b", "a\n", "..", "x" * 101):
                with pytest.raises(ArgumentError, match="the name of a LoRA must be 1 to 100 printable characters"):
                    await client.load_lora(name, "a.safetensors")
            with pytest.raises(ArgumentError, match=r"strength must be between -10 and 10, got nan"):
                await client.load_lora("a", "a.safetensors", float("nan"))
            both = await asyncio.gather(
                *(client.load_lora("a", "a.safetensors") for _ in range(2)), return_exceptions=True
            )
            assert sorted(type(answer).__name__ for answer in both) == ["ArgumentError", "Loras"]
            await client.load_lora("é 2", "a.safetensors")
            with pytest.raises(ArgumentError, match="2 LoRAs are loaded, and more are not allowed"):
                await client.load_lora("c", "a.safetensors")
            for loras, message in (
                (["a", "é 2"], "loras must be at most 1, got 2"),
                (["b"], r"loras must be among the loaded ones \(a, é 2\), got 'b'"),
                ([{"name": "a", "strength": 11}], r"loras\[0\]\.strength must be between -10 and 10, got 11"),
                ([{"name": "a", "strength": "1"}], r"loras\[0\]\.strength must be a number or null, got text"),
                ([{"name": 3}], r"loras\[0\]\.name must be text, got a whole number"),
                ([{"nam": "a"}], r"loras must be a list of \{\"name\": …, \"strength\": …\} or of names"),
                ("a", "loras must be a list of"),
            ):
                with pytest.raises(ArgumentError, match=message) as refusal:
                    await client.generate(PROMPT, loras=loras)
                assert refusal.value.parameter == "loras"

    run(test())


def test_an_unreadable_disk_keeps_nobody_waiting_for_ever(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        from launcher.frontend import lora_service

        write_adapter(tmp_path / "a.safetensors")
        over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hang(*_: Any, **__: Any) -> None:
            asyncio.run_coroutine_threadsafe(over.wait(), loop).result()

        monkeypatch.setattr(lora_service, "open_lora", hang)
        monkeypatch.setattr(lora_service, "_READ_S", 0.2)
        async with engine(run_folder, tmp_path) as (_, client):
            loading = [asyncio.create_task(client.load_lora(name, "a.safetensors")) for name in "ab"]
            assert (await client.generate(PROMPT, steps=1)).seeds
            for call in loading:
                with pytest.raises(LoraError, match=r"a\.safetensors: could not be read within 0\.2 s"):
                    await call
            over.set()

    run(test())


def test_a_lora_brings_the_schedule_that_it_was_made_for(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        header = {"krea2.sigmas": "[1, 0.6, 0.2]", "krea2.mu": "0"}
        write_adapter(tmp_path / "fast.safetensors", header=header)
        write_adapter(tmp_path / "plain.safetensors")
        async with engine(run_folder, tmp_path) as (fakes, client):
            for name in ("fast", "plain"):
                loras = await client.load_lora(name, f"{name}.safetensors")
            assert loras.made_for == {"fast": MadeFor(steps=3, sigmas=(1.0, 0.6, 0.2), mu=0.0)}
            drawn = await client.generate(PROMPT, loras=["fast", "plain"])
            assert any("for which LoRA fast was made" in each for each in drawn.warnings)
            assert drawn.made_for == loras.made_for["fast"]
            assert (await client.generate(PROMPT, loras=["fast"], steps=2)).made_for is None
            await client.generate(PROMPT, loras=["plain"], sigmas=[0.9, 0.4], mu=0.1)
            await client.generate(PROMPT)
            jobs = [job for step in fakes.ranks[0].steps for job in step.start]
            assert [(job.steps, job.sigmas, job.mu) for job in jobs] == [
                (3, (1.0, 0.6, 0.2), 0.0),
                (2, None, None),
                (2, (0.9, 0.4), 0.1),
                (8, None, None),
            ]

    run(test())
