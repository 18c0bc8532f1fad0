"""Which mode `--parallel auto` takes: the model of a step's time, what fits, what was measured before."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.engines.real_size import KREA2, RandomWeights
from engine.config.degrees import Degrees
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError
from engine.planning.step_memory import communication_bytes
from engine.planning.work_division import sent_in_step
from launcher.auto_mode.prediction import Devices, Rates, StepModel, Workload, choose, predict_modes

GB = 10**9
MODES = [Degrees(), Degrees(tp=2), Degrees(sp=2), Degrees(tp=4), Degrees(tp=2, sp=2), Degrees(sp=4)]
# Milliseconds of a step in the order of `MODES`: another model of the same machine, whose tiles adapt differently and
# which knows no rate of full waves, and nothing that is hidden: ours is within a twentieth of it, and where ranks share
# tokens, whose exchange before attention the gate's product hides, up to 7 % below.
OTHERS = {
    (1024, False): (152.4, 86.4, 83.4, 52.3, 47.8, 47.8),
    (1024, True): (105.0, 60.5, 58.7, 37.2, 34.9, 33.6),
    (2048, False): (827.0, 449.0, 431.0, 260.0, 236.0, 219.0),
    (2048, True): (640.0, 347.0, 336.0, 200.0, 185.0, 171.0),
}


def segments(side: int, count: int = 1) -> list[tuple[int, int]]:
    return [(64, KREA2.image_tokens(side, side))] * count


def predicted_s(side: int, degrees: Degrees, rates: Rates | None = None, *, fp8: bool = False, count: int = 1) -> float:
    return sum(StepModel(KREA2.transformer, rates or Rates(), fp8=fp8).predict(segments(side, count), degrees))


@pytest.mark.parametrize(("side", "fp8"), OTHERS)
def test_steps_of_h200s_are_as_others_model_them(side: int, fp8: bool) -> None:
    for degrees, other_ms in zip(MODES, OTHERS[side, fp8], strict=True):
        least = 0.93 if degrees.sp > 1 else 0.95
        assert least * other_ms <= 1e3 * predicted_s(side, degrees, fp8=fp8) <= 1.05 * other_ms, degrees.name


def test_four_h200s_are_projected_to_reach_the_goals() -> None:
    """Modelled, not measured: 8 steps, on the best of four ranks."""

    def denoise_s(side: int, *, fp8: bool) -> float:
        return 8 * min(predicted_s(side, degrees, fp8=fp8) for degrees in MODES if degrees.ranks == 4)

    assert denoise_s(1024, fp8=False) <= 0.40
    assert denoise_s(2048, fp8=False) <= 1.85
    assert denoise_s(1024, fp8=True) <= 0.30
    assert denoise_s(2048, fp8=True) <= 1.45


@settings(max_examples=60)
@given(
    side=st.integers(16, 256).map(lambda tokens: 16 * tokens),
    degrees=st.sampled_from([*MODES, Degrees(cfg=2), Degrees(sp=2, cfg=2), Degrees(tp=2, cfg=2)]),
    count=st.integers(1, 3),
)
def test_computing_is_shared_and_never_faster_than_evenly(side: int, degrees: Degrees, count: int) -> None:
    model = StepModel(KREA2.transformer, Rates())
    alone, _ = model.predict(segments(side, count), Degrees())
    shared, talk_s = model.predict(segments(side, count), degrees)
    # a lone rank may be left with a wave that is nearly empty, which sharing can save
    assert alone / degrees.ranks <= shared * 1.5
    assert shared <= alone * 1.05
    assert (talk_s > 0) == (degrees.ranks > 1)


def test_a_slower_link_and_slower_devices_count() -> None:
    tp4 = Degrees(tp=4)
    compute_s, talk_s = StepModel(KREA2.transformer, Rates()).predict(segments(1024), tp4)
    slow = Rates(slowness=3.0, link=34e9, latency_s=130e-6)
    slow_s, slow_talk_s = StepModel(KREA2.transformer, slow).predict(segments(1024), tp4)
    assert slow_s == pytest.approx(3 * compute_s)
    assert slow_talk_s == pytest.approx(10 * talk_s)


@pytest.mark.parametrize("degrees", [Degrees(sp=2), Degrees(tp=2, sp=2), Degrees(sp=4)])
def test_the_gates_product_hides_the_exchange_before_attention(degrees: Degrees) -> None:
    """As far as it takes as long."""
    config, rates = KREA2.transformer, Rates()
    inwards, outwards, others = sent_in_step(config, segments(1024), degrees, 2)
    in_s, out_s = (each.seconds(rates.exchange, rates.latency_s) for each in (inwards, outwards))
    always_s = others.seconds(rates.link, rates.latency_s) + out_s
    _, in_no_time_s = StepModel(config, replace(rates, matrices=1e30)).predict(segments(1024), degrees)
    assert in_no_time_s == pytest.approx(always_s + in_s)
    _, long_s = StepModel(config, replace(rates, matrices=1e9)).predict(segments(1024), degrees)
    assert long_s == pytest.approx(always_s)
    _, talk_s = StepModel(config, rates).predict(segments(1024), degrees)
    assert talk_s == pytest.approx(long_s), "at an H200's rates it takes long enough"


def chosen(devices: Devices, workload: Workload, rates: Rates | None = None, **options: object) -> str:
    engine = EngineConfig(dtype="bfloat16", **options)  # type: ignore[arg-type]
    checkpoint = RandomWeights(KREA2, torch.device("meta"))
    predictions = predict_modes(checkpoint, engine, devices, workload, rates or Rates())
    return choose(predictions, devices).degrees.name


UNGUIDED, GUIDED = Workload(((1024, 1024),), False), Workload(((1024, 1024),), True)


def test_what_fits_and_what_is_guided_decide() -> None:
    h200 = Devices("H200", 4, 139 * 2**30)
    assert chosen(h200, UNGUIDED) == "sp4"
    assert chosen(h200, GUIDED) == "sp2xcfg"
    assert chosen(replace(h200, count=2), GUIDED) == "cfg"
    assert chosen(replace(h200, count=3), UNGUIDED) == "sp2"
    assert chosen(replace(h200, count=1), UNGUIDED) == "one"
    assert chosen(replace(h200, memory=30 * GB), UNGUIDED) == "tp2xsp2", "weights of 34 GB do not fit whole"
    assert chosen(replace(h200, memory=16 * GB), UNGUIDED) == "tp4"


def test_ranks_that_have_been_started_are_all_used() -> None:
    """On a link that slow, one would be faster."""
    slow = Rates(link=1e8, latency_s=1e-2)
    assert chosen(Devices("H200", 4, 139 * 2**30), UNGUIDED, slow) == "one"
    assert chosen(Devices("H200", 4, 139 * 2**30, ranks=2), UNGUIDED, slow) in ("tp2", "sp2")


def test_nothing_fits() -> None:
    with pytest.raises(ArgumentError, match=r"no mode that fits into 2 × small \(one: needs .* of 8.00 GB; sp2: .*\)"):
        chosen(Devices("small", 2, 8 * GB), UNGUIDED)


def test_offloading_and_a_budget_count() -> None:
    """Four small devices hold the model between them; one with a budget must copy blocks in every step."""
    small = Devices("small", 4, 16 * GB)
    assert chosen(small, UNGUIDED, memory_budget=14 * GB) == "tp4"
    assert chosen(replace(small, count=1), UNGUIDED, memory_budget=14 * GB) == "one"
    engine = EngineConfig(dtype="bfloat16", memory_budget=14 * GB)
    (one,) = predict_modes(
        RandomWeights(KREA2, torch.device("meta")), engine, replace(small, count=1), UNGUIDED, Rates()
    )
    assert one.copy_s > 0
    assert one.step_s >= one.copy_s


def test_a_checkpoint_whose_heads_do_not_divide(checkpoint: Callable[..., Path]) -> None:
    from engine.checkpoint.checkpoint_files import CheckpointFiles

    folder = checkpoint(kv_heads=1)
    opened = CheckpointFiles.open(EngineConfig(model=str(folder)))
    predictions = predict_modes(opened, EngineConfig(), Devices("H200", 4, 139 * 2**30), GUIDED, Rates())
    assert {each.degrees.name for each in predictions} == {"one", "cfg"}
    four = Devices("H200", 4, ranks=4)
    with pytest.raises(ArgumentError, match="no mode for 4 ranks: heads do not divide"):
        choose(predict_modes(opened, EngineConfig(), four, GUIDED, Rates()), four)


def test_larger_images_need_more() -> None:
    seed = random.randrange(2**32)
    side = 16 * random.Random(seed).randint(65, 250)
    checkpoint = RandomWeights(KREA2, torch.device("meta"))
    devices = Devices("H200", 1, 139 * 2**30)
    engine = EngineConfig(dtype="bfloat16")
    (small,) = predict_modes(checkpoint, engine, devices, UNGUIDED, Rates())
    (large,) = predict_modes(checkpoint, engine, devices, Workload(((side, side),), False), Rates())
    assert large.needed > small.needed, seed
    assert large.step_s > small.step_s, seed


def test_a_mode_needs_nccls_buffers_too() -> None:
    devices, shared = Devices("H200", 4, 139 * 2**30), EngineConfig(dtype="bfloat16", share_gpu=True)
    checkpoint = RandomWeights(KREA2, torch.device("meta"))
    with_nccl = predict_modes(checkpoint, replace(shared, share_gpu=False), devices, UNGUIDED, Rates())
    over_gloo = predict_modes(checkpoint, shared, devices, UNGUIDED, Rates())
    for ours, theirs in zip(with_nccl, over_gloo, strict=True):
        assert ours.needed - theirs.needed == communication_bytes(ours.degrees), ours.degrees.name
