"""The demo's transformer in files of the formats that people download, which round its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.files.stored import whole
from engine.config.engine_config import EngineConfig

FILES = {
    "fp8 (scaled)": ("native", "fp8"),
    "int8 ConvRot": ("native", "int8-convrot"),
    "mxfp8": ("native", "mxfp8"),
    "nvfp4": ("native", "nvfp4"),
    "GGUF Q8_0": ("gguf", "q8_0"),
    "GGUF Q6_K": ("gguf", "q6_k"),
    "GGUF Q5_K": ("gguf", "q5_k"),
    "GGUF Q5_0": ("gguf", "q5_0"),
    "GGUF Q4_K": ("gguf", "q4_k"),
    "GGUF Q4_0": ("gguf", "q4_0"),
}


@contextmanager
def demo_file(file: tuple[str, str] | None) -> Iterator[str | None]:
    """The demo's transformer in a file of this layout and these weights, while this is open."""
    if file is None:
        yield None
        return
    from engine.checkpoint.convert.convert import convert  # which needs gguf

    layout, weights = file
    with TemporaryDirectory() as folder, closing(CheckpointFiles.open(EngineConfig())) as checkpoint:
        path = Path(folder, "transformer")
        if weights.endswith("_k"):
            _write_k_quants(checkpoint, path, weights.upper())
        else:
            convert(checkpoint, path, layout=layout, weights=weights)
        yield str(path)


def _write_k_quants(checkpoint: CheckpointFiles, path: Path, qtype: str) -> None:
    """Write what a K-quant makes of the demo's matrices. Their widths are no multiples of its 256 numbers, so that no
    GGUF file can have them: each matrix's rows are quantised one after the other, and their values written as floats.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    from engine.checkpoint.convert.convert import is_table
    from engine.checkpoint.convert.k_blocks import SUPER_BLOCK
    from engine.checkpoint.convert.k_quants import quantize_k
    from engine.checkpoint.convert.writers import gguf_types, safetensors_writer

    tensors = checkpoint.components["transformer"].tensors
    types = gguf_types({name: tensor.shape for name, tensor in tensors.items()}, qtype, set(filter(is_table, tensors)))
    with safetensors_writer(path, len(tensors)) as writer:
        for name, tensor in tensors.items():
            values = tensor.read(whole(tensor.shape))
            if types[name] != "F32":
                blocks = quantize_k(values.reshape(-1, SUPER_BLOCK), qtype)
                rounded = dequantize(blocks, GGMLQuantizationType[qtype])
                values = torch.from_numpy(rounded).reshape(tensor.shape)
            writer.add(name, values)
