"""How large a checkpoint is, and what each rank holds of it. Reads headers only and imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from engine.checkpoint.files import CheckpointFiles
from engine.checkpoint.holding import held_as, held_bytes
from engine.checkpoint.tensors import sources_by_parameter


@dataclass(frozen=True)
class ComponentSummary:
    """One component: parameters that are used, and the bytes that each rank holds of them (rank 0 first)."""

    name: str
    parameters: int
    bytes_per_rank: tuple[int, ...]


def summarize(
    checkpoint: CheckpointFiles, tp: int, bytes_per_element: int, quantization: str = "auto"
) -> list[ComponentSummary]:
    """Sum up the tensors that inference needs, at `bytes_per_element` (2 for bfloat16) but for those kept in float32
    and those held in 8 bits.

    Raises `ArgumentError` if `tp` does not divide the model.
    """
    checkpoint.config.check_tp(tp)
    summaries = []
    for component, sources in checkpoint.sources.items():
        held = 0
        for together in sources_by_parameter(sources).values():
            stored = [checkpoint.stored(component, source) for source in together]
            form = held_as(quantization, together, stored, tp)
            held += held_bytes(form, together, tp, bytes_per_element)
        on_rank_0_only = component == "vae"
        bytes_per_rank = tuple(held if rank == 0 or not on_rank_0_only else 0 for rank in range(tp))
        summaries.append(ComponentSummary(component, checkpoint.parameters[component], bytes_per_rank))
    return summaries
