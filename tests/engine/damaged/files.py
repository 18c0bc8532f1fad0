"""Small files in every form that people publish weights and LoRAs in, to be damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from safetensors.torch import save_file

from engine.checkpoint.convert.quantize import header_metadata
from engine.config.model_config import ModelConfig
from tests.engine.checkpoint.files.gguf_files import random_blocks
from tests.engine.checkpoint.layouts.encoded import FORMATS, encode
from tests.engine.checkpoint.layouts.published import FORMS, publish
from tests.engine.lora.adapter_files import SCHEMES, draw_low_rank, draw_vectors, layer_shapes, native_names

Tensors = dict[str, torch.Tensor]
LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k", "transformer_blocks.0.attn.to_v")
LAYERS += ("transformer_blocks.1.ff.down", "img_in")
_PLAIN = {"blocks.0.prenorm.scale": torch.zeros(64), "first.bias": torch.zeros(8)}


def write_weights(root: Path) -> list[Path]:
    """Folders of one file, or of several that are one. Returns them."""
    folders = []

    def folder(name: str) -> Path:
        folders.append(root / name.replace(" ", "_"))
        folders[-1].mkdir(parents=True)
        return folders[-1]

    generator = torch.Generator().manual_seed(0)
    for form in FORMS:
        tensors = publish(form, "blocks.0.attn.wq", torch.randn(9, 64, generator=generator)).tensors | _PLAIN
        save_file(tensors, folder(form) / "model.safetensors")
    for format in FORMATS:
        encoded, options = encode(format, "blocks.0.attn.wq", torch.randn(9, 256, generator=generator))
        save_file(
            encoded | _PLAIN, folder(format) / "model.safetensors", header_metadata({"blocks.0.attn.wq": options})
        )
    shards = folder("shards")
    weight_map = {}
    for number, form in enumerate(("bitsandbytes nf4 twice", "DeepSeek")):
        name = f"model-{number}.safetensors"
        tensors = publish(form, f"blocks.{number}.attn.wq", torch.randn(9, 64, generator=generator)).tensors
        save_file(tensors, shards / name)
        weight_map |= dict.fromkeys(tensors, name)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, parts in (("gguf", {}), ("gguf parts", {"split_max_tensors": 2})):
        _write_gguf(folder(name) / "model.gguf", **parts)
    return folders


def _write_gguf(path: Path, **options: int) -> None:
    writer = GGUFWriter(path, "krea2", **options)
    writer.add_tensor("first.bias", np.zeros(6, np.float32))
    for dtype in (Type.Q8_0, Type.Q4_K, Type.Q6_K, Type.Q5_0):
        writer.add_tensor(f"blocks.0.{dtype.name}", random_blocks(dtype, 4, 2), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_loras(root: Path, checkpoint: Path) -> list[Path]:
    """Folders of one LoRA that fits the checkpoint. Returns them."""
    shapes = layer_shapes(checkpoint)
    change = draw_low_rank({layer: shapes[layer] for layer in LAYERS}, rank=2)
    natives = native_names(ModelConfig.from_folder(checkpoint).transformer)
    files: dict[str, Tensors] = {scheme: write(change, natives) for scheme, write in SCHEMES.items()}
    rows, columns = shapes[LAYERS[0]]
    path = f"diffusion_model.{natives[LAYERS[0]]}"
    low_rank = {"lora_A.weight": torch.ones(2, columns), "lora_B.weight": torch.ones(rows, 2)}
    kinds: dict[str, Tensors] = {
        "LoKr": {
            "lokr_w1": torch.ones(8, 8),
            "lokr_w2_a": torch.ones(rows // 8, 2),
            "lokr_w2_b": torch.ones(2, columns // 8),
        },
        "LoHa": {
            f"hada_w{n}_{ab}": torch.ones((rows, 2) if ab == "a" else (2, columns)) for n in (1, 2) for ab in "ab"
        },
        "DoRA": low_rank | {"dora_scale": torch.ones(rows, 1), "alpha": torch.tensor(2.0)},
        "DoRA of columns": low_rank | {"dora_scale": torch.ones(1, columns)},
        "difference": {"diff": torch.ones(rows, columns)},
        "replacement": {"set_weight": torch.ones(rows, columns)},
    }
    files |= {name: {f"{path}.{role}": tensor for role, tensor in tensors.items()} for name, tensors in kinds.items()}
    files["vectors"] = {f"{name}.diff": tensor for name, tensor in draw_vectors(checkpoint).items()}
    files["fp8"] = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in files["7 kohya"].items()}
    header = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 4, "transformer.r": 2})}
    folders = []
    for name, tensors in files.items():
        folders.append(root / name.replace(" ", "_"))
        folders[-1].mkdir(parents=True)
        contents = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        save_file(contents, folders[-1] / "lora.safetensors", header if name.startswith(("1", "6")) else None)
    return folders
