"""The real size's numbers, its random weights, and the floor that benchmarks reckon with."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch

from bench.engines.engine import Engine
from bench.engines.peer import Peer
from bench.engines.real_size import KREA2, TINY, RandomWeights, model_of_size, random_prompt
from bench.engines.setup import Setup, Version
from bench.measure.timing import Budget, Spread, Timestamps, is_shared, time_calls
from engine.checkpoint.layouts.tensors import Source
from engine.config.chat_template import PREFIX_TOKENS, SUFFIX_TOKENS
from engine.config.model_config import ModelConfig
from engine.planning.floor import Ceilings, attention_flops, block_parameters, matmul_flops, step_floor
from engine.rank.sampling import draw_noise
from tests.oracle import relative_error

CPU = torch.device("cpu")
H200 = Ceilings(matmul_flops=790e12, fp8_flops=1300e12, attention_flops=650e12, copy_bytes=4.3e12)


def tiny_setup(model: ModelConfig = TINY, dtype: torch.dtype = torch.float32) -> Setup:
    return Setup(model, "tiny", CPU, dtype, (Version(),), prompt_tokens=7, peer="none", budget=Budget(None), json=None)


# ---- the config


def test_the_real_size_is_what_diffusers_builds_by_default() -> None:
    from diffusers import AutoencoderKLQwenImage, Krea2Transformer2DModel

    dit, vae = KREA2.transformer, KREA2.vae
    names = {
        "attention_head_dim": "head_dim",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "text_hidden_dim": "text_hidden_size",
        "text_num_attention_heads": "text_num_heads",
        "text_num_key_value_heads": "text_num_kv_heads",
    }
    defaults = _defaults(Krea2Transformer2DModel)
    assert {name: getattr(dit, names.get(name, name)) for name in defaults} == defaults
    decoder = {name: _defaults(AutoencoderKLQwenImage)[name] for name in ("base_dim", "z_dim", "num_res_blocks")}
    assert {name: getattr(vae, name) for name in decoder} == decoder
    assert list(vae.dim_mult) == _defaults(AutoencoderKLQwenImage)["dim_mult"]


def test_the_real_size_has_krea_2s_parameters() -> None:
    weights = RandomWeights(KREA2, CPU)
    count = {
        component: sum(torch.Size(source.shape).numel() for source in sources)
        for component, sources in weights.sources.items()
    }
    assert count["transformer"] == pytest.approx(12.82e9, rel=1e-3)
    layers = count["text_encoder"] - 151936 * 2560
    assert layers / 35 == pytest.approx(100.9e6, rel=1e-3)
    assert KREA2.possible_tp() == TINY.possible_tp() == [1, 2, 4]


def test_the_number_of_blocks_can_be_chosen() -> None:
    assert model_of_size("real", 2).transformer == replace(KREA2.transformer, num_layers=2)


# ---- the floor


@pytest.mark.parametrize(
    ("tokens", "matmul", "attention"),
    [(1088, 26.4, 0.8), (4160, 101.1, 11.9), (9280, 225.6, 59.3), (16450, 399.9, 186.2)],
)
def test_flops_of_a_step(tokens: int, matmul: float, attention: float) -> None:
    assert round(matmul_flops(KREA2.transformer, tokens) / 1e12, 1) == matmul
    assert round(attention_flops(KREA2.transformer, [tokens]) / 1e12, 1) == attention


@pytest.mark.parametrize(
    ("tokens", "fp8", "floor_ms"), [(4160, False, 146), (4160, True, 96), (16450, False, 793), (16450, True, 594)]
)
def test_the_floor_of_a_step(tokens: int, fp8: bool, floor_ms: float) -> None:
    floor = step_floor(KREA2.transformer, [tokens], H200, fp8=fp8, bytes_per_element=2)
    assert round(floor.seconds * 1e3) == floor_ms
    assert floor.bound == "flops"
    eight = step_floor(KREA2.transformer, [tokens], H200, fp8=fp8, bytes_per_element=2, steps=8)
    assert eight.seconds == pytest.approx(8 * floor.seconds)


def test_few_tokens_are_bound_by_the_reading_of_weights() -> None:
    assert block_parameters(KREA2.transformer) == 28 * 434_110_464
    floor = step_floor(KREA2.transformer, [100], H200, fp8=False, bytes_per_element=2)
    assert floor.bound == "bytes"
    assert floor.seconds == pytest.approx(2 * 12.155e9 / 4.3e12, rel=1e-3)
    assert step_floor(KREA2.transformer, [100], H200, fp8=True, bytes_per_element=2).weights_s == floor.weights_s / 2


def test_attention_is_counted_within_segments() -> None:
    one, four = ([1000], [250] * 4)
    assert attention_flops(KREA2.transformer, one) == 4 * attention_flops(KREA2.transformer, four)


def test_what_was_not_measured_is_reckoned_as_a_matrix_product() -> None:
    only = Ceilings(790e12, None, None, 4.3e12)
    floor = step_floor(KREA2.transformer, [4160], only, fp8=True, bytes_per_element=2)
    assert floor.seconds == pytest.approx(floor.flops / 790e12)
    assert (only.attention_source, H200.attention_source) == ("matmul", "attention")


# ---- weights and prompts


def share(weights: RandomWeights, component: str, source: Source, rank: int = 0, size: int = 1) -> torch.Tensor:
    """What a rank reads of a tensor, with the shape of its parameter."""
    return weights.stored(component, source).read(source.shard_bounds(rank, size)).reshape(source.shard_shape(size))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_shards_are_slices_of_the_whole(size: int) -> None:
    weights, again = RandomWeights(TINY, CPU), RandomWeights(TINY, CPU)
    for component, sources in weights.sources.items():
        for source in sources:
            whole = share(again, component, source)
            shards = [share(weights, component, source, rank, size) for rank in range(size)]
            assert all(shard.shape == source.shard_shape(size) for shard in shards)
            if source.split is None:
                assert all(torch.equal(shard, whole) for shard in shards), source.name
            else:
                assert torch.equal(torch.cat(shards, dim=source.split), whole), source.name


def test_every_tensor_is_its_own_and_none_is_zero() -> None:
    weights, other = RandomWeights(TINY, CPU), RandomWeights(TINY, CPU, seed=1)
    firsts = []
    for component, sources in weights.sources.items():
        for source in sources:
            whole = share(weights, component, source)
            assert whole.dtype == torch.float32
            assert whole.isfinite().all()
            assert whole.std() > 0
            assert not torch.equal(whole, share(other, component, source))
            firsts.append(whole.flatten()[0].item())
    assert len(set(firsts)) == len(firsts)


def test_prompts_are_as_long_as_asked_for_and_differ_between_their_ends() -> None:
    one, other = random_prompt(TINY, 0, 60), random_prompt(TINY, 1, 60)
    assert len(one) == PREFIX_TOKENS + 60 + SUFFIX_TOKENS
    assert one != other
    assert one[:PREFIX_TOKENS] == other[:PREFIX_TOKENS]
    assert one[-SUFFIX_TOKENS:] == other[-SUFFIX_TOKENS:]
    assert max(one) < TINY.text_encoder.vocab_size


# ---- the engine and its peer on these weights


def test_the_peers_velocity_is_the_engines() -> None:
    engine = Engine(tiny_setup(), Version())
    (job,) = engine.new_jobs(1, 64, steps=1)
    engine.execute(start=[job], denoise=[job.job_id]).wait()
    ours = engine.rank.jobs[job.job_id].latents.clone()
    engine.execute(release=[job.job_id]).wait()
    engine.close()
    peer = Peer(RandomWeights(TINY, CPU), torch.float32)
    (theirs,) = peer.make_images([job.prompt_ids], 64, 1, [job.seed], "eager")
    noise = draw_noise(job.seed, 64, 64, TINY, torch.float32)
    assert relative_error(noise - ours, noise - theirs.latents) <= 1e-4
    assert 0.1 < (noise - ours).std() < 10


@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_activations_stay_of_order_1_through_as_many_blocks_as_the_real_model_has(quantization: str) -> None:
    deep = replace(TINY, transformer=replace(TINY.transformer, num_layers=28))
    engine = Engine(tiny_setup(deep, torch.bfloat16), Version(quantization))
    (job,) = engine.new_jobs(1, 64, steps=2)
    engine.execute(start=[job], denoise=[job.job_id]).wait()
    engine.execute(denoise=[job.job_id]).wait()
    latents = engine.rank.jobs[job.job_id].latents
    assert latents.isfinite().all()
    assert 0.1 < latents.std() < 10
    engine.execute(decode=[job.job_id]).wait()
    image, _ = engine.next_image()
    assert len(set(image.rgb)) > 50, "pixels are all alike"
    engine.close()


# ---- measuring


def test_calls_are_timed_without_the_first() -> None:
    calls: list[int] = []
    times = time_calls(lambda: calls.append(0), 5, CPU)
    assert (len(times), len(calls)) == (5, 6)
    assert all(seconds >= 0 for seconds in times)


def test_timestamps_give_the_seconds_between_them() -> None:
    timestamps = Timestamps(CPU)
    for _ in range(3):
        timestamps.record()
    assert len(timestamps.seconds()) == 2


def test_a_spread_has_the_known_percentiles() -> None:
    assert Spread.of([float(value) for value in range(101)]) == Spread(101, 50.0, 10.0, 90.0)


def test_a_gpu_that_others_use_is_noticed() -> None:
    alone: dict[str, float | str] = {"others_mib": 700, "power.draw": "[N/A]"}
    assert not is_shared(None, alone)
    assert is_shared(alone, {"others_mib": 30_000})


def test_a_budget_is_spent_after_its_seconds() -> None:
    assert Budget(0.0).spent
    assert not Budget(60.0).spent
    assert Budget(None).left == float("inf")


def _defaults(kind: type) -> dict[str, object]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
