"""Ways to damage a checkpoint, for the tests that must survive them."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file

JSON_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "transformer/config.json",
    "vae/config.json",
)
_WRONG_VALUES: tuple[Any, ...] = (
    None, True, False, "", "a", "16", [], [1], [None], ["x"], {}, {"a": 1}, 0, 1, -1, 2, 3, 7, 2.5, -0.0, 1e-300,
    1e300, 10**9, 10**30, float("nan"), float("inf"), [0, 0, 0], [1] * 16, [10**9] * 3, [float("nan")] * 16,
)  # fmt: skip

_WRONG_JSON = (
    b"", b"null", b"[]", b"{}", b'"x"', b"1", b"1" * 5000, b"[" * 100_000, b'{"a":' * 99_999, b"\x00" * 64,
    b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"\xff\xfe\x00", b'{"_class_name": "Krea2Pipeline"}',
)  # fmt: skip


def copy_checkpoint(source: Path, target: Path) -> Path:
    """A copy that shares the files' data; whoever changes a file replaces it."""
    return shutil.copytree(source, target, copy_function=os.link)


def damage(folder: Path, seed: int) -> str:
    """Damage a copied checkpoint in one way, of which every `len(KINDS)` seeds in a row have each. Returns what was
    done."""
    kind = KINDS[seed % len(KINDS)]
    return f"{kind.__name__.removeprefix('_')}: {kind(folder, random.Random(seed))}"


@contextmanager
def bounded_memory(more: int = 2 << 30) -> Iterator[None]:
    """Lets the process allocate so many bytes beyond what it has.

    Reading that goes on for as long as a damaged file says collects what it reads, and so fails here, within the same
    amount of work on every machine; what goes round in circles ends with pytest's own time limit. Only Linux has such
    a bound.
    """
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = psutil.Process().memory_info().data + more
    resource.setrlimit(resource.RLIMIT_DATA, (allowed if before[1] < 0 else min(allowed, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def rewrite_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Apply `change` to the tensors of a safetensors file."""
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file, {"format": "pt"})


def rewrite_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the object of a json file."""
    values = json.loads(file.read_text())
    change(values)
    replace_bytes(file, json.dumps(values).encode())


def replace_bytes(file: Path, data: bytes) -> None:
    file.unlink()
    file.write_bytes(data)


def tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def _flip_header_bytes(folder: Path, rng: random.Random) -> str:
    file = rng.choice(tensor_files(folder))
    data = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    where = [rng.randrange(8 + length) for _ in range(rng.choice((1, 1, 1, 4, 32)))]
    for position in where:
        data[position] ^= 1 << rng.randrange(8)
    replace_bytes(file, bytes(data))
    return f"{file.name} at {where}"


def _flip_header_length(folder: Path, rng: random.Random) -> str:
    file = rng.choice(tensor_files(folder))
    data = bytearray(file.read_bytes())
    data[:8] = struct.pack("<Q", rng.choice((0, 1, 7, 8, len(data), 2**31, 2**63, 2**64 - 1, rng.randrange(2**20))))
    replace_bytes(file, bytes(data))
    return f"{file.name} {data[:8].hex()}"


def _edit_header(folder: Path, rng: random.Random) -> str:
    """Valid json, but a tensor's entry says something else."""
    file = rng.choice(tensor_files(folder))
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([key for key in header if key != "__metadata__"])
    key = rng.choice(("dtype", "shape", "data_offsets"))
    value = rng.choice(
        {
            "dtype": ("F16", "I8", "BOOL", "F64", "F8_E4M3", "U64", "C64", "NONE", "", 5, None, []),
            "shape": ([], [1], [0], [2**40, 2**40], [-1], [1.5], "x", None, [*header[name]["shape"], 1]),
            "data_offsets": ([0, 0], [0], [5, 1], [-4, 4], [0, 2**63], [2**64, 2**65], "x", None),
        }[key]
    )
    header[name][key] = value
    text = json.dumps(header).encode()
    replace_bytes(file, struct.pack("<Q", len(text)) + text + data[8 + length :])
    return f"{file.name} {name} {key}={value}"


def _drop_tensor(folder: Path, rng: random.Random) -> str:
    file = rng.choice(tensor_files(folder))
    dropped = []
    rewrite_tensors(file, lambda tensors: dropped.append(tensors.pop(rng.choice(sorted(tensors))) is not None))
    return file.name


def _rename_tensor(folder: Path, rng: random.Random) -> str:
    file = rng.choice(tensor_files(folder))
    new = rng.choice(
        ("x", "", "embed_tokens.weight", "a.embed_tokens.weight", "ÿ\n", "transformer_blocks.99.x", "n" * 999)
    )

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors[new] = tensors.pop(rng.choice(sorted(tensors)))

    rewrite_tensors(file, rename)
    return f"{file.name} {new[:20]}"


def _swap_tensors(folder: Path, rng: random.Random) -> str:
    file = rng.choice(tensor_files(folder))

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        one, two = rng.choices(sorted(tensors), k=2)
        tensors[one], tensors[two] = tensors[two], tensors[one]

    rewrite_tensors(file, swap)
    return file.name


def _reshape_tensor(folder: Path, rng: random.Random) -> str:
    file = rng.choice(tensor_files(folder))

    def reshape(tensors: dict[str, torch.Tensor]) -> None:
        name = rng.choice(sorted(tensors))
        tensor = tensors[name]
        tensors[name] = rng.choice(
            (tensor.flatten(), tensor[None], tensor[:-1], tensor.T if tensor.ndim == 2 else tensor[:0], tensor.sum())
        )

    rewrite_tensors(file, reshape)
    return file.name


def _change_dtype(folder: Path, rng: random.Random) -> str:
    file = rng.choice(tensor_files(folder))
    dtype = rng.choice(
        (torch.int8, torch.bool, torch.float8_e4m3fn, torch.float64, torch.float16, torch.bfloat16, torch.int64)
    )

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = rng.choice(sorted(tensors))
        tensors[name] = tensors[name].to(dtype)

    rewrite_tensors(file, change)
    return f"{file.name} {dtype}"


def _change_values(folder: Path, rng: random.Random) -> str:
    file = rng.choice(tensor_files(folder))
    value = rng.choice((float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensor = tensors[rng.choice(sorted(tensors))]
        if rng.random() < 0.5:
            tensor.fill_(value)
        else:
            tensor.view(-1)[rng.randrange(tensor.numel())] = value

    rewrite_tensors(file, change)
    return f"{file.name} {value}"


def _add_tensor(folder: Path, rng: random.Random) -> str:
    file = rng.choice(tensor_files(folder))
    name = rng.choice(("extra", "transformer_blocks.3.norm1.weight", "decoder.conv_in.weight2", "visual.extra"))
    rewrite_tensors(file, lambda tensors: tensors.update({name: torch.zeros(rng.choice(((), (0,), (3, 3))))}))
    return f"{file.name} {name}"


def _truncate_file(folder: Path, rng: random.Random) -> str:
    file = rng.choice([*tensor_files(folder), *(folder / name for name in JSON_FILES)])
    data = file.read_bytes()
    kept = rng.choice((0, 1, 7, 8, 9, len(data) // 2, len(data) - 1, rng.randrange(len(data))))
    replace_bytes(file, data[:kept])
    return f"{file.name} to {kept}"


def _append_bytes(folder: Path, rng: random.Random) -> str:
    file = rng.choice([*tensor_files(folder), *(folder / name for name in JSON_FILES)])
    replace_bytes(file, file.read_bytes() + rng.randbytes(rng.choice((1, 8, 4096))))
    return file.name


def _remove_file(folder: Path, rng: random.Random) -> str:
    file = rng.choice([*tensor_files(folder), *(folder / name for name in JSON_FILES)])
    file.unlink()
    if rng.random() < 0.3:
        file.mkdir()
    elif rng.random() < 0.3:
        file.symlink_to(rng.choice(("nowhere", file.name, "/dev/null")))
    return file.name


def _set_json_value(folder: Path, rng: random.Random) -> str:
    file = folder / rng.choice(JSON_FILES)
    where = ""
    value = rng.choice(_WRONG_VALUES)

    def change(values: dict[str, Any]) -> None:
        nonlocal where
        target = values
        while True:
            key = rng.choice(sorted(target))
            where += f".{key}"
            if isinstance(target[key], dict) and target[key] and rng.random() < 0.8:
                target = target[key]
                continue
            target[key] = value
            return

    rewrite_json(file, change)
    return f"{file.name} {where}={value}"


def _nudge_json_number(folder: Path, rng: random.Random) -> str:
    file = folder / rng.choice(("transformer/config.json", "text_encoder/config.json", "vae/config.json"))
    where = ""

    def change(values: dict[str, Any]) -> None:
        nonlocal where
        target = values.get("text_config", values)
        numbers = [key for key, value in target.items() if isinstance(value, int) and not isinstance(value, bool)]
        key = rng.choice(sorted(numbers))
        target[key] = rng.choice((target[key] + 1, target[key] - 1, target[key] * 2, target[key] // 2, -target[key]))
        where = f"{key}={target[key]}"

    rewrite_json(file, change)
    return f"{file.name} {where}"


def _remove_json_key(folder: Path, rng: random.Random) -> str:
    file = folder / rng.choice(JSON_FILES)
    removed = []
    rewrite_json(file, lambda values: removed.append(values.pop(rng.choice(sorted(values)))))
    return file.name


def _flip_json_bytes(folder: Path, rng: random.Random) -> str:
    file = folder / rng.choice(JSON_FILES)
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    replace_bytes(file, bytes(data))
    return file.name


def _replace_json(folder: Path, rng: random.Random) -> str:
    file = folder / rng.choice(JSON_FILES)
    data = rng.choice((*_WRONG_JSON, rng.randbytes(200)))
    replace_bytes(file, data)
    return f"{file.name} {data[:20]!r}"


def _damage_index(folder: Path, rng: random.Random) -> str:
    """Only sharded checkpoints have an index; otherwise one is put beside the single file, or in its place."""
    indexes = sorted(folder.rglob("*.index.json"))
    if not indexes:
        file = rng.choice(tensor_files(folder))
        index = file.with_name(file.name + ".index.json")
        names = sorted(load_file(file))
        shard = rng.choice((file.name, "gone.safetensors", "../vae/diffusion_pytorch_model.safetensors", "", "a\0b"))
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
        if rng.random() < 0.5:
            file.unlink()
        return f"{index.name} {shard!r}"
    index = rng.choice(indexes)

    def change(values: dict[str, Any]) -> None:
        weights = values["weight_map"]
        name = rng.choice(sorted(weights))
        kind = rng.randrange(5)
        if kind == 0:
            del weights[name]
        elif kind == 1:
            weights[name] = rng.choice(sorted(set(weights.values())))
        elif kind == 2:
            weights[name] = rng.choice(
                (None, 1, [], {}, "", ".", "..", "/etc/passwd", "a/b", "gone.safetensors", "x" * 999)
            )
        elif kind == 3:
            values["weight_map"] = rng.choice((None, [], "x", {}, {"x": "y"}))
        else:
            weights["extra"] = weights[name]

    rewrite_json(index, change)
    return index.name


KINDS: tuple[Callable[[Path, random.Random], str], ...] = (
    _damage_index,
    _flip_header_bytes,
    _flip_header_bytes,
    _flip_header_length,
    _edit_header,
    _edit_header,
    _drop_tensor,
    _rename_tensor,
    _swap_tensors,
    _reshape_tensor,
    _change_dtype,
    _change_values,
    _add_tensor,
    _truncate_file,
    _append_bytes,
    _remove_file,
    _set_json_value,
    _set_json_value,
    _set_json_value,
    _nudge_json_number,
    _nudge_json_number,
    _remove_json_key,
    _flip_json_bytes,
    _replace_json,
)
