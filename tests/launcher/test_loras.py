"""LoRAs in the front-end, with ranks that compute nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ArgumentError, LoraError
from engine.step import Job, Step
from launcher.async_client import AsyncClient
from launcher.internal import LoraFile
from launcher.limits import Limits
from tests.launcher.fake_ranks import FakeRank, Fakes, fake_engine, run
from tests.launcher.lora_stand_in import fake_adapters, write_adapter

__all__ = ["fake_adapters"]
pytestmark = pytest.mark.usefixtures("fake_adapters")
PROMPT = "a red circle on a blue background"


class LoraRank(FakeRank):
    """Insists on what a step promises: that jobs name what is loaded, and nothing is unloaded that one names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loaded: dict[int, str] = {}
        self._in_flight: dict[int, Job] = {}

    def _answer(self, step: Step) -> None:
        for adapter in step.load:
            assert adapter.adapter_id not in self.loaded
            self.loaded[adapter.adapter_id] = Path(adapter.path).stem
            if Path(adapter.path).stem == "explodes":
                self.fail(LoraError.code, f"{adapter.path}: cannot be read")
                return
            if Path(adapter.path).stem == "too-much":
                self.fail("internal_error", "rank 0: OutOfMemoryError: CUDA out of memory")
                return
        self._in_flight |= {job.job_id: job for job in step.start}
        for job in step.start:
            assert {adapter_id for adapter_id, _ in job.loras} <= self.loaded.keys()
        for job_id in (*step.decode, *step.release):
            self._in_flight.pop(job_id)
        for adapter_id in step.unload:
            assert not any(adapter_id in dict(job.loras) for job in self._in_flight.values())
            del self.loaded[adapter_id]
        super()._answer(step)

    def loras_of(self, job: Job) -> dict[str, float]:
        return {self.loaded[adapter_id]: strength for adapter_id, strength in job.loras}


def jobs_of(rank: FakeRank) -> list[Job]:
    return [job for step in rank.steps for job in step.start]


@asynccontextmanager
async def engine(run_folder: Path, folder: Path | None = None, **config: Any) -> AsyncIterator[tuple[Fakes, Any]]:
    """A front-end whose clients may load from `folder`, and a client."""
    settings = {"make_rank": LoraRank} | config
    if folder is not None:
        settings["lora_dir"] = str(folder)
    async with fake_engine(run_folder, **settings) as fakes, AsyncClient(fakes.address) as client:
        yield fakes, client


def names(loras: Sequence[Any]) -> list[str]:
    return [lora.name for lora in loras]


async def held_by(rank: Any, *expected: str) -> None:
    """Wait until a rank holds these and no others."""
    async with asyncio.timeout(10):
        while sorted(rank.loaded.values()) != sorted(expected):
            await asyncio.sleep(0.01)


def test_a_lora_is_loaded_chosen_listed_and_unloaded(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        write_adapter(tmp_path / "styles" / "ink.safetensors", modules=264, size=5000)
        async with engine(run_folder, tmp_path, tp=2) as (fakes, client):
            loaded = await client.load_lora("Ink", "styles/ink.safetensors", 0.5)
            assert names(loaded.loras) == ["Ink"]
            assert all(rank.loaded for rank in fakes.ranks)  # by the time of the answer
            lora = (await client.status()).loras[0]
            assert (lora.file, lora.strength, lora.modules, lora.bytes) == ("styles/ink.safetensors", 0.5, 264, 2500)
            metrics = (await client.metrics()).decode()
            assert "krea2_loras 1.0" in metrics
            assert "krea2_lora_bytes 2500.0" in metrics
            await client.generate(PROMPT, steps=2, loras=[{"name": "Ink", "strength": -1.5}])
            await client.generate(PROMPT, steps=2, loras=["Ink"])
            await client.generate(PROMPT, steps=2, loras=[{"name": "Ink", "strength": 0}])
            await client.generate(PROMPT, steps=2)
            used = [fakes.ranks[1].loras_of(job) for job in jobs_of(fakes.ranks[1])]
            assert used == [{"ink": -1.5}, {"ink": 0.5}, {}, {}]
            assert names((await client.unload_lora("Ink")).loras) == []
            for rank in fakes.ranks:
                await held_by(rank)
            with pytest.raises(ArgumentError, match=r"loras must be among those that are loaded \(none\), got 'Ink'"):
                await client.generate(PROMPT, loras=["Ink"])
            with pytest.raises(ArgumentError, match="name must be that of a LoRA that is loaded, got 'Ink'"):
                await client.unload_lora("Ink")
            assert "krea2_lora_bytes 0.0" in (await client.metrics()).decode()

    run(test())


def test_those_of_the_configuration_are_loaded_before_the_first_job(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        loras = tuple(
            LoraFile(name=name.upper(), path=str(write_adapter(tmp_path / f"{name}.safetensors")), strength=strength)
            for name, strength in (("a", 1.0), ("b", 0.25))
        )
        async with engine(run_folder, loras=loras) as (fakes, client):
            await client.generate(PROMPT, steps=1, loras=["B", "A"])
            rank = fakes.ranks[0]
            assert rank.loras_of(jobs_of(rank)[0]) == {"b": 0.25, "a": 1.0}
            assert [len(step.load) for step in rank.steps[:3]] == [1, 1, 0]
            listed = await client.loras()
            assert ([lora.file for lora in listed.loras], listed.merged) == (["a.safetensors", "b.safetensors"], ())
            assert not listed.loadable
            with pytest.raises(ArgumentError, match="clients may load LoRAs only if the server has a --lora-dir"):
                await client.load_lora("C", "a.safetensors")

    run(test())


def test_what_is_used_is_gone_from_the_list_at_once_and_from_the_ranks_when_it_is_done(
    run_folder: Path, tmp_path: Path
) -> None:
    async def test() -> None:
        write_adapter(tmp_path / "old.safetensors")
        write_adapter(tmp_path / "new.safetensors")
        async with engine(run_folder, tmp_path) as (fakes, client):
            await client.load_lora("style", "old.safetensors")
            rank = fakes.ranks[0]
            rank.hold = True
            sent = len(rank.steps)
            calls = [
                asyncio.create_task(client.generate(PROMPT, steps=3, loras=["style"], request_id=name))
                for name in ("ends", "is cancelled")
            ]
            await rank.has_steps(sent + 2)
            assert names((await client.unload_lora("style")).loras) == []
            rank.hold = False
            loading = asyncio.create_task(client.load_lora("style", "new.safetensors"))  # the name is free
            await client.cancel("is cancelled")
            rank.release(2)
            await loading
            await client.generate(PROMPT, steps=1, loras=["style"])
            assert (await calls[0]).seeds
            await held_by(rank, "new")
            assert rank.loras_of(jobs_of(rank)[-1]) == {"new": 1.0}
            await asyncio.gather(*calls, return_exceptions=True)

    run(test())


def test_all_are_loaded_again_before_what_lost_ranks_had(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        for name in ("a", "b", "c"):
            write_adapter(tmp_path / f"{name}.safetensors")
        async with engine(run_folder, tmp_path, replace_ranks=True, tp=2) as (fakes, client):
            for name in ("a", "b", "c"):
                await client.load_lora(name, f"{name}.safetensors")
            for rank in fakes.ranks:
                rank.hold = True
            sent = len(fakes.ranks[0].steps)
            call = asyncio.create_task(client.generate(PROMPT, steps=3, loras=["a", "b"]))
            await fakes.ranks[0].has_steps(sent + 1)
            await client.unload_lora("a")  # which the request still needs
            await client.unload_lora("c")
            fakes.ranks[0].fail("rank_failed", "rank 1: lost")
            await fakes.has_generation(1)
            assert (await call).attempt == 2
            rank = fakes.ranks[0]
            await held_by(rank, "b")
            assert [[Path(adapter.path).stem for adapter in step.load] for step in rank.steps[:3]] == [["a"], ["b"], []]
            assert names((await client.loras()).loras) == ["b"]

    run(test())


@pytest.mark.parametrize(("name", "generations"), [("explodes", 1), ("too-much", 2)])
def test_a_file_that_ranks_cannot_load_is_given_up_and_the_server_goes_on(
    run_folder: Path, tmp_path: Path, name: str, generations: int
) -> None:
    async def test() -> None:
        write_adapter(tmp_path / f"{name}.safetensors")
        write_adapter(tmp_path / "fine.safetensors")
        async with engine(run_folder, tmp_path, replace_ranks=True) as (fakes, client):
            await client.load_lora("fine", "fine.safetensors")
            rank = fakes.ranks[0]
            rank.hold = True
            loading = asyncio.create_task(client.load_lora("bad", f"{name}.safetensors"))
            await rank.has_steps(2)
            using = asyncio.create_task(client.generate(PROMPT, loras=["bad"]))
            await rank.has_steps(3)
            rank.release()
            with pytest.raises(LoraError, match=rf"^{name}.safetensors: the ranks could not load it: ") as error:
                await loading
            assert str(tmp_path) not in str(error.value)
            with pytest.raises(LoraError, match="the ranks could not load it"):
                await using
            assert (await client.generate(PROMPT, steps=1, loras=["fine"])).seeds
            status = await client.status()
            assert (status.restarts, names(status.loras)) == (generations, ["fine"])

    run(test())


def test_what_does_not_fit_beside_a_picture_or_beside_what_waits_is_refused(run_folder: Path, tmp_path: Path) -> None:
    def small(*args: Any, **kwargs: Any) -> FakeRank:
        return LoraRank(*args, memory={"weights": 1, "free": 120_000_000}, **kwargs)

    async def test() -> None:
        write_adapter(tmp_path / "huge.safetensors", size=2**30)
        write_adapter(tmp_path / "large.safetensors", size=60_000_000)
        async with engine(run_folder, tmp_path, make_rank=small) as (fakes, client):
            with pytest.raises(LoraError, match=r"needs 1\.07 GB on rank 0, which has 0\.12 GB free"):
                await client.load_lora("huge", "huge.safetensors")
            rank = fakes.ranks[0]
            rank.hold = True
            needs_much = {"width": 512, "height": 384}
            call = asyncio.create_task(client.generate(PROMPT, steps=1, **needs_much))
            await rank.has_steps(1)
            with pytest.raises(LoraError, match="requests that wait would not fit beside it: width × height 512 × 384"):
                await client.load_lora("large", "large.safetensors")
            rank.hold = False
            rank.release()
            await call
            await client.load_lora("large", "large.safetensors")
            with pytest.raises(ArgumentError, match="512 × 384 needs about"):
                await client.generate(PROMPT, steps=1, **needs_much)
            await client.unload_lora("large")
            await held_by(rank)
            assert (await client.generate(PROMPT, steps=1, **needs_much)).seeds

    run(test())


def test_files_that_are_no_loras_are_refused_and_the_name_stays_free(run_folder: Path, tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "text.safetensors").write_text("hello")
        write_adapter(tmp_path / "nan.safetensors", is_finite=False)
        write_adapter(tmp_path / "more.safetensors", skipped=["x.lora_A.weight"])
        os.mkfifo(tmp_path / "pipe.safetensors")
        (tmp_path / "folder").mkdir()
        write_adapter(tmp_path / "fine.safetensors")
        write_adapter(tmp_path / "peft" / "adapter_model.safetensors")
        async with engine(run_folder, tmp_path) as (fakes, client):
            for path, message in (
                ("text.safetensors", "text.safetensors: is not a Krea 2 LoRA"),
                ("nan.safetensors", "a.lora_A.weight: holds values that are not finite"),
                ("more.safetensors", "tensors that are for no layer of Krea 2: x.lora_A.weight"),
                ("pipe.safetensors", "pipe.safetensors: is not a file"),
                ("folder", "No such file or directory"),
                ("missing.safetensors", "No such file or directory"),
                ("x" * 300, "File name too long"),
            ):
                with pytest.raises(LoraError, match=message) as refusal:
                    await client.load_lora("style", path)
                assert str(tmp_path) not in refusal.value.message, path
            assert fakes.ranks[0].steps == []
            await client.load_lora("style", "fine.safetensors")
            await client.load_lora("from peft", "peft")

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
                (["b"], r"loras must be among those that are loaded \(a, é 2\), got 'b'"),
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
        from launcher import lora_service

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
