"""Damaged files of every form that people publish weights and LoRAs in are refused with an error of ours or read, in
bounded memory and time."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.checkpoint.files.open import open_component
from engine.checkpoint.files.stored import whole
from engine.checkpoint.layouts.encodings import stored_tensors
from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError, LoraError
from engine.lora.deltas import read_delta
from engine.lora.families import is_vector
from engine.lora.files import open_adapter
from tests.damage import bounded_memory, copy_checkpoint
from tests.engine.damaged.files import write_loras, write_weights
from tests.engine.damaged.kinds import damage

CASES = int(os.environ.get("DAMAGED_FILES", "5000"))
FAST_CASES = 300  # each form is damaged some seven times, and each kind of damage done some fifteen times
A_BATCH = 50
MEMORY = 256 << 20  # bytes, for files of some kilobytes
CPU_S = 20.0  # seconds of this process, for what takes milliseconds
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def templates(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, bool]]:
    """Folders, and whether each is a LoRA's."""
    root = tmp_path_factory.mktemp("forms")
    weights, loras = write_weights(root / "weights"), write_loras(root / "loras", turbo)
    return [*((folder, False) for folder in weights), *((folder, True) for folder in loras)]


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, marks=() if first < FAST_CASES else pytest.mark.slow)
        for first in range(0, max(CASES, FAST_CASES), A_BATCH)
    ],
)
def test_damaged_files_are_refused_or_read(
    turbo: Path, tmp_path: Path, templates: list[tuple[Path, bool]], first: int
) -> None:
    config, ends = ModelConfig.from_folder(turbo), Counter[str]()
    everything = [folder for folder, _ in templates]
    for seed in range(first, first + A_BATCH):
        source, is_lora = templates[seed % len(templates)]
        folder = copy_checkpoint(source, tmp_path / str(seed))
        print(seed, source.name, damage(folder, seed, everything))  # shown when the test fails
        began = time.process_time()
        with bounded_memory(MEMORY):
            refusal = use_lora(folder, config, seed) if is_lora else use_weights(folder, config, seed)
        assert time.process_time() - began < CPU_S
        ends["read" if refusal is None else "refused"] += 1
        if refusal is not None:
            assert refusal.startswith(str(folder)), refusal
            assert refusal.isprintable()
            assert len(refusal) < 1000
    assert ends["read"] > 0
    assert ends["refused"] > A_BATCH / 4


def refused(use: Callable[[Path, ModelConfig, int], None]) -> Callable[[Path, ModelConfig, int], str | None]:
    """What it says, which is None where nothing is refused."""

    def wrapped(folder: Path, config: ModelConfig, seed: int) -> str | None:
        try:
            use(folder, config, seed)
        except (CheckpointError, LoraError) as error:
            return error.message
        return None

    return wrapped


@refused
def use_weights(folder: Path, config: ModelConfig, seed: int) -> None:
    """Read all of every tensor, and a part of it."""
    rng = random.Random(seed)
    file = open_component(folder, "transformer", "model")
    for tensor in stored_tensors(file).values():
        part = tuple(slice(*sorted(rng.choices(range(length + 1), k=2))) for length in tensor.shape)
        for bounds in (whole(tensor.shape), part):
            tensor.size(bounds)
            values = tensor.read(bounds)
            assert values.shape == tuple(bound.stop - bound.start for bound in bounds)
            assert values.is_floating_point()
    file.close()


@refused
def use_lora(folder: Path, config: ModelConfig, seed: int) -> None:
    """Check it as a server does, and read what it does to the layers."""
    adapter = open_adapter(folder / "lora.safetensors", config, lenient=seed % 2 == 0)
    adapter.check_finite()
    for change in adapter.changes.values():
        assert adapter.bytes_on_rank(1, 4) > 0
        if not is_vector(change.source):
            delta = read_delta(change, whole(change.source.shape), CPU)
            assert delta is None or delta.dense().shape == change.source.shape
    adapter.close()
