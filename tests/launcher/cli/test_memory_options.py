"""The options for small devices, from the command line to what is told of the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.lora.files import open_adapter
from engine.planning.step_memory import decode_bytes
from launcher import Client, launch
from launcher.auto_mode.prediction import Workload
from launcher.cli.generate import generate
from launcher.cli.options.engine_options import configure_engine
from launcher.client.async_client import AsyncClient
from launcher.messages.limits import parse_bytes
from tests.engine.lora.adapter_files import draw_low_rank, layer_shapes, write_scheme
from tests.launcher.conftest import Krea2
from tests.launcher.fake_ranks import FakeRank, fake_engine, run
from tests.launcher.processes import Marked

PROMPT = "a red circle on a blue background"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GB", 16 * 10**9),
        ("16 gb", 16 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("300MB", 300 * 10**6),
        ("2MiB", 2**21),
        ("12345678", 12345678),
        (100_000, 100_000),
        (0, 0),
        (None, None),
    ],
)
def test_sizes_are_numbers_with_a_unit(text: str | int | None, size: int | None) -> None:
    assert parse_bytes("memory_budget", text) == size


@pytest.mark.parametrize("text", ["", "GB", "16T", "-1GB", "1e9", "16 GB GB", "٣GB", "9" * 40])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="memory_budget must be a number with one of kB, MB, GB"):
        parse_bytes("memory_budget", text)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("16", "16GB or 16GiB"),
        (16, "16GB or 16GiB"),
        ("1.5", "1.5GB or 1.5GiB"),
        ("16G", "16GB or 16GiB"),
        ("512 m", "512MB or 512MiB"),
        ("64k", "64kB or 64kiB"),
    ],
)
def test_a_size_whose_unit_is_left_open_is_asked_for_it(text: str | int, question: str) -> None:
    with pytest.raises(ArgumentError, match=rf"memory_budget needs a unit: {question}\?"):
        parse_bytes("memory_budget", text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload": ("dit", "dit-layerwise")}, "offload must be dit or dit-layerwise, not both"),
        ({"offload": ("disk",)}, "offload must be some of dit-layerwise, dit, text-encoder, vae, got 'disk'"),
        ({"offload": "dit"}, "offload must be some of "),
        ({"prefetch": -1}, "prefetch must be between 0 and 64 blocks, got -1"),
        ({"prefetch": True}, "prefetch must be between 0 and 64 blocks"),
        ({"memory_budget": 0}, "memory_budget must be a number of bytes from 1 to 1125899906842624, as 16GB, got 0"),
        ({"memory_budget": 10**24}, "memory_budget must be a number of bytes from 1 to 1125899906842624"),
        ({"vae_memory": 1.5}, "vae_memory must be a number of bytes from 1"),
        ({"prefetch": 2}, "prefetch needs offload or memory_budget"),
        ({"lora_memory": 10**9}, "lora_memory needs memory_budget"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        EngineConfig(**options)
    assert error.value.message.startswith(message)
    assert error.value.parameter == next(iter(options))


def test_parts_and_sizes_of_the_command_line_reach_the_engine() -> None:
    words = (
        "--tp 1 --sp 2 --cfg-parallel --prefetch 2 --memory-budget 16GB --vae-memory 1GiB --lora-memory 5MB "
        "--step-timeout 7 --limit max_side=512 --offload"
    )
    options = generate.make_context("generate", ["a fox", *words.split(), "dit, text_encoder,vae"]).params
    config, _ = configure_engine(options, lambda model, _: Workload.default(model))
    assert (config.step_timeout_s, config.limits.max_side) == (7.0, 512)
    assert (config.engine.tp, config.engine.sp, config.engine.ranks) == (1, 2, 4)
    assert config.engine.offload == ("dit", "text-encoder", "vae")
    assert config.engine.lora_memory == 5_000_000
    assert (config.engine.prefetch, config.engine.memory_budget, config.engine.vae_memory) == (2, 16 * 10**9, 2**30)


def test_a_budget_s_plan_is_printed_and_the_image_is_the_same(marked: Marked, client: Client, tmp_path: Path) -> None:
    planned = tmp_path / "planned.png"
    arguments = ("generate", PROMPT, "--seed", "1", "--device", "cpu", "--no-metadata", "--output")
    code, stdout, stderr = marked.run_krea2(*arguments, str(planned), "--memory-budget", "29MB")
    assert (code, stdout) == (0, f"{planned}\n")
    lines = stderr.splitlines()
    assert lines[:2] == ["memory plan:", "budget          29.00 MB a rank"]
    assert any("stay on the device" in line for line in lines)
    assert planned.read_bytes() == client.generate(PROMPT, seed=1, metadata=False).files[0]


def test_a_budget_leaves_room_for_the_loras_of_the_command_line(tmp_path: Path) -> None:
    change = draw_low_rank(layer_shapes(DEMO_CHECKPOINT), rank=8)
    file = write_scheme(tmp_path / "ink.safetensors", DEMO_CHECKPOINT, change)
    budget = 29_000_000

    def draw(**options: Any) -> tuple[bytes, int, int]:
        with launch(device="cpu", warm_up=False, loras=[str(file)], **options) as client:
            result = client.generate(PROMPT, seed=0, steps=2, loras=["ink"], metadata=False)
            (memory,) = client.status().rank_memory
            return result.files[0], memory["weights"], memory["free"]

    plain, whole, _ = draw()
    planned, held, free = draw(memory_budget=budget)
    assert planned == plain
    opened = open_adapter(file, ModelConfig.from_folder(DEMO_CHECKPOINT))
    opened.close()
    size = opened.bytes_on_rank(1, 4)
    assert held + size < whole
    assert free > size
    with pytest.raises(ArgumentError, match=f"lora_memory must be at least the {size} bytes that the LoRAs take"):
        draw(memory_budget=budget, lora_memory=size - 1)


def test_a_budget_that_is_too_small_is_a_mistake_that_names_the_least(marked: Marked) -> None:
    code, stdout, stderr = marked.run_krea2("generate", PROMPT, "--device", "cpu", "--memory-budget", "1MB")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: --memory-budget must be at least ")
    assert stderr.endswith(", got 1.00 MB\n")


def test_info_shows_the_plan_of_a_budget(krea2: Krea2) -> None:
    code, stdout, stderr = krea2("info", "demo", "--dtype", "float32", "--memory-budget", "29MB")
    assert (code, stderr) == (0, "")
    assert "memory plan of a rank that has a device to itself" in stdout
    assert "budget          29.00 MB a rank" in stdout
    assert "memory plan" not in krea2("info", "demo")[1]


def test_info_s_plan_has_nccls_buffers_where_several_gpus_talk(krea2: Krea2) -> None:
    several = ("info", "demo", "--sp", "2", "--memory-budget", "2GB")
    assert "NCCL            1.17 GB for its buffers" in krea2(*several)[1]
    assert "NCCL" not in krea2(*several, "--dtype", "float32")[1], "for a CPU"
    assert "NCCL" not in krea2("info", "demo", "--memory-budget", "2GB")[1]


def test_info_s_plan_leaves_room_for_loras_and_follows_the_options(krea2: Krea2, tmp_path: Path) -> None:
    change = draw_low_rank(layer_shapes(DEMO_CHECKPOINT), rank=8)
    lora = str(write_scheme(tmp_path / "ink.safetensors", DEMO_CHECKPOINT, change))
    info = ("info", "--model", "demo", "--memory-budget", "29MB")
    assert "are left to them" not in krea2(*info)[1]
    assert "are left to them" in krea2(*info, "--lora", lora)[1]
    assert "LoRAs           5.00 MB are left to them" in krea2(*info, "--lora-memory", "5MB")[1]
    assert "2 ahead" in krea2(*info, "--offload", "dit-layerwise", "--prefetch", "2")[1]
    assert "decoding        in at most 20.00 MB" in krea2(*info, "--vae-memory", "20MB")[1]
    assert krea2(*info, "demo-raw") == (2, "", "error: MODEL demo-raw contradicts --model demo\n")


def test_an_image_that_is_decoded_in_tiles_needs_no_more_than_those(run_folder: Path) -> None:
    """A picture that the ranks could not decode whole is accepted if they say that they decode such ones in tiles."""
    model = ModelConfig.from_folder(DEMO_CHECKPOINT)
    limit = decode_bytes(model, 1024, 1024, 4) // 4
    free = {"weights": 1, "free": 2 * limit}

    async def test(memory: dict[str, int]) -> None:
        def small(context: Any, folder: Path, rank: int, generation: int) -> FakeRank:
            return FakeRank(context, folder, rank, memory=memory)

        async with fake_engine(run_folder, make_rank=small) as fakes, AsyncClient(fakes.address) as client:
            result = await client.generate(PROMPT, width=1024, height=1024)
            assert len(result.files) == 1
            status = await client.status()
            assert status.rank_memory == (memory,)
            assert status.memory_plan == ()

    with pytest.raises(ArgumentError, match="1024 × 1024 needs about"):
        run(test(free))
    run(test(free | {"decode_limit": limit}))
