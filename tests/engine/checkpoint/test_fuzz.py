"""Damaged checkpoints load with valid shapes or raise `CheckpointError`; nothing else, and in bounded memory."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from engine.step import Job, Step
from launcher.requests.tokenizer import PromptTokenizer
from tests.damage import bounded_memory, copy_checkpoint, replace_bytes
from tests.random_damage import KINDS, damage

CASES = 200
FAST_CASES = 40
TOKENIZER_CASES = 60
SHARDED_EVERY = 5  # no divisor of how many kinds of damage there are, so that each comes to whole and sharded files
assert len(KINDS) < FAST_CASES
assert len(KINDS) % SHARDED_EVERY != 0


# The first 40 damage a checkpoint in each way at least once, and guard what the other 160 do with other tensors, values
# and places.
@pytest.mark.parametrize(
    "seed", [*range(FAST_CASES), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(FAST_CASES, CASES))]
)
def test_a_damaged_checkpoint_is_refused_or_works(checkpoint: Callable[..., Path], tmp_path: Path, seed: int) -> None:
    source = checkpoint(max_shard_size="200KB") if seed % SHARDED_EVERY == 0 else checkpoint()
    folder = copy_checkpoint(source, tmp_path / "damaged")
    print(damage(folder, seed))  # shown when the test fails
    try:
        with bounded_memory():
            latents = load_and_step(folder)
    except CheckpointError as error:
        check_message(error, folder)
    else:
        assert latents.shape[1] == 64


@pytest.mark.parametrize("seed", range(TOKENIZER_CASES))
def test_a_damaged_tokenizer_is_refused_or_works(turbo: Path, tmp_path: Path, seed: int) -> None:
    folder = copy_checkpoint(turbo, tmp_path / "damaged")
    rng = random.Random(seed)
    file = folder / "tokenizer" / rng.choice(("tokenizer.json", "tokenizer.json", "tokenizer_config.json"))
    print(file.name, damage_tokenizer(file, rng))
    vocab_size = ModelConfig.from_folder(folder).text_encoder.vocab_size
    try:
        with bounded_memory():
            tokenizer = PromptTokenizer(folder, vocab_size)
    except CheckpointError as error:
        check_message(error, folder)
    else:
        for prompt in ("a red circle", "", "雪\u0000🦊", "x " * 700):
            ids = tokenizer.encode(prompt).ids
            assert 39 <= len(ids) <= 546
            assert all(0 <= token < vocab_size for token in ids)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no bound elsewhere")
def test_the_bound_of_memory_is_one() -> None:
    allocated = [bytearray(100_000) for _ in range(4000)]
    end = bytearray(100_000)  # what is freed before it stays with the process, without a bound on its use
    del allocated
    with bounded_memory(64 << 20), pytest.raises(MemoryError):
        [bytearray(256 << 20) for _ in range(32)]
    assert len(end) + len(bytearray(256 << 20)) == (256 << 20) + 100_000


def check_message(error: CheckpointError, folder: Path) -> None:
    print(error)
    assert error.message.startswith(str(folder))
    assert error.message.isprintable()


def load_and_step(folder: Path) -> torch.Tensor:
    """Load on one rank, check every shape, make one small image to its last latents."""
    rank = Rank(EngineConfig(model=str(folder), device="cpu"), Mesh(), torch.device("cpu"))
    for module in (rank.model.text_encoder, rank.model.transformer, rank.model.vae):
        assert module is not None
        for name, parameter in module.named_parameters():
            assert parameter.device.type == "cpu", name
            assert parameter.float().isfinite().all(), name
    side = 4 * rank.model.config.size_multiple
    rank.execute(Step(0, (Job(0, tuple(range(40)), None, side, side, 1, 0.0, None, seed=0),), (0,))).wait()
    latents = rank.jobs[0].latents
    rank.execute(Step(1, decode=(0,))).wait()
    rank.close()
    return latents


def damage_tokenizer(file: Path, rng: random.Random) -> str:
    data = file.read_bytes()
    kind = rng.randrange(5)
    if kind == 0:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 4, 64))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        replace_bytes(file, bytes(changed))
        return "flipped bytes"
    if kind == 1:
        replace_bytes(file, data[: rng.randrange(len(data))])
        return "truncated"
    if kind == 2:
        replace_bytes(file, rng.choice((b"", b"null", b"[]", b"{}", b"[" * 100_000, rng.randbytes(500))))
        return "replaced"
    values = json.loads(data)
    wrong = rng.choice((None, True, "", "x", [], {}, -1, 10**12, [["a"]], {"type": "Nothing"}))
    target, path = values, ""
    while True:
        key = rng.choice(sorted(target))
        path += f".{key}"
        if isinstance(target[key], dict) and target[key] and rng.random() < 0.7:
            target = target[key]
            continue
        if kind == 3:
            target[key] = wrong
            path += f"={wrong}"
        else:
            del target[key]
        break
    replace_bytes(file, json.dumps(values).encode())
    return path
