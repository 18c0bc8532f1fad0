"""Damage to a checkpoint's JSON files, chosen at random by a seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.damage import replace_bytes, rewrite_json, tensor_files

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


def set_json_value(folder: Path, rng: random.Random) -> str:
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


def nudge_json_number(folder: Path, rng: random.Random) -> str:
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


def remove_json_key(folder: Path, rng: random.Random) -> str:
    file = folder / rng.choice(JSON_FILES)
    removed = []
    rewrite_json(file, lambda values: removed.append(values.pop(rng.choice(sorted(values)))))
    return file.name


def flip_json_bytes(folder: Path, rng: random.Random) -> str:
    file = folder / rng.choice(JSON_FILES)
    data = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    replace_bytes(file, bytes(data))
    return file.name


def replace_json(folder: Path, rng: random.Random) -> str:
    file = folder / rng.choice(JSON_FILES)
    data = rng.choice((*_WRONG_JSON, rng.randbytes(200)))
    replace_bytes(file, data)
    return f"{file.name} {data[:20]!r}"


def damage_index(folder: Path, rng: random.Random) -> str:
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
