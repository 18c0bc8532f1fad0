"""How large a checkpoint is, and what each rank holds of it. Reads headers only and imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.files.stored import Held, StoredTensor
from engine.checkpoint.layouts.tensors import Source, sources_by_parameter
from engine.checkpoint.weight_format import held_as, held_bytes


@dataclass(frozen=True)
class ComponentSummary:
    """One component: parameters that are used, and the bytes that each rank holds of them (rank 0 first)."""

    name: str
    parameters: int
    bytes_per_rank: tuple[int, ...]


class HeldParameter(NamedTuple):
    """One parameter on a rank: in which form, of how many elements, and the bytes of these and their scales.
    full_precision: products with it are in the model's dtype, since its file asks for that."""

    form: Held
    elements: int
    bytes: int
    full_precision: bool = False


class Tensors(Protocol):
    """Where `Source`s are looked up, as in `Weights`."""

    sources: dict[str, list[Source]]

    def stored(self, component: str, source: Source) -> StoredTensor: ...


def held_parameters(
    checkpoint: Tensors,
    tp: int,
    bytes_per_element: int,
    quantization: str = "auto",
    *,
    whole_text_encoder: bool = False,
) -> dict[str, dict[str, HeldParameter]]:
    """Every parameter of a rank by component and name, the decoder's being those of a rank that has it, at
    `bytes_per_element` (2 for bfloat16) but for those kept in float32 and those held in 8 bits. whole_text_encoder: its
    matrices are not split."""
    components: dict[str, dict[str, HeldParameter]] = {}
    for component, sources in checkpoint.sources.items():
        components[component] = {}
        ranks = 1 if whole_text_encoder and component == "text_encoder" else tp
        for name, together in sources_by_parameter(sources).items():
            tensors = [checkpoint.stored(component, source) for source in together]
            form = held_as(quantization, together, tensors, ranks)
            components[component][name] = HeldParameter(
                form,
                sum(math.prod(source.shard_shape(ranks)) for source in together),
                held_bytes(form, together, ranks, bytes_per_element),
                quantization != "fp8" and any(tensor.full_precision for tensor in tensors),
            )
    return components


def summarize(
    checkpoint: CheckpointFiles,
    tp: int,
    bytes_per_element: int,
    quantization: str = "auto",
    *,
    copies: int = 1,
    all_decode: bool = True,
) -> list[ComponentSummary]:
    """Sum up the tensors that inference needs, held by tp ranks, or so many times by as many, as
    `held_parameters` says. all_decode: not only rank 0 has the decoder.

    Raises `ArgumentError` if `tp` does not divide the model.
    """
    checkpoint.config.check_tp(tp)
    summaries = []
    for component, parameters in held_parameters(checkpoint, tp, bytes_per_element, quantization).items():
        held = sum(parameter.bytes for parameter in parameters.values())
        on_rank_0_only = component == "vae" and not all_decode
        bytes_per_rank = tuple(held if rank == 0 or not on_rank_0_only else 0 for rank in range(tp * copies))
        summaries.append(ComponentSummary(component, checkpoint.parameters[component], bytes_per_rank))
    return summaries
