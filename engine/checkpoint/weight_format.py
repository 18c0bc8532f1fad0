"""In what form each matrix is held in memory. Pure Python: `krea2 info` tells it beforehand, loading does it.

A file's 8-bit matrices stay in 8 bits, so nothing that a quantised file saved is given up; what has no such form is
dequantised once, when it is loaded. Only whole parameters are held in a form: where a file quantised some of the
matrices that are stacked into one parameter and others not, the parameter is dequantised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.checkpoint.files.stored import INT8_GROUP, Held, StoredTensor
from engine.checkpoint.layouts.tensors import Source

# The matrices of the DiT's blocks, which are nearly all of its work. What is left in the model's dtype (the layers
# around the blocks, text fusion, norms and tables) is less than a hundredth of it, and hurts most.
BLOCK_MATRICES = ("attn.qkvg", "attn.out", "ff.gate_up", "ff.down")
# The parallel layers of all components: those that can compute with 8-bit weights.
_EIGHT_BIT_LAYERS = (*BLOCK_MATRICES, "attn.qkv", "mlp.gate_up", "mlp.down")

_FLOAT32_BYTES, _SCALE_BYTES, _GROUP_SCALE_BYTES = 4, 4, 2


def in_blocks(parameter: str) -> bool:
    """Whether a parameter is one of the matrices that `--quantization` is about."""
    return parameter.startswith("transformer_blocks.") and parameter.endswith(
        tuple(f".{matrix}.weight" for matrix in BLOCK_MATRICES)
    )


def held_as(quantization: str, sources: Sequence[Source], stored: Sequence[StoredTensor], size: int) -> Held:
    """The form of the parameter that `sources` fill, on each of `size` ranks.

    quantization: "auto" leaves 8-bit matrices as the file has them, "none" dequantises them, "fp8" and "int8" make
    the blocks' matrices that and leave the others as "auto" does.
    """
    parameter = sources[0].parameter
    if quantization == "none" or not parameter.endswith(tuple(f".{layer}.weight" for layer in _EIGHT_BIT_LAYERS)):
        return "float"
    if in_blocks(parameter) and quantization == "fp8":
        return "fp8"
    width = sources[0].shard_shape(size)[1]
    if in_blocks(parameter) and quantization == "int8":
        return "int8" if width % INT8_GROUP == 0 else "float"
    forms = {tensor.held for tensor in stored}
    if forms == {"int8"} and width % INT8_GROUP == 0:
        return "int8"
    return "fp8" if forms == {"fp8"} else "float"


def held_bytes(held: Held, sources: Sequence[Source], size: int, bytes_per_element: int) -> int:
    """What the parameter takes on a rank."""
    total = 0
    for source in sources:
        shape = source.shard_shape(size)
        elements = math.prod(shape)
        if held == "fp8":
            total += elements + shape[0] * _SCALE_BYTES
        elif held == "int8":
            total += elements + elements // INT8_GROUP * _GROUP_SCALE_BYTES
        else:
            total += elements * (_FLOAT32_BYTES if source.float32 else bytes_per_element)
    return total
