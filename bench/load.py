"""How fast a transformer is loaded from its checkpoint, against a plain read of the same files.

    python -m bench.load [--checkpoint FOLDER] [--size real] [--layers N] [--device cpu] [--cache cold,warm]

Without a checkpoint a random one is written to a temporary folder: at size real its blocks and their surroundings are
as wide as Krea 2's, in bfloat16, with as many blocks as --layers says. There are two plain reads, both by one thread
from the first byte to the last: into one small buffer, which is all that a disk can give; and into new memory as large
as the files, which a loader to the CPU has to get and fill too, and which takes longer than anything else once the
files are in the system's cache. Loading and both reads take turns, A B C C B A. Before every turn of a cold cache the
files are dropped from it, where the file system does so.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.engines.runner import run_main
from bench.measure.arguments import check_positive, duration, end_with, json_file, parse_list, positive
from bench.measure.output import append_json, note, print_json, print_table, publish_left_out
from bench.measure.timing import Budget, Spread
from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.load import LoadOptions, load_weights
from engine.config.engine_config import DEVICES, DTYPES, EngineConfig
from engine.device.devices import pick_device, pick_dtype
from engine.errors import ArgumentError
from engine.kernels.attention.backends import GatedAttentionKernel
from engine.model.transformer import Transformer
from engine.parallel.group import LocalGroup

CACHES = ("cold", "warm")
SIZES = ("real", "tiny")
COMPONENT = "transformer"
_BUFFER = 8 << 20  # bytes of a plain read at a time
_TARGET = 0.8


@dataclass(frozen=True)
class LoadResult:
    """See the module. Rates in bytes/s, of the median; `of_read` and `of_read_to_memory`: load's as a share. One field
    for each value of the JSON line."""

    checkpoint: str
    cache: str
    device: str
    dtype: str
    bytes: int
    files: int
    load: Spread
    read: Spread
    read_to_memory: Spread
    load_rate: float
    read_rate: float
    read_to_memory_rate: float
    of_read: float
    of_read_to_memory: float


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="load this one (a random one is written)")
    parser.add_argument("--size", choices=SIZES, default="real", help="whose widths a random one has (real)")
    parser.add_argument("--layers", type=int, default=2, help="DiT blocks of a random one (2: 2.4 GB at size real)")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="(cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the loaded weights (bfloat16)")
    parser.add_argument("--cache", default="cold,warm", help=f"comma-separated, of {', '.join(CACHES)} (cold,warm)")
    parser.add_argument("--repeats", type=positive, default=3, help="of two turns each (3)")
    parser.add_argument("--seconds", type=duration, help="begin nothing more after this time")
    parser.add_argument(
        "--json", type=json_file, metavar="FILE", help="add a line for each result to this file as well"
    )
    return run_main(_run, parser, sys.argv[1:] if words is None else words)


def _run(arguments: argparse.Namespace) -> None:
    caches = parse_list("cache", arguments.cache, CACHES)
    check_positive("layers", arguments.layers)
    # huge pages, as ranks are told to ask for; torch looks when it first gets memory
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    config = EngineConfig(device=arguments.device, dtype=arguments.dtype)
    device = pick_device(config, 0, 1)
    options = LoadOptions(device, pick_dtype(config, device))
    rows: list[list[str]] = []
    left_out: list[str] = []
    budget = Budget(arguments.seconds)
    with _checkpoint(arguments) as folder:
        for cache in caches:
            if rows and budget.spent:
                note(f"with a {cache} cache: left out, the time is up")
                left_out.append(f"a {cache} cache")
                continue
            result = measure(folder, options, cache, arguments.repeats, budget)
            line = {"size": "given" if arguments.checkpoint else arguments.size, **asdict(result)}
            print_json("load", line)
            if arguments.json is not None:
                append_json(arguments.json, "load", line)
            rows.append(_row(result))
    publish_left_out(left_out, len(caches), arguments.json)
    print(f"\nbench.load: {COMPONENT} of {arguments.checkpoint or 'a random checkpoint, size ' + arguments.size}")
    print_table(("cache", "GB", "load", "read", "of it", "read to memory", "of it"), rows)
    reference = "the read to memory, which a loader has to fill too" if device.type == "cpu" else "the read"
    print(f"The target is {_TARGET:.0%} of {reference}.")


def measure(folder: Path, options: LoadOptions, cache: str, repeats: int, budget: Budget | None = None) -> LoadResult:
    """Time loads and reads, two turns of each a repeat, one at least. cache: of `CACHES`. Raises `CheckpointError`."""
    files, size = _files_of(folder)
    sides: dict[str, Callable[[], object]] = {
        "load": lambda: _load(folder, options),
        "read": lambda: [_read(file, None) for file in files],
        "read_to_memory": lambda: [_read(file, torch.empty(file.stat().st_size, dtype=torch.uint8)) for file in files],
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():  # what only the first call costs, and a warm cache
        side()
    for repeat in range(repeats):
        if repeat and budget is not None and budget.spent:
            break
        for name in (*sides, *reversed(sides)):
            gc.collect()  # a file that is still mapped stays in the cache
            if cache == "cold":
                for file in files:
                    _drop_from_cache(file)
            began = time.perf_counter()
            kept = sides[name]()
            times[name].append(time.perf_counter() - began)
            del kept  # giving memory back does not count
    spreads = {name: Spread.of(values) for name, values in times.items()}
    rates = {name: size / spread.median for name, spread in spreads.items()}
    return LoadResult(
        checkpoint=str(folder),
        cache=cache,
        device=options.device.type,
        dtype=str(options.dtype).removeprefix("torch."),
        bytes=size,
        files=len(files),
        **spreads,
        load_rate=rates["load"],
        read_rate=rates["read"],
        read_to_memory_rate=rates["read_to_memory"],
        of_read=rates["load"] / rates["read"],
        of_read_to_memory=rates["load"] / rates["read_to_memory"],
    )


@contextmanager
def _checkpoint(arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder that is asked for, or a temporary one with a random checkpoint."""
    if arguments.checkpoint is not None:
        yield arguments.checkpoint
        return
    try:
        from bench.engines.checkpoints import CheckpointSpec, build_checkpoint
    except ImportError as error:
        raise ArgumentError(f"writing a random checkpoint needs diffusers: {error}", parameter="checkpoint") from None
    if arguments.size == "tiny":
        spec = CheckpointSpec(layers=arguments.layers, dtype=torch.bfloat16)
    else:
        spec = CheckpointSpec(
            layers=arguments.layers,
            heads=48,
            kv_heads=12,
            head_dim=128,
            axes=(32, 48, 48),
            intermediate=16384,
            timestep_dim=256,
            dtype=torch.bfloat16,
        )
    with tempfile.TemporaryDirectory(prefix="krea2-load-") as folder:
        note(f"writing a random checkpoint to {folder}")
        yield build_checkpoint(Path(folder), spec)


def _files_of(folder: Path) -> tuple[list[Path], int]:
    """The transformer's files, and the bytes in them. They are on the disk when this returns."""
    weights = CheckpointFiles.open(EngineConfig(model=str(folder)))
    files = sorted({weights.stored(COMPONENT, source).file for source in weights.sources[COMPONENT]})
    weights.close()
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # what is not yet written cannot be dropped
    return files, sum(file.stat().st_size for file in files)


def _load(folder: Path, options: LoadOptions) -> Transformer:
    """As a rank does it, from opening the checkpoint to the last byte on the device."""
    weights = CheckpointFiles.open(EngineConfig(model=str(folder)))
    attention = GatedAttentionKernel("torch")
    with torch.device("meta"):
        transformer = Transformer(weights.config.transformer, LocalGroup(), attention, attention)
    load_weights(transformer, weights, COMPONENT, rank=0, size=1, options=options)
    weights.close()
    if options.device.type == "cuda":
        torch.cuda.synchronize(options.device)
    return transformer


def _read(file: Path, memory: torch.Tensor | None) -> torch.Tensor | None:
    """From the first byte to the last, into memory of the file's size, or without one into a small buffer."""
    target = memoryview(bytearray(_BUFFER)) if memory is None else memory.numpy().data
    with file.open("rb", buffering=0) as opened:
        position = 0
        while count := opened.readinto(target[position : position + _BUFFER]):
            position = 0 if memory is None else position + count
    return memory


def _drop_from_cache(file: Path) -> None:
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _row(result: LoadResult) -> list[str]:
    load, read, memory = (
        f"{rate / 1e9:.2f} GB/s" for rate in (result.load_rate, result.read_rate, result.read_to_memory_rate)
    )
    return [
        result.cache,
        f"{result.bytes / 1e9:.2f}",
        *(load, read, f"{result.of_read:.0%}", memory, f"{result.of_read_to_memory:.0%}"),
    ]


if __name__ == "__main__":
    end_with(main)
