"""Text fusion and one forward of the diffusion transformer against diffusers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from engine.kernels.packing import Packing
from engine.kernels.rope import image_rotations
from engine.model.batch import Layout, Segment
from engine.rank.rank import Rank
from tests.engine_runs import on_ranks
from tests.oracle import load_pipeline, relative_error

TOLERANCE = 1e-5
DEGREES = (1, 2, 4)
TEXT_LENGTHS = (5, 12, 512, 12, 6)
# (rows, columns) of image tokens, and the timestep; the first two segments are one guided image
IMAGES = (((8, 8), 1.0), ((8, 8), 1.0), ((21, 13), 0.5), ((4, 32), 0.0312), ((1, 1), 0.77))


def text_states() -> torch.Tensor:
    return torch.randn(sum(TEXT_LENGTHS), 3, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tp", DEGREES)
def test_text_fusion_equals_diffusers(turbo: Path, tp: int) -> None:
    states, packing = text_states(), Packing(TEXT_LENGTHS, torch.device("cpu"))
    reference = load_pipeline(turbo).transformer

    def fuse(rank: Rank) -> tuple[torch.Tensor, torch.Tensor]:
        return rank.model.transformer.text_fusion(states, packing), rank.model.transformer.encode_text(states, packing)

    for fused, features in on_ranks(turbo, fuse, tp=tp):
        for start, stop in pairwise(packing.bounds):
            with torch.inference_mode():
                theirs = reference.text_fusion(states[None, start:stop])
                assert relative_error(fused[start:stop], theirs[0]) <= TOLERANCE
                assert relative_error(features[start:stop], reference.txt_in(theirs)[0]) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_time_modulation_equals_diffusers(turbo: Path, dtype: torch.dtype) -> None:
    """In bfloat16, too, where rounding t first turns the fastest sinusoids by up to two radians."""
    timesteps = torch.linspace(1.0, 0.001, 37)
    reference = load_pipeline(turbo, dtype).transformer

    def encode(rank: Rank) -> tuple[torch.Tensor, torch.Tensor]:
        modulation = rank.model.transformer.encode_timesteps(timesteps)
        return modulation.final, modulation.block

    ((final, block),) = on_ranks(turbo, encode, dtype=str(dtype).removeprefix("torch."))
    with torch.inference_mode():
        theirs = reference.time_embed(timesteps.to(dtype), dtype)
        theirs_block = reference.time_mod_proj(torch.nn.functional.gelu(theirs, approximate="tanh"))
    tolerance = TOLERANCE if dtype == torch.float32 else 0.02
    assert relative_error(final, theirs[:, 0].float()) <= tolerance
    assert relative_error(block, theirs_block[:, 0].float()) <= tolerance


@pytest.mark.parametrize("tp", DEGREES)
def test_velocities_of_a_packed_batch_equal_diffusers_one_by_one(turbo: Path, tp: int) -> None:
    states, text_packing = text_states(), Packing(TEXT_LENGTHS, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    image_of = (0, 0, 1, 2, 3)
    sizes = [IMAGES[image_of.index(image)][0] for image in range(4)]
    latents = [torch.randn(rows * columns, 64, generator=generator) for rows, columns in sizes]
    timesteps = torch.tensor([timestep for _, timestep in IMAGES])
    segments = [
        Segment(image, length, *grid) for image, length, (grid, _) in zip(image_of, TEXT_LENGTHS, IMAGES, strict=True)
    ]
    reference = load_pipeline(turbo).transformer

    def forward(rank: Rank) -> torch.Tensor:
        dit = rank.model.config.transformer
        grids = [image_rotations(s.grid_height, s.grid_width, dit.axes_dims_rope, dit.rope_theta) for s in segments]
        text = list(rank.model.transformer.encode_text(states, text_packing).split(TEXT_LENGTHS))
        modulation = rank.model.transformer.encode_timesteps(timesteps)
        return rank.model.transformer(text, latents, modulation, Layout(segments, grids, tensor=rank.model.mesh.tp))

    expected = []
    for segment, timestep, (start, stop) in zip(segments, timesteps, pairwise(text_packing.bounds), strict=True):
        positions = load_pipeline(turbo).prepare_position_ids(
            segment.text_tokens, segment.grid_height, segment.grid_width, torch.device("cpu")
        )
        with torch.inference_mode():
            expected.append(
                reference(latents[segment.image][None], states[None, start:stop], timestep[None], positions).sample[0]
            )
    for velocities in on_ranks(turbo, forward, tp=tp):
        for ours, theirs in zip(velocities.split([s.image_tokens for s in segments]), expected, strict=True):
            assert relative_error(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("mode", [{}, *(pytest.param({m: 2}, marks=pytest.mark.slow) for m in ("tp", "sp"))], ids=str)
def test_blocks_in_parts_are_the_same_to_the_last_bit(turbo: Path, mode: dict[str, int]) -> None:
    """With and without norming the rows again in between."""

    def denoise_in_two(rank: Rank) -> list[torch.Tensor]:
        mesh, transformer, results = rank.model.mesh, rank.model.transformer, []
        dit, segments = rank.model.config.transformer, [Segment(0, 5, 8, 8), Segment(1, 12, 4, 7)]
        grids = [image_rotations(s.grid_height, s.grid_width, dit.axes_dims_rope, dit.rope_theta) for s in segments]
        layout = Layout(segments, grids, mesh.sp, mesh.tp)
        modulation = transformer.encode_timesteps(torch.tensor([0.3, 0.9]))
        rows = torch.randn(layout.share.whole.tokens, dit.hidden_size, generator=torch.Generator().manual_seed(0))
        around = modulation, layout.share, layout.rotations
        results.append(transformer.denoise(layout.share.take_own(rows.clone()), *around))
        for again in (False, True):
            passing = transformer.enter(0, layout.share.take_own(rows.clone()), *around)
            for part in (range(1), range(1, 1), range(1, dit.num_layers)):
                transformer.run_blocks(passing, part)
                if again:
                    passing = transformer.enter(part.stop, passing.x, *around)
            results.append(transformer.finish(passing))
        return results

    for whole, *in_parts in on_ranks(turbo, denoise_in_two, **mode):
        assert all(torch.equal(each, whole) for each in in_parts)
