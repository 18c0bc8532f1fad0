"""Loading: what a rank reads."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.files.safetensors_file import SafetensorsFile
from engine.checkpoint.files.stored import Bounds
from engine.checkpoint.layouts.tensors import component_with_files
from engine.checkpoint.load import load_weights
from engine.checkpoint.weight_format import summarize
from engine.config.engine_config import EngineConfig
from engine.rank.rank import Rank
from tests.damage import rewrite_tensors
from tests.engine.checkpoint.loading import TEXT_ENCODER, load
from tests.engine_runs import on_ranks

# What the design's table of tensor parallelism splits, by the end of a tensor's name.
SPLIT_ROWS = (
    *(f"attn.{part}.weight" for part in ("to_q", "to_k", "to_v", "to_gate")),
    *(f"self_attn.{part}_proj.weight" for part in "qkv"),
    *("ff.gate.weight", "ff.up.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight"),
)
SPLIT_COLUMNS = ("attn.to_out.0.weight", "self_attn.o_proj.weight", "ff.down.weight", "mlp.down_proj.weight")


@dataclass
class ReadLog:
    """Every slice that anyone asks of a safetensors file, seen from outside of the engine's own count."""

    bytes_by_tensor: Counter[tuple[str, str]]
    largest_share: dict[tuple[str, str], float]

    @property
    def total(self) -> int:
        return sum(self.bytes_by_tensor.values())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> ReadLog:
    log = ReadLog(Counter(), {})
    original = SafetensorsFile.read
    lock = threading.Lock()  # ranks and their loaders are threads, of which two may add to one count at once

    def read(self: SafetensorsFile, name: str, bounds: Bounds) -> torch.Tensor:
        tensor = original(self, name, bounds)
        key = (self.path.parent.name, name.removeprefix("language_model."))
        share = tensor.numel() / math.prod(self.headers[name].shape)
        with lock:
            log.bytes_by_tensor[key] += tensor.nbytes
            log.largest_share[key] = max(share, log.largest_share.get(key, 0.0))
        return tensor

    monkeypatch.setattr(SafetensorsFile, "read", read)
    return log


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_ranks_read_each_split_tensor_once_between_them(
    checkpoint: Callable[..., Path], reads: ReadLog, monkeypatch: pytest.MonkeyPatch, tp: int, sharded: bool
) -> None:
    folder = checkpoint(max_shard_size="200KB") if sharded else checkpoint()
    counted = list[int]()
    monkeypatch.setattr("engine.rank.build.load_weights", lambda *a, **k: counted.append(load_weights(*a, **k)))
    on_ranks(folder, lambda rank: None, tp=tp)
    assert reads.total == sum(counted)

    split_seen = 0
    for component, sources in CheckpointFiles.open(EngineConfig(model=str(folder))).sources.items():
        for source in sources:
            key = (component_with_files(component), source.name)
            whole = 4 * math.prod(source.shape)
            if component.startswith("vae"):
                slices = source.shape[2] if len(source.shape) == 5 else 1
                expected = tp * whole / slices
                assert reads.bytes_by_tensor[key] == expected, f"{source.name}: its last temporal slice on every rank"
            elif source.name.endswith((*SPLIT_ROWS, *SPLIT_COLUMNS)):
                split_seen += 1
                assert reads.bytes_by_tensor[key] == whole, f"{source.name}: the ranks' shares add up to it"
                assert reads.largest_share[key] == 1 / tp, f"{source.name}: no rank asks for more than its share"
            else:
                assert reads.bytes_by_tensor[key] == tp * whole, f"{source.name}: whole on every rank"
    # 8 of each of the 3 blocks and 4 fusion blocks, 7 of each of the 5 text layers up to the last tap
    assert split_seen == 8 * 7 + 7 * 5


@pytest.mark.parametrize("tp", [2, 4])
def test_no_rank_holds_a_whole_split_matrix(turbo: Path, tp: int) -> None:
    def shapes(rank: Rank) -> dict[str, torch.Size]:
        return {
            f"{component}.{name}": parameter.shape
            for component in ("text_encoder", "transformer")
            for name, parameter in getattr(rank.model, component).named_parameters()
        }

    (whole,) = on_ranks(turbo, shapes)
    for mine in on_ranks(turbo, shapes, tp=tp):
        assert mine.keys() == whole.keys()
        split = {name for name in whole if whole[name].numel() == tp * mine[name].numel()}
        assert {name for name in whole if name not in split} == {n for n in whole if whole[n] == mine[n]}
        # q|k|v|gate or q|k|v, out, gate|up and down of 7 blocks and 5 text layers
        assert len(split) == 4 * 12


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_the_summary_says_what_each_rank_holds(turbo: Path, tp: int) -> None:
    engine = EngineConfig(model=str(turbo), tp=tp)
    components = summarize(CheckpointFiles.open(engine), engine, bytes_per_element=4)
    held = on_ranks(turbo, lambda rank: rank.memory()["weights"], tp=tp)
    assert [sum(component.bytes_per_rank[rank] for component in components) for rank in range(tp)] == held


def test_weights_load_through_symlinks(turbo: Path, tmp_path: Path) -> None:
    """As a Hugging Face cache lays them out."""
    folder = tmp_path / "snapshot"
    for file in turbo.rglob("*"):
        if file.is_file():
            link = folder / file.relative_to(turbo)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    assert load(folder).memory()["weights"] > 0


def test_a_text_encoder_with_another_prefix_loads(damaged: Path, turbo: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"model.{name}"] = tensors.pop(name)
        tensors["lm_head.weight"] = torch.zeros(4, 64)

    rewrite_tensors(damaged / TEXT_ENCODER, rename)
    ours, original = load(damaged).model.text_encoder.state_dict(), load(turbo).model.text_encoder.state_dict()
    assert all(torch.equal(ours[name], original[name]) for name in original)
