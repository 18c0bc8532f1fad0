"""Damage to files of published weights and LoRAs, chosen at random by a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.damage import replace_bytes, rewrite_tensors, tensor_files
from tests.random_damage import TENSOR_FILE_KINDS

_SUFFIXES = (
    "weight", "bias", "alpha", "diff", "diff_b", "set_weight", "dora_scale", "lora_A.weight", "lora_B",
    "lora_up.weight", "lokr_w1", "lokr_w2", "hada_w1_a", "oft_blocks", "weight_scale", "weight_scale_inv",
    "weight_scale_2", "scale_weight", "input_scale", "comfy_quant", "scale", "scales", "biases", "zero_point",
    "qweight", "qzeros", "g_idx", "wscales", "SCB", "weight_format", "weight.absmax", "weight.quant_map",
    "weight.nested_absmax", "weight.quant_state.bitsandbytes__nf4", "weight._data", "weight._scale", "weight_s_rel",
    "weight_codebook", "weight_correction", "weight_packed", "svd_up",
)  # fmt: skip
_VALUES = (
    None, True, "", "x", [], {}, 0, 1, -1, 2, 3, 63, 64, 2**20, 2**40, 10**30, 0.5, 1e300, float("nan"), [1], [9, 64],
    [2**40, 2**40], [0, 0], "nf4", "int8_tensorwise", "float8_e4m3fn_blockwise", "asym_w4a8_int8", "convrot_w4a4",
)  # fmt: skip
_CONTENTS = (
    b"", b"\0", b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b'{"error": "gone"}', b"Entry not found",
    b"PK\3\4", b"GGUF", b"GGUF\3\0\0\0" + b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}      ", b"{" * 9000,
    b'{"weight_map": {}}',
)  # fmt: skip
Damage = Callable[[Path, random.Random], str]


def damage(folder: Path, seed: int, others: Sequence[Path]) -> str:
    """Damage a folder's files in a way, or in two or three. Returns what was done.

    others: folders of which a file's tensors may come among its own.
    """
    rng = random.Random(seed)
    mixed = _mix(folder, rng, others) if tensor_files(folder) and rng.random() < 0.1 else ""
    of_tensors = (_rename_suffix, _edit_blob, _edit_metadata, *TENSOR_FILE_KINDS) if tensor_files(folder) else ()
    kinds: list[Damage] = [*of_tensors, *_FILE_KINDS]
    told = [mixed]
    for kind in (rng.choice(kinds), *[_flip_bytes] * rng.choice((0, 0, 0, 1))):
        if _files(folder):
            told.append(f"{kind.__name__.removeprefix('_')}: {kind(folder, rng)}")
    return "; ".join(filter(None, told))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _flip_bytes(folder: Path, rng: random.Random) -> str:
    file = rng.choice(_files(folder))
    data = bytearray(file.read_bytes())
    where = [rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 1, 4, 32)))] if data else []
    for position in where:
        data[position] ^= 1 << rng.randrange(8)
    replace_bytes(file, bytes(data))
    return f"{file.name} at {where}"


def _cut_or_add_bytes(folder: Path, rng: random.Random) -> str:
    file = rng.choice(_files(folder))
    data = file.read_bytes()
    kept = rng.choice((0, 7, 8, len(data) // 2, max(0, len(data) - 1), rng.randrange(len(data) + 1), len(data)))
    replace_bytes(file, data[:kept] + rng.randbytes(rng.choice((0, 0, 1, 4096))))
    return f"{file.name} to {kept}"


def _replace_content(folder: Path, rng: random.Random) -> str:
    file = rng.choice(_files(folder))
    content = rng.choice((*_CONTENTS, rng.randbytes(500)))
    replace_bytes(file, content)
    return f"{file.name} by {content[:20]!r}"


def _remove_file(folder: Path, rng: random.Random) -> str:
    file = rng.choice(_files(folder))
    file.unlink()
    if rng.random() < 0.3:
        file.mkdir()
    return file.name


def _rename_suffix(folder: Path, rng: random.Random) -> str:
    suffix = rng.choice(_SUFFIXES)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        name = rng.choice(sorted(tensors))
        layer = name.rpartition(".")[0] or name
        tensors[f"{layer.removesuffix('.weight')}.{suffix}"] = (
            tensors[name] if rng.random() < 0.3 else tensors.pop(name)
        )

    rewrite_tensors(rng.choice(tensor_files(folder)), rename)
    return suffix


def _edit_blob(folder: Path, rng: random.Random) -> str:
    """Json in a tensor's bytes says something else."""
    value = rng.choice(_VALUES)
    told = "nothing"

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        nonlocal told
        names = [name for name in sorted(tensors) if "quant_state." in name or name.endswith("comfy_quant")]
        if not names:
            return
        name = rng.choice(names)
        fields = json.loads(bytes(tensors[name].tolist()))
        key = rng.choice([*fields, "group_size", "convrot", "convrot_groupsize", "awq", "params"])
        fields[key] = value
        tensors[name] = torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)
        told = f"{name}.{key}={value}"

    rewrite_tensors(rng.choice(tensor_files(folder)), edit)
    return told


def _edit_metadata(folder: Path, rng: random.Random) -> str:
    """The header's own strings say something else."""
    file = rng.choice(tensor_files(folder))
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    layer = {"blocks.0.attn.wq": {"format": rng.choice(_VALUES), "group_size": rng.choice(_VALUES)}}
    key, value = rng.choice(
        (
            ("_quantization_metadata", json.dumps({"layers": layer})),
            ("_quantization_metadata", json.dumps(rng.choice(_VALUES))),
            ("quant_format", str(rng.choice(_VALUES))),
            ("lora_adapter_metadata", json.dumps({"lora_alpha": rng.choice(_VALUES), "r": rng.choice(_VALUES)})),
            ("lora_adapter_metadata", json.dumps({"alpha_pattern": {"x": rng.choice(_VALUES)}})),
            ("lora_alpha", str(rng.choice(_VALUES))),
            ("rank", str(rng.choice(_VALUES))),
            ("x", rng.choice(_VALUES)),
        )
    )
    header["__metadata__"] = {**header.get("__metadata__", {}), key: value}
    text = json.dumps(header).encode()
    replace_bytes(file, len(text).to_bytes(8, "little") + text + data[8 + length :])
    return f"{key}={value}"


def _mix(folder: Path, rng: random.Random, others: Sequence[Path]) -> str:
    """With all tensors of another file, in another form."""
    other = rng.choice([file for each in others for file in tensor_files(each)])
    rewrite_tensors(rng.choice(tensor_files(folder)), lambda tensors: tensors.update(load_file(other)))
    return f"mixed with {other.parent.name}"


_FILE_KINDS: tuple[Damage, ...] = (_flip_bytes, _flip_bytes, _cut_or_add_bytes, _replace_content, _remove_file)
