"""LoRAs in the front-end, with ranks that compute nothing: chosen, in use, lost with the ranks, too large."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ArgumentError, CancelledError, LoraError
from engine.step import Job
from launcher.messages.configs import LoraFile
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, run
from tests.launcher.lora_stand_in import LoraRank, engine, fake_adapters, held_by, names, write_adapter

__all__ = ["fake_adapters"]
pytestmark = pytest.mark.usefixtures("fake_adapters")
PROMPT = "a red circle on a blue background"


def jobs_of(rank: FakeRank) -> list[Job]:
    return [job for step in rank.steps for job in step.start]


def test_a_lora_is_loaded_chosen_listed_and_unloaded(run_folder: Path, tmp_path: Path) -> None:
    def ready(*args: Any, **kwargs: Any) -> FakeRank:
        return LoraRank(*args, memory={"weights": 1, "adapters": 0}, **kwargs)

    async def test() -> None:
        write_adapter(tmp_path / "styles" / "ink.safetensors", modules=264, size=5000)
        async with engine(run_folder, tmp_path, tp=2, make_rank=ready) as (fakes, client):
            loaded = await client.load_lora("Ink", "styles/ink.safetensors", 0.5)
            assert names(loaded.loras) == ["Ink"]
            assert all(rank.loaded for rank in fakes.ranks)  # by the time of the answer
            lora = (await client.status()).loras[0]
            assert (lora.file, lora.strength, lora.modules, lora.bytes) == ("styles/ink.safetensors", 0.5, 264, 2500)
            metrics = (await client.metrics()).decode()
            assert "krea2_loras 1.0" in metrics
            assert "krea2_lora_bytes 2500.0" in metrics
            for rank in (0, 1):
                assert f'krea2_rank_memory_bytes{{purpose="adapters",rank="{rank}"}} 2500.0' in metrics
                assert f'krea2_rank_memory_bytes{{purpose="weights",rank="{rank}"}} 1.0' in metrics
            await client.generate(PROMPT, steps=2, loras=[{"name": "Ink", "strength": -1.5}])
            await client.generate(PROMPT, steps=2, loras=["Ink"])
            await client.generate(PROMPT, steps=2, loras=[{"name": "Ink", "strength": 0}])
            await client.generate(PROMPT, steps=2)
            await fakes.ranks[1].has_steps(len(fakes.ranks[0].steps))
            used = [fakes.ranks[1].loras_of(job) for job in jobs_of(fakes.ranks[1])]
            assert used == [{"ink": -1.5}, {"ink": 0.5}, {}, {}]
            assert names((await client.unload_lora("Ink")).loras) == []
            for rank in fakes.ranks:
                await held_by(rank)
            with pytest.raises(ArgumentError, match=r"loras must be among the loaded ones \(none; .*\), got 'Ink'"):
                await client.generate(PROMPT, loras=["Ink"])
            with pytest.raises(ArgumentError, match="name must be that of a LoRA that is loaded, got 'Ink'"):
                await client.unload_lora("Ink")
            async with asyncio.timeout(DEADLINE_S):  # until the front-end has heard of both ranks
                while b"krea2_lora_bytes 0.0" not in await client.metrics():
                    await asyncio.sleep(0.01)

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
            for call in (client.load_lora("C", "a.safetensors"), client.unload_lora("A")):
                with pytest.raises(ArgumentError, match="clients may load and unload LoRAs only if the server has a"):
                    await call

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
            with pytest.raises(LoraError, match="the ranks could not load it"):  # who comes later hears why, too
                await client.generate(PROMPT, loras=["bad"])
            await client.load_lora("bad", "fine.safetensors")
            assert (await client.generate(PROMPT, steps=1, loras=["bad"])).seeds

    run(test())


def test_the_file_that_a_rank_names_is_given_up_and_not_one_that_others_still_load(
    run_folder: Path, tmp_path: Path
) -> None:
    async def test() -> None:
        for name in ("fine", "explodes"):
            write_adapter(tmp_path / f"{name}.safetensors")
        async with engine(run_folder, tmp_path, replace_ranks=True, tp=2) as (fakes, client):
            fakes.ranks[1].hold = True  # and does not say that it holds the first
            fine = asyncio.create_task(client.load_lora("fine", "fine.safetensors"))
            await fakes.ranks[0].has_steps(1)
            bad = asyncio.create_task(client.load_lora("bad", "explodes.safetensors"))
            with pytest.raises(LoraError, match=r"^explodes.safetensors: the ranks could not load it: "):
                await bad
            assert names((await fine).loras) == ["fine"]

    run(test())


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_in_whatever_order_ranks_hold_what_jobs_name(
    run_folder: Path, tmp_path: Path, seed: int
) -> None:
    async def test() -> None:
        chance = random.Random(seed)
        for name in "abcd":
            write_adapter(tmp_path / f"{name}.safetensors")
        async with engine(run_folder, tmp_path, replace_ranks=True, tp=2) as (fakes, client):
            calls: list[asyncio.Task[Any]] = []
            for number in range(80):
                name = chance.choice("abcd")
                match chance.randrange(12):
                    case 0 | 1 | 2:
                        call = client.load_lora(name, f"{name}.safetensors")
                    case 3 | 4:
                        call = client.unload_lora(name)
                    case 5:
                        call = client.cancel(f"request {chance.randrange(80)}")
                    case 6 if chance.random() < 0.3:
                        # images have been made since the last loss, or the server would give up
                        await client.generate(PROMPT, steps=1)
                        fakes.ranks[chance.randrange(2)].fail("rank_failed", "lost")
                        continue
                    case _:
                        names_used = chance.sample("abcd", chance.randrange(3))
                        call = client.generate(
                            PROMPT, steps=chance.randrange(1, 5), loras=names_used, request_id=f"request {number}"
                        )
                calls.append(asyncio.create_task(call))
                await asyncio.sleep(chance.choice((0, 0, 0.002)))
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert not isinstance(outcome, BaseException) or isinstance(outcome, (ArgumentError, CancelledError))
            assert (await client.generate(PROMPT, steps=1)).seeds
            listed = names((await client.loras()).loras)
            for rank in fakes.ranks:
                await held_by(rank, *listed)

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
            async with asyncio.timeout(DEADLINE_S):  # until the front-end has heard that the rank has forgotten it
                while True:
                    with suppress(ArgumentError):
                        assert (await client.generate(PROMPT, steps=1, **needs_much)).seeds
                        break
                    await asyncio.sleep(0.01)

    run(test())
