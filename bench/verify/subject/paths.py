"""Says why a path is nothing that can be verified, before anything slow is imported, downloaded or loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.layouts.component import open_text_encoder, open_transformer, open_vae
from engine.checkpoint.tokenizer_files import find_tokenizer
from engine.config.demo_checkpoints import DEMO_CHECKPOINTS, DEMO_LORAS
from engine.errors import ArgumentError, CheckpointError
from launcher.hub.names import HubName

_NEEDED = ("transformer/config.json", "text_encoder/config.json", "vae/config.json")
_WEIGHTS = ("transformer/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model")
_SPLIT = "tp-*/rank-*"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_FOLDER = "verify needs a folder in the diffusers layout, whose weights are not quantised"
_CONVERT = f"{_FOLDER}; of an unquantised checkpoint, `krea2 convert --layout diffusers` makes one"
_LORA = "is a LoRA, and verify compares checkpoints, without LoRAs"
_OF_LORA = re.compile(r"lora_|lokr_|hada_|\.lora[._]|dora_scale|\.diff(_b)?$")
_PEFT = "adapter_config.json"


def check_paths(names: Sequence[str]) -> None:
    """Look at the paths that are here; what is not may be a Hugging Face name, which `find_models` looks for. Raises
    `ArgumentError` and `CheckpointError`."""
    for name in names:
        if name in DEMO_LORAS:
            raise _refused(name, _LORA)
        if name not in DEMO_CHECKPOINTS and HubName.of_model(name) is None:
            check_folder(Path(name), name)


def check_folder(folder: Path, name: str) -> None:
    """Whether diffusers finds all parts in it. name: what was asked for, for the message."""
    if folder.is_file():
        raise _refused(name, _describe_file(folder))
    if not folder.is_dir():
        raise _refused(name, "there is no such folder")
    if (folder / _PEFT).is_file():
        raise _refused(name, _LORA)
    if not (folder / "model_index.json").is_file():
        raise _refused(name, f"there is no model_index.json in this folder; {_CONVERT}")
    if any(folder.glob(_SPLIT)) and not any((folder / "transformer").glob("*.safetensors*")):
        raise _refused(name, f"was split for ranks (--layout sharded), which diffusers cannot load; {_FOLDER}")
    lacking = [file for file in _NEEDED if not (folder / file).is_file()]
    try:
        find_tokenizer(folder / "tokenizer")
    except CheckpointError as error:
        lacking.append(f"a tokenizer ({error.message})")
    for stem in _WEIGHTS:  # one file, or the index of its shards
        if not any((folder / f"{stem}.safetensors{end}").is_file() for end in ("", ".index.json")):
            lacking.append(f"{stem}.safetensors")
    if lacking:
        raise _refused(name, f"diffusers cannot load it: it lacks {', '.join(lacking)}; {_CONVERT}")


def check_formats(formats: Sequence[str], name: str) -> None:
    """Check the dtypes of the weights. Raises `ArgumentError` for weights that only the engine reads."""
    quantised = sorted(set(formats) - _FLOATS)
    if quantised:
        raise _refused(
            name, f"has quantised weights ({', '.join(quantised)}), which diffusers does not read; {_CONVERT}"
        )


def _describe_file(path: Path) -> str:
    """What a single file is, and what to do."""
    file = open_tensor_file(path)
    names = list(file.headers)
    file.close()
    if any(_OF_LORA.search(name) for name in names):
        return _LORA
    for part, opener in (("transformer", open_transformer), ("text encoder", open_text_encoder), ("VAE", open_vae)):
        try:
            component = opener(path)
        except CheckpointError:
            continue
        component.file.close()
        quantised = sorted({tensor.format for tensor in component.tensors.values()} - _FLOATS)
        stored = f", quantised ({', '.join(quantised)})" if quantised else ""
        return f"is a single file, Krea 2's {part}{stored}; {_CONVERT}"
    return f"is a file, and no part of Krea 2; {_FOLDER}"


def _refused(name: str, reason: str) -> ArgumentError:
    return ArgumentError(f"model {name!r}: {reason}", parameter="model")
