"""Memory plans: within the budget, never slower for more of it, and refusals that say what would do."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.engines.real_size import KREA2, RandomWeights
from engine.checkpoint.files.stored import WeightFormat
from engine.checkpoint.weight_format import ParameterFormat
from engine.config.degrees import Degrees
from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER, VAE, EngineConfig
from engine.errors import ArgumentError
from engine.planning.memory_plan import MemoryPlan, plan_checkpoint, plan_memory, shown, slot_bytes, spread
from engine.planning.step_memory import (
    communication_bytes,
    decode_bytes,
    encode_bytes,
    picture_encode_bytes,
    step_bytes,
)
from engine.planning.weight_bytes import WeightBytes

# bfloat16, as `krea2 info` shows them: 12.8 and 4.0 billion parameters
BFLOAT16 = WeightBytes(
    dit_blocks=(868_000_000,) * 28,
    dit_rest=1_300_000_000,
    text_layers=(201_900_000,) * 35,
    text_rest=778_000_000,
    vae=110_000_000,
    small=10_000_000,
)
EIGHT_BIT = replace(BFLOAT16, dit_blocks=(434_300_000,) * 28)
GB = 10**9

sizes = st.integers(1, 10**9)
weight_bytes = st.builds(
    WeightBytes,
    dit_blocks=st.lists(sizes, min_size=1, max_size=12).map(tuple),
    dit_rest=sizes,
    text_layers=st.lists(sizes, min_size=1, max_size=8).map(tuple),
    text_rest=sizes,
    vae=sizes,
    vae_encoder=sizes,
    small=sizes,
    dequantized=st.integers(0, 10**8),
)
offloads = st.sampled_from([(), (DIT,), (DIT_LAYERWISE,), (TEXT_ENCODER,), (DIT, TEXT_ENCODER, VAE), (VAE,)])
prefetches = st.sampled_from([None, 0, 1, 2, 5])


def make_plan(weights: WeightBytes, budget: int | None, **options: Any) -> MemoryPlan:
    return plan_memory(KREA2, weights, EngineConfig(memory_budget=budget, **options), 2, budget=budget)


def plan_or_error(
    weights: WeightBytes, budget: int, offload: tuple[str, ...], prefetch: int | None
) -> MemoryPlan | ArgumentError:
    try:
        return make_plan(weights, budget, offload=offload, prefetch=prefetch)
    except ArgumentError as error:
        return error


def cost(plan: MemoryPlan) -> tuple[bool, int]:
    """Whether copies are waited for, and the bytes that are copied for an image."""
    copied = plan.copied_per_step * KREA2.default_steps + plan.copied_per_prompt
    return plan.prefetch == 0 and copied > 0, copied


def test_the_encoder_counts_where_pictures_may_go_in() -> None:
    weights = RandomWeights(KREA2, torch.device("cpu"))
    with_it, without = (
        plan_checkpoint(weights, EngineConfig(model="krea", image_input=image_input), 2, budget=None)
        for image_input in (True, False)
    )
    assert without.sizes.vae_encoder == 0
    assert with_it.sizes.vae_encoder == pytest.approx(2 * 19_300_000, rel=0.01)
    assert with_it.weights - without.weights == pytest.approx(with_it.sizes.vae_encoder, abs=10**5)  # and small ones
    assert with_it.host == without.host == 0
    offloaded = plan_checkpoint(weights, EngineConfig(model="krea", offload=(VAE,)), 2, budget=None)
    assert offloaded.host == with_it.sizes.vae + with_it.sizes.vae_encoder
    assert offloaded.weights == with_it.weights  # both may be there at a time


@pytest.mark.parametrize(("limit", "counts"), [(None, True), (300_000_000, False)])
def test_work_is_a_step_or_the_encoding_of_a_picture_in_turn(limit: int | None, counts: bool) -> None:
    """Whichever takes more, the picture in tiles as an image is decoded."""
    size = KREA2.default_width, KREA2.default_height
    with_it, without = (
        plan_memory(KREA2, BFLOAT16, EngineConfig(vae_memory=limit, image_input=image_input), 2).work
        - decode_bytes(KREA2, *size, 2, limit)
        for image_input in (True, False)
    )
    assert with_it == max(without, picture_encode_bytes(KREA2, *size, 2, limit))
    assert (with_it > without) is counts


@given(weight_bytes, st.integers(1, 60 * GB), offloads, prefetches)
def test_a_plan_keeps_within_its_budget_or_the_least_that_would_do_is_named(
    weights: WeightBytes, budget: int, offload: tuple[str, ...], prefetch: int | None
) -> None:
    plan = plan_or_error(weights, budget, offload, prefetch)
    if isinstance(plan, ArgumentError):
        assert plan.parameter == "memory_budget"
        named = re.search(r"must be at least ([\d.]+) (GB|MB)", plan.message)
        assert named is not None
        least = round(float(named[1]) * {"GB": GB, "MB": 10**6}[named[2]])
        assert budget < least
        make_plan(weights, least, offload=offload, prefetch=prefetch)
        return
    assert plan.usable is not None
    assert plan.weights + plan.work <= plan.usable < budget
    assert set(offload) <= set(plan.offload)
    assert prefetch in (None, plan.prefetch)
    assert plan.copied_per_step == sum(weights.dit_blocks[block] for block in plan.streamed)


def test_8_bit_matrices_are_made_whole_unless_they_are_multiplied_as_they_are() -> None:
    """fp8 products are those of the DiT's blocks; the text encoder's fp8 matrices are made whole everywhere."""
    text, dit = "layers.0.mlp.gate_up.weight", "transformer_blocks.0.ff.gate_up.weight"

    def dequantized(weight_format: WeightFormat, *, fp8_products: bool, full_precision: bool = False) -> int:
        held = {
            "text_encoder": {text: ParameterFormat(weight_format, 1000, 1040)},
            "transformer": {dit: ParameterFormat(weight_format, 5000, 5200, full_precision)},
        }
        return WeightBytes.of(held, 2, fp8_products=fp8_products).dequantized

    assert [dequantized("float", fp8_products=products) for products in (False, True)] == [0, 0]
    assert [dequantized("int8", fp8_products=products) for products in (False, True)] == [10000, 10000]
    assert [dequantized("fp8", fp8_products=products) for products in (False, True)] == [10000, 2000]
    assert dequantized("fp8", fp8_products=True, full_precision=True) == 10000


@given(weight_bytes, st.integers(1, 60 * GB), st.integers(0, 20 * GB), offloads, prefetches)
def test_more_memory_never_makes_a_slower_plan(
    weights: WeightBytes, budget: int, more: int, offload: tuple[str, ...], prefetch: int | None
) -> None:
    plan = plan_or_error(weights, budget, offload, prefetch)
    if isinstance(plan, ArgumentError):
        return
    assert cost(make_plan(weights, budget + more, offload=offload, prefetch=prefetch)) <= cost(plan)


@given(weight_bytes, prefetches)
def test_weights_are_what_stays_and_the_places_of_what_comes_and_goes(
    weights: WeightBytes, prefetch: int | None
) -> None:
    plan = make_plan(weights, None, offload=(DIT_LAYERWISE, TEXT_ENCODER), prefetch=prefetch)
    ahead = 1 if prefetch is None else prefetch
    slots = sum(min(ahead + 1, len(blocks)) * max(blocks) for blocks in (weights.dit_blocks, weights.text_layers))
    assert plan.weights == slots + weights.dit_rest + weights.both_vae_halves + weights.small
    assert plan.host == sum(weights.dit_blocks) + sum(weights.text_layers) + weights.text_rest
    assert make_plan(weights, None).weights == weights.total


@pytest.mark.parametrize(
    ("weights", "gigabytes", "offload"),
    [
        (BFLOAT16, 48, ()),
        (BFLOAT16, 24, (DIT_LAYERWISE, TEXT_ENCODER)),
        (BFLOAT16, 16, (DIT_LAYERWISE, TEXT_ENCODER)),
        (BFLOAT16, 12, (DIT_LAYERWISE, TEXT_ENCODER)),
        (EIGHT_BIT, 32, ()),
        (EIGHT_BIT, 24, (TEXT_ENCODER,)),
        (EIGHT_BIT, 16, (DIT_LAYERWISE, TEXT_ENCODER)),
        (EIGHT_BIT, 12, (DIT_LAYERWISE, TEXT_ENCODER)),
    ],
)
def test_plans_at_the_real_size(weights: WeightBytes, gigabytes: int, offload: tuple[str, ...]) -> None:
    plan = make_plan(weights, gigabytes * GB)
    assert plan.offload == offload
    assert plan.prefetch == 1
    # blocks that stay are worth more than anything else that memory could be used for: one more would not fit
    if plan.streamed:
        assert plan.needed + weights.dit_blocks[0] > gigabytes * GB


def test_a_plan_leaves_room_for_a_default_image_while_another_is_decoded() -> None:
    plan = make_plan(BFLOAT16, 16 * GB)
    assert plan.decode_limit is not None
    tokens = KREA2.image_tokens(1024, 1024) + 512
    caching = 3 * 4096 * KREA2.transformer.in_channels * 4  # the velocities that the presets of caching keep
    needed = max(step_bytes(KREA2, tokens, 1, 2) + caching, encode_bytes(KREA2, 1, 2))
    assert plan.work == needed + decode_bytes(KREA2, 1024, 1024, 2, plan.decode_limit)


def test_a_plan_is_told_in_lines() -> None:
    lines = make_plan(BFLOAT16, 16 * GB).describe()
    text = "\n".join(lines)
    assert re.search(r"^budget +16\.00 GB a rank$", text, re.MULTILINE)
    assert re.search(
        r"^blocks +\d+ of 28 stay on the device; [\d.]+ GB are copied each step, 1 ahead$", text, re.MULTILINE
    )
    assert re.search(r"^offloaded +dit-layerwise, text-encoder$", text, re.MULTILINE)


@given(st.integers(1, 60).flatmap(lambda blocks: st.tuples(st.integers(0, blocks), st.just(blocks))))
def test_blocks_that_come_and_go_are_spread_evenly(counts: tuple[int, int]) -> None:
    count, blocks = counts
    chosen = spread(count, blocks)
    assert len(chosen) == count
    gaps = {later - earlier for earlier, later in pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_there_are_no_more_places_than_blocks() -> None:
    assert slot_bytes([3, 5], 0) == 5
    assert slot_bytes([3, 5], 9) == 10


def test_nccl_takes_of_a_budget_what_its_communicators_do() -> None:
    assert communication_bytes(Degrees()) == 0
    assert communication_bytes(Degrees(tp=2)) == 700_000_000 + 470_000_000, "one group, which also decodes together"
    assert communication_bytes(Degrees(sp=4)) == 700_000_000 + 3 * 470_000_000
    two_by_two = communication_bytes(Degrees(tp=2, sp=2))
    assert two_by_two == 3 * 700_000_000 + (3 + 1) * 470_000_000, "the world, tp, which exchanges no rows, and sp"


@pytest.mark.parametrize("degrees", [Degrees(tp=2), Degrees(sp=4), Degrees(sp=2, cfg=2)])
def test_a_plan_leaves_nccl_its_buffers(degrees: Degrees) -> None:
    engine = EngineConfig(tp=degrees.tp, sp=degrees.sp, cfg_parallel=degrees.cfg > 1)
    assert engine.degrees == degrees
    plan = partial(plan_memory, KREA2, BFLOAT16, engine, 2)
    without, free = plan(), plan(nccl=True)
    assert free.communication == communication_bytes(degrees)
    assert without.communication == 0
    assert free.needed == without.needed + free.communication
    kept = plan(nccl=True, budget=30 * GB)
    assert kept.usable is not None
    assert kept.allocatable is not None
    assert kept.weights + kept.work <= kept.usable < kept.allocatable <= 30 * GB - kept.communication
    assert plan(nccl=True, budget=kept.needed).needed <= kept.needed
    assert f"NCCL            {shown(kept.communication)} for its buffers, by others' measurements" in kept.describe()
    with pytest.raises(ArgumentError, match=rf"work \d\S* [GM]B, NCCL {shown(kept.communication)}\), got 2\.00 GB"):
        plan(nccl=True, budget=2 * GB)
