"""Damage to the files of a checkpoint, chosen at random by a seed."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import torch

from tests.damage import replace_bytes, rewrite_tensors, tensor_files
from tests.random_json_damage import (
    JSON_FILES,
    damage_index,
    flip_json_bytes,
    nudge_json_number,
    remove_json_key,
    replace_json,
    set_json_value,
)


def damage(folder: Path, seed: int) -> str:
    """Damage a copied checkpoint in one way, of which every `len(KINDS)` seeds in a row have each. Returns what was
    done."""
    kind = KINDS[seed % len(KINDS)]
    return f"{kind.__name__.removeprefix('_')}: {kind(folder, random.Random(seed))}"


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
        flat = tensor.flatten()
        smaller = (tensor[:-1], tensor.T if tensor.ndim == 2 else tensor[:0]) if tensor.ndim else (flat[:0],)
        tensors[name] = rng.choice((flat, tensor[None], *smaller, tensor.new_zeros(())))

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
        fitting = torch.tensor(value if tensor.is_floating_point() else rng.randrange(128)).to(tensor.dtype)
        if rng.random() < 0.5:
            tensor.copy_(fitting)
        elif tensor.numel():
            tensor.view(-1)[rng.randrange(tensor.numel())].copy_(fitting)

    rewrite_tensors(file, change)
    return f"{file.name} {value}"


def _add_tensor(folder: Path, rng: random.Random) -> str:
    file = rng.choice(tensor_files(folder))
    name = rng.choice(("extra", "transformer_blocks.3.norm1.weight", "decoder.conv_in.weight2", "visual.extra"))
    rewrite_tensors(file, lambda tensors: tensors.update({name: torch.zeros(rng.choice(((), (0,), (3, 3))))}))
    return f"{file.name} {name}"


def _any_file(folder: Path) -> list[Path]:
    return [*tensor_files(folder), *(folder / name for name in JSON_FILES if (folder / name).exists())]


def _truncate_file(folder: Path, rng: random.Random) -> str:
    file = rng.choice(_any_file(folder))
    data = file.read_bytes()
    kept = rng.choice((0, 1, 7, 8, 9, len(data) // 2, len(data) - 1, rng.randrange(len(data))))
    replace_bytes(file, data[:kept])
    return f"{file.name} to {kept}"


def _append_bytes(folder: Path, rng: random.Random) -> str:
    file = rng.choice(_any_file(folder))
    replace_bytes(file, file.read_bytes() + rng.randbytes(rng.choice((1, 8, 4096))))
    return file.name


def _remove_file(folder: Path, rng: random.Random) -> str:
    file = rng.choice(_any_file(folder))
    file.unlink()
    if rng.random() < 0.3:
        file.mkdir()
    elif rng.random() < 0.3:
        file.symlink_to(rng.choice(("nowhere", file.name, "/dev/null")))
    return file.name


# To safetensors files alone.
TENSOR_FILE_KINDS: tuple[Callable[[Path, random.Random], str], ...] = (
    _flip_header_bytes,
    _flip_header_length,
    _edit_header,
    _drop_tensor,
    _rename_tensor,
    _swap_tensors,
    _reshape_tensor,
    _change_dtype,
    _change_values,
    _add_tensor,
)
KINDS: tuple[Callable[[Path, random.Random], str], ...] = (
    damage_index,
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
    set_json_value,
    set_json_value,
    set_json_value,
    nudge_json_number,
    nudge_json_number,
    remove_json_key,
    flip_json_bytes,
    replace_json,
)
