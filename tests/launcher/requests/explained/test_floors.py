"""Floors of what ranks do, by what their devices reach."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.planning.floor import block_parameters, decode_flops, text_encoder_parameters
from engine.scheduling.cost import NO_WORK, Work
from engine.step import Reach
from launcher.requests.explained.floors import Floors

DEMO = ModelConfig.from_folder(DEMO_CHECKPOINT)
REACH = Reach("gpu", "measured", 1e12, 2e12, 1e12, 1e12, 1e9, block_bytes=4_000_000, text_bytes=1_000_000)


def test_a_step_takes_its_products_and_attention_or_the_reading_of_its_weights() -> None:
    floors = Floors(DEMO, EngineConfig(tp=2), {0: REACH})
    dit = DEMO.transformer
    many, few = Work(10**6, 10**9), Work(1, 1)
    products = 2 * block_parameters(dit) * many.tokens / 2 / REACH.block_flops
    attention = 4 * dit.hidden_size * dit.num_layers * many.pairs / 2 / REACH.attention_flops
    assert floors.denoise_s(0, many) == pytest.approx(products + attention)
    assert floors.denoise_s(0, few) == 4e-3
    assert floors.denoise_s(1, few) is None


def test_a_step_that_runs_part_of_the_blocks_reads_that_part_of_their_weights() -> None:
    floors = Floors(DEMO, EngineConfig(), {0: REACH})
    assert floors.denoise_s(0, Work(1, 1, 0.5)) == pytest.approx(2e-3)
    assert floors.denoise_s(0, NO_WORK) == 0.0


def test_prompts_take_the_layers_that_are_needed_of_the_ranks_that_share_them() -> None:
    floors = Floors(DEMO, EngineConfig(tp=2), {0: replace(REACH, text_ranks=2)})
    parameters = text_encoder_parameters(DEMO.text_encoder, DEMO.text_layers)
    assert floors.encode_s(0, 10**6) == pytest.approx(2 * parameters / 2 * 10**6 / REACH.flops)
    assert floors.encode_s(0, 1) == 1e-3
    assert floors.encode_s(0, 0) is None


def test_an_image_is_decoded_by_one_rank_or_by_all() -> None:
    alone = decode_flops(DEMO.vae, 128, 96) / REACH.decode_flops
    assert Floors(DEMO, EngineConfig(), {0: REACH}).decode_s(128, 96) == alone
    assert Floors(DEMO, EngineConfig(tp=2), {0: REACH, 1: REACH}).decode_s(128, 96) == alone / 2
    assert Floors(DEMO, EngineConfig(), {0: replace(REACH, decode_flops=0.0)}).decode_s(128, 96) is None


def test_of_ranks_with_the_same_device_the_one_counts_that_was_measured_while_less_else_ran() -> None:
    slow = replace(REACH, block_flops=1e9, flops=1e9, attention_flops=1e9, memory_bytes=1e6)
    floors = Floors(DEMO, EngineConfig(tp=2), {0: slow, 1: REACH})
    assert floors.denoise_s(0, Work(72, 72**2)) == floors.denoise_s(1, Work(72, 72**2)) == 4e-3


def test_the_source_says_what_floors_go_by_or_why_there_are_none() -> None:
    assert Floors(DEMO, EngineConfig(), {0: REACH}).source == "gpu: 1 TFLOP/s and 2 TFLOP/s, 1 GB/s, measured"
    unknown = Floors(DEMO, EngineConfig(), {0: Reach("Some GPU")})
    assert unknown.source == "no floor is known for Some GPU"
    assert unknown.denoise_s(0, Work(1, 1)) is unknown.encode_s(0, 1) is unknown.decode_s(64, 64) is None
