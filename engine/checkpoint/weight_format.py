"""The format in which a rank keeps each parameter, and the bytes that it takes. Pure Python, so that `krea2 info` can
tell what loading will do.

A file's 8-bit matrices stay in 8 bits, so nothing that a quantised file saved is given up; other quantised tensors are
dequantised once, when they are loaded. A parameter has one format: where a file quantised only some of the matrices
that are stacked into it, it is dequantised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.files.stored import INT8_GROUP, StoredTensor, WeightFormat
from engine.checkpoint.layouts.tensors import Source, sources_by_parameter
from engine.config.components import VAE_ENCODER
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig

# The matrices of the DiT's blocks, which are nearly all of its work. What is left in the model's dtype (the layers
# around the blocks, text fusion, norms and tables) is less than a hundredth of it, and costs an image most in 8 bits.
BLOCK_MATRICES = ("attn.qkvg", "attn.out", "ff.gate_up", "ff.down")
# The parallel layers of all components, which can compute with 8-bit weights.
_EIGHT_BIT_LAYERS = (*BLOCK_MATRICES, "attn.qkv", "mlp.gate_up", "mlp.down")

_FLOAT32_BYTES, _SCALE_BYTES, _GROUP_SCALE_BYTES = 4, 4, 2


class Weights(Protocol):
    """Where the weights of a model come from: a checkpoint's files or, in a benchmark, random numbers.

    sources: by component: text_encoder, transformer, vae, and vae_encoder where pictures may go in.
    """

    config: ModelConfig
    sources: dict[str, list[Source]]

    def stored(self, component: str, source: Source) -> StoredTensor:
        """Return the tensor that `source` describes."""
        ...

    def close(self) -> None:
        """Let go of the files. Tensors that were read stay valid."""
        ...


class ParameterFormat(NamedTuple):
    """What a rank keeps of a parameter: its format, its elements, and the bytes of these and their scales.
    full_precision: products with it are in the model's dtype, since its file asks for that."""

    weight_format: WeightFormat
    elements: int
    bytes: int
    full_precision: bool = False


def in_blocks(parameter: str) -> bool:
    """Whether a parameter is one of the matrices that `--quantization` is about."""
    return parameter.startswith("transformer_blocks.") and parameter.endswith(
        tuple(f".{matrix}.weight" for matrix in BLOCK_MATRICES)
    )


def choose_weight_format(
    quantization: str, sources: Sequence[Source], stored: Sequence[StoredTensor], size: int
) -> WeightFormat:
    """Choose the format of the parameter that `sources` fill, on each of `size` ranks.

    quantization: "auto" leaves 8-bit matrices as the file has them, "none" dequantises them, "fp8" and "int8" make
    the blocks' matrices that, int8 only where 32 divides a rank's columns, and leave the others as "auto" does.
    """
    parameter = sources[0].parameter
    if quantization == "none" or not parameter.endswith(tuple(f".{layer}.weight" for layer in _EIGHT_BIT_LAYERS)):
        return "float"
    asked = in_blocks(parameter) and quantization != "auto"
    wanted = {quantization} if asked else {tensor.weight_format for tensor in stored}
    if wanted == {"int8"} and sources[0].shard_shape(size)[1] % INT8_GROUP == 0:
        return "int8"
    return "fp8" if wanted == {"fp8"} else "float"


def parameter_formats(
    weights: Weights, tp: int, bytes_per_element: int, quantization: str = "auto", *, whole_text_encoder: bool = False
) -> dict[str, dict[str, ParameterFormat]]:
    """Return what one of `tp` ranks keeps of every parameter, by component and name; the VAE's are those of a rank
    that has it. bytes_per_element: of parameters that are neither float32 nor 8-bit (2 for bfloat16).
    whole_text_encoder: its matrices are not split."""
    components: dict[str, dict[str, ParameterFormat]] = {}
    for component, sources in weights.sources.items():
        components[component] = {}
        ranks = 1 if whole_text_encoder and component == "text_encoder" else tp
        for name, together in sources_by_parameter(sources).items():
            tensors = [weights.stored(component, source) for source in together]
            weight_format = choose_weight_format(quantization, together, tensors, ranks)
            shapes = [source.shard_shape(ranks) for source in together]
            elements = sum(math.prod(shape) for shape in shapes)
            if weight_format == "fp8":
                size = elements + sum(shape[0] for shape in shapes) * _SCALE_BYTES
            elif weight_format == "int8":
                size = elements + elements // INT8_GROUP * _GROUP_SCALE_BYTES
            else:
                size = elements * (_FLOAT32_BYTES if together[0].float32 else bytes_per_element)
            full_precision = quantization != "fp8" and any(tensor.full_precision for tensor in tensors)
            components[component][name] = ParameterFormat(weight_format, elements, size, full_precision)
    return components


class ComponentSummary(NamedTuple):
    """One component: parameters that are used, and the bytes that each rank keeps of them (rank 0 first)."""

    name: str
    parameters: int
    bytes_per_rank: tuple[int, ...]


def summarize(checkpoint: CheckpointFiles, engine: EngineConfig, bytes_per_element: int) -> list[ComponentSummary]:
    """Sum up, by component, what `parameter_formats` says of each of the engine's ranks, which must divide the model.
    The first rank has the VAE, and the others if they decode together."""
    formats = parameter_formats(checkpoint, engine.tp, bytes_per_element, engine.quantization)
    summaries = []
    for component, parameters in formats.items():
        size = sum(parameter.bytes for parameter in parameters.values())
        others = 0 if component in ("vae", VAE_ENCODER) and not engine.decodes_together else size
        bytes_per_rank = (size, *[others] * (engine.ranks - 1))
        summaries.append(ComponentSummary(component, checkpoint.parameters[component], bytes_per_rank))
    return summaries
