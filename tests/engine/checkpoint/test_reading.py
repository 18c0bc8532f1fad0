"""What ranks tell of their loading: bytes that only grow, from none to all, however weights are stored and kept."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint import load as loading
from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert.convert import convert
from engine.checkpoint.reading import Reading
from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER, VAE, EngineConfig
from engine.errors import CheckpointError
from tests.damage import rewrite_tensors
from tests.engine.checkpoint.loading import TRANSFORMER, load
from tests.engine.lora.adapter_files import draw_low_rank, layer_shapes, write_scheme
from tests.engine_runs import DEADLINE_S, on_ranks

Told = list[tuple[int, int]]
AT_ONCE = 1 << 10  # numbers: here matrices are read in some parts, too


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Told]:
    """What each rank has told, which here tells of every part that it has read: it would be too fast otherwise."""
    ranks: list[Told] = []

    class Eager(Reading):
        def advance(self, size: int) -> None:
            super().advance(size)
            with self._lock:
                self._tell(self.done, self.total)

    def record(total: int, tell: Any) -> Reading:
        ranks.append([])
        return Eager(total, lambda done, of, told=ranks[-1]: told.append((done, of)))

    monkeypatch.setattr("engine.rank.build.Reading", record)
    monkeypatch.setattr(loading, "_AT_ONCE", AT_ONCE)
    return ranks


def expect_growth(told: Told) -> int:
    """Check what one rank told, and return how much it read."""
    total = told[-1][1]
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert all(before <= after <= total and of == total for (before, _), (after, of) in pairwise(told))
    return total


def stored(folder: Path, **parts: str) -> int:
    """The bytes of all tensors that a model needs, by their files' headers."""
    with_headers = CheckpointFiles.open(EngineConfig(model=str(folder), **parts))
    sizes = [
        with_headers.stored(component, source).size(source.shard_bounds(0, 1))
        for component, sources in with_headers.sources.items()
        for source in sources
    ]
    with_headers.close()
    return sum(sizes)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quantization": "fp8", "offload": (DIT, TEXT_ENCODER, VAE)},
        {"offload": (DIT_LAYERWISE,), "quantization": "int8"},
        {"merge": True},
    ],
    ids=lambda options: " ".join(map(str, options.values())) or "float32",
)
def test_one_rank_tells_of_every_byte(turbo: Path, told: list[Told], tmp_path: Path, options: dict[str, Any]) -> None:
    if options.pop("merge", False):
        lora = write_scheme(tmp_path / "a.safetensors", turbo, draw_low_rank(layer_shapes(turbo)))
        options["merge_loras"] = ((str(lora), 1.0),)
    on_ranks(turbo, lambda rank: None, **options)
    (one,) = told
    assert expect_growth(one) == stored(turbo)
    assert len(one) > 2 * len(CheckpointFiles.open(EngineConfig(model=str(turbo))).components["transformer"].tensors)


@pytest.mark.parametrize("weights", ["fp8", "q8_0"])
def test_weights_in_few_bits_count_as_they_are_stored(
    turbo: Path, told: list[Told], tmp_path: Path, weights: str
) -> None:
    layout = "gguf" if weights.startswith("q") else "native"
    file = tmp_path / ("a.gguf" if layout == "gguf" else "a.safetensors")
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    convert(checkpoint, file, layout=layout, weights=weights)
    checkpoint.close()
    on_ranks(turbo, lambda rank: None, transformer=str(file))
    (one,) = told
    assert expect_growth(one) == stored(turbo, transformer=str(file)) < stored(turbo)


@pytest.mark.parametrize("mode", [{"cfg_parallel": True}, {"tp": 2, "sp": 2}], ids=str)
def test_each_rank_tells_of_what_it_reads(turbo: Path, told: list[Told], mode: dict[str, Any]) -> None:
    on_ranks(turbo, lambda rank: None, **mode)
    totals = sorted(map(expect_growth, told))
    ranks = EngineConfig(**mode).ranks
    assert len(totals) == ranks
    if "tp" in mode:
        assert stored(turbo) / 2 < totals[0] <= totals[-1] < stored(turbo)
    else:
        assert totals == [stored(turbo)] * ranks


def test_ranks_of_a_checkpoint_that_was_split_tell_of_their_shards(
    turbo: Path, told: list[Told], tmp_path: Path
) -> None:
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    convert(checkpoint, tmp_path / "split", layout="sharded", weights="int8", tp=2)
    checkpoint.close()
    on_ranks(tmp_path / "split", lambda rank: None, tp=2)
    assert len(list(map(expect_growth, told))) == 2


def test_nothing_is_told_after_an_error(damaged: Path, told: list[Told]) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["final_layer.linear.weight"].fill_(float("nan"))

    rewrite_tensors(damaged / TRANSFORMER, spoil)
    with pytest.raises(CheckpointError, match="not finite"):
        load(damaged)
    (one,) = told
    count = len(one)
    assert one[-1][0] < one[-1][1]
    assert len(one) == count


def test_loading_asks_for_few_looks_where_it_is_fast(turbo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What telling costs: as many looks as there are parameters, and those parts that are large."""
    calls = {"look": 0, "advance": 0}

    class Counted(Reading):
        def look(self) -> None:
            calls["look"] += 1

        def advance(self, size: int) -> None:
            calls["advance"] += 1

    monkeypatch.setattr("engine.rank.build.Reading", Counted)
    monkeypatch.setattr(loading, "_LOOK_S", DEADLINE_S)  # or looks would be as many as a slow machine has time for
    on_ranks(turbo, lambda rank: None)
    sources = sum(map(len, CheckpointFiles.open(EngineConfig(model=str(turbo))).sources.values()))
    assert calls["advance"] == sources
    assert calls["look"] <= 1 + sources
