"""Whole requests against diffusers: the same latents and the same pictures, at every degree and in every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from engine.config.model_config import ModelConfig
from engine.rank.sampling import draw_noise, make_sigmas
from tests.engine_runs import RankGroups, run_requests
from tests.oracle import (
    Picture,
    Request,
    expected_latents,
    expected_pictures,
    load_pipeline,
    packed_noise,
    relative_error,
)

LATENT_TOLERANCE = 1e-4
BATCH_TOLERANCE = 2e-5
MODES = {  # options of `run_requests`
    "tp 1": {},
    "tp 2": {"tp": 2},
    "tp 4": {"tp": 4},
    "sp 2": {"sp": 2},
    "sp 4": {"sp": 4},
    "tp 2, sp 2": {"tp": 2, "sp": 2},
    "cfg": {"cfg_parallel": True},
}

TEXT_TOKENS = 32  # more than `CAPTION` has
CAPTION = "a small yellow star left of a purple heart"
REQUESTS = {
    "square": Request(CAPTION),
    "tall": Request(CAPTION, width=208, height=336, seeds=(7,)),
    "wide": Request(CAPTION, width=512, height=64, steps=3, seeds=(2**53 - 1,)),
    "narrow": Request(CAPTION, width=64, height=512, steps=3),
    "rounded up": Request(CAPTION, width=200, height=200, steps=3),
    "smallest, one step": Request(CAPTION, width=64, height=64, steps=1),
    "many steps": Request(CAPTION, width=96, height=96, steps=12),
    "three images": Request(CAPTION, width=96, height=128, seeds=(4, 5, 6)),
    "guided": Request(CAPTION, guidance=3.5),
    "guided, with a negative prompt": Request(CAPTION, guidance=3.5, negative_prompt="snow, oil on canvas"),
    "three guided images": Request(CAPTION, 96, 64, 3, guidance=1.5, negative_prompt="blue", seeds=(1, 2, 3)),
    "unused negative prompt": Request(CAPTION, width=96, height=96, steps=3, negative_prompt="snow"),
    "empty prompt": Request("", width=96, height=96, steps=3),
    "empty prompt, guided": Request("", width=96, height=96, steps=3, guidance=3.5, negative_prompt="a red ring"),
    "spaces": Request("  a red  circle \n", width=96, height=96, steps=3),
    "unicode": Request("ein Fuchs im Schnee – 雪の中の狐 🦊 e\u0301 \u202e", width=96, height=96, steps=3),
    "special tokens": Request("a <|im_end|> b <|endoftext|> c", width=96, height=96, steps=3),
    "600 tokens": Request("red blue " * 300, width=96, height=96, steps=3, guidance=2.0, negative_prompt="x " * 600),
    "mu": Request(CAPTION, mu=0.3),
    "large mu": Request(CAPTION, width=96, height=96, mu=3.0, guidance=1.0),
    "sigmas": Request(CAPTION, width=96, height=96, steps=3, sigmas=(1.0, 0.61, 0.13)),
    "sigmas as they are": Request(CAPTION, width=64, height=96, steps=2, guidance=1.0, mu=0.0, sigmas=(0.97, 0.4)),
}
# What splits most differently: odd numbers of image tokens, prompts longer than images, and two or three segments.
IN_EVERY_MODE = (
    "tall",
    "smallest, one step",
    "three images",
    "guided, with a negative prompt",
    "600 tokens",
    "wide",
)


def cases(names: Iterable[str], in_every_mode: Iterable[str]) -> list[Any]:
    """Names of requests and modes."""
    # Slow are the other modes' other requests. In the fast run they are guarded by the same request on one rank, and by
    # the same mode with requests that split otherwise: neither prompts nor schedules know how many ranks there are.
    return [
        pytest.param(name, mode, marks=() if mode == "tp 1" or name in in_every_mode else pytest.mark.slow)
        for mode in MODES
        for name in names
    ]


@pytest.fixture(scope="module")
def alone(rank_groups: RankGroups) -> Callable[..., list[Picture]]:
    """`alone(folder, request, **mode)`: the images of a request with no other in flight, made once."""
    made: dict[Any, list[Picture]] = {}

    def get(folder: Path, request: Request, **mode: Any) -> list[Picture]:
        key = folder, request, *sorted(mode.items())
        if key not in made:
            made[key] = rank_groups.run_requests(folder, [request], **mode)
        return made[key]

    return get


@cache
def expected(folder: Path, request: Request) -> list[Picture]:
    return expected_pictures(folder, request)


def check(ours: list[Picture], theirs: list[Picture]) -> None:
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs, strict=True):
        assert relative_error(mine.latents, reference.latents) <= LATENT_TOLERANCE
        assert mine.image.shape == reference.image.shape
        assert np.abs(mine.image.astype(int) - reference.image.astype(int)).max() <= 1


@pytest.mark.parametrize(("name", "mode"), cases(REQUESTS, IN_EVERY_MODE))
def test_distilled_checkpoint_gives_the_images_of_diffusers(
    turbo: Path, alone: Callable[..., list[Picture]], name: str, mode: str
) -> None:
    request = REQUESTS[name]
    check(alone(turbo, request, **MODES[mode]), expected(turbo, request))


@pytest.mark.parametrize("mu", [1.15, 0.5, -0.3, 0.61234, 2.0])
def test_timesteps_are_those_of_diffusers_to_the_last_bit(turbo: Path, mu: float) -> None:
    """One ulp of a timestep near 1 is 6e-5 of phase in the fastest sinusoid, and may round to another bfloat16."""
    scheduler = load_pipeline(turbo).scheduler
    for steps in range(1, 201):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu, device="cpu")
        assert torch.equal(make_sigmas(steps, mu), scheduler.sigmas), f"{steps} steps"
        given = [1 / (1 + 0.37 * step) ** 1.7 for step in range(steps)]
        scheduler.set_timesteps(sigmas=given, mu=mu, device="cpu")
        assert torch.equal(make_sigmas(steps, mu, tuple(given)), scheduler.sigmas), f"{steps} given"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "height"), [(128, 128), (208, 336), (64, 512)])
def test_noise_is_that_of_diffusers(turbo: Path, width: int, height: int, dtype: torch.dtype) -> None:
    theirs = packed_noise(turbo, Request("", width=width, height=height, seeds=(11,)), dtype)
    assert torch.equal(draw_noise(11, width, height, ModelConfig.from_folder(turbo), dtype), theirs[0].float())


def test_the_schedule_depends_on_distillation_size_and_mu(turbo: Path, raw: Path) -> None:
    """The two checkpoints hold the same weights: what differs is mu. Otherwise the tests above would show nothing."""
    square = expected(turbo, REQUESTS["square"])[0].latents
    assert relative_error(expected(raw, REQUESTS["square"])[0].latents, square) > 100 * LATENT_TOLERANCE
    assert relative_error(expected(turbo, REQUESTS["mu"])[0].latents, square) > 100 * LATENT_TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_requests_packed_in_one_step_equal_each_alone(
    turbo: Path, rank_groups: RankGroups, alone: Callable[..., list[Picture]], mode: str
) -> None:
    """Different sizes, step counts (so different timesteps in a step), guidance, mu and prompt lengths at once."""
    requests = [REQUESTS[name] for name in (*IN_EVERY_MODE, "mu", "empty prompt")]
    packed = rank_groups.run_requests(turbo, requests, **MODES[mode])
    check(packed, [picture for request in requests for picture in expected(turbo, request)])
    singles = [picture for request in requests for picture in alone(turbo, request, **MODES[mode])]
    for together, single in zip(packed, singles, strict=True):
        assert relative_error(together.latents, single.latents) <= BATCH_TOLERANCE


@pytest.mark.parametrize("tp", [1, 2])
def test_sixteen_mixed_requests_in_flight_together_each_equal_their_lone_run(
    turbo: Path, rank_groups: RankGroups, tp: int
) -> None:
    random = Random(tp)
    requests = [
        Request(
            random.choice(["", CAPTION, "a yellow star left of a purple heart " * random.randint(1, 9)]),
            width=16 * random.randint(4, 12),
            height=16 * random.randint(4, 12),
            steps=random.randint(2, 8),
            guidance=random.choice([0.0, 0.0, 1.5, 3.5]),
            negative_prompt=random.choice(["", "blurry"]),
            seeds=(seed,),
        )
        for seed in range(16)
    ]
    together = rank_groups.run_requests(turbo, requests, tp=tp, joins=[random.randint(0, 5) for _ in requests])
    for request, picture in zip(requests, together, strict=True):
        (single,) = rank_groups.run_requests(turbo, [request], tp=tp)
        assert relative_error(picture.latents, single.latents) <= BATCH_TOLERANCE


def test_a_request_that_joins_later_equals_itself_alone(
    turbo: Path, rank_groups: RankGroups, alone: Callable[..., list[Picture]]
) -> None:
    requests = [REQUESTS["many steps"], REQUESTS["guided"], REQUESTS["tall"], REQUESTS["square"]]
    packed = rank_groups.run_requests(turbo, requests, tp=2, joins=[0, 2, 3, 11])
    for picture, request in zip(packed, requests, strict=True):
        (single,) = alone(turbo, request, tp=2)
        assert relative_error(picture.latents, single.latents) <= BATCH_TOLERANCE


@pytest.mark.parametrize(
    ("name", "mode"), cases(["square", "tall", "guided, with a negative prompt", "three images", "mu"], ["tall"])
)
def test_undistilled_checkpoint_gives_the_images_of_diffusers(
    raw: Path, alone: Callable[..., list[Picture]], name: str, mode: str
) -> None:
    request = REQUESTS[name]
    check(alone(raw, request, **MODES[mode]), expected(raw, request))


def test_equal_requests_in_one_step_give_equal_images(turbo: Path, rank_groups: RankGroups) -> None:
    first, second = rank_groups.run_requests(turbo, [REQUESTS["square"], REQUESTS["square"]])
    assert relative_error(first.latents, second.latents) <= BATCH_TOLERANCE


def test_a_sharded_checkpoint_gives_the_same_images(checkpoint: Callable[..., Path], turbo: Path) -> None:
    folder = checkpoint(max_shard_size="200KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    assert len(list((folder / "text_encoder").glob("*.safetensors"))) > 2
    check(run_requests(folder, [REQUESTS["guided"]], tp=2), expected(turbo, REQUESTS["guided"]))


def test_weights_stored_in_bfloat16_can_run_in_float32(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(dtype=torch.bfloat16)
    check(run_requests(folder, [REQUESTS["guided"]], tp=2), expected(folder, REQUESTS["guided"]))


@pytest.mark.parametrize("tp", [1, 2])
def test_a_checkpoint_of_other_proportions_gives_the_images_of_diffusers(
    checkpoint: Callable[..., Path], tp: int
) -> None:
    """Where the sizes above happen to be equal, these are not: heads · head_dim and width, heads and kv heads."""
    folder = checkpoint(
        seed=1,
        layers=2,
        heads=6,
        kv_heads=2,
        head_dim=24,
        axes=(4, 12, 8),
        intermediate=160,
        timestep_dim=256,
        text_width=96,
        fusion_heads=4,
        fusion_kv_heads=2,
        fusion_intermediate=112,
        fusion_blocks=1,
        encoder_layers=4,
        encoder_heads=8,
        encoder_kv_heads=2,
        encoder_intermediate=80,
        taps=(3, 0, 1, 2, 2),
        vae_mult=(1, 2, 4, 4),
        vae_res_blocks=2,
    )
    request = REQUESTS["guided, with a negative prompt"]
    check(run_requests(folder, [request], tp=tp), expected(folder, request))


def test_a_tap_at_the_last_layer_is_after_the_final_norm(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(taps=(0, 2, 6))
    check(run_requests(folder, [REQUESTS["square"]], tp=2), expected(folder, REQUESTS["square"]))


def test_bfloat16_is_as_close_to_float32_as_diffusers_is(turbo: Path, rank_groups: RankGroups) -> None:
    """Mean error over 16 seeds against diffusers in float32, all three starting from the same noise (drawn in
    bfloat16, as both bfloat16 runs do)."""
    request = Request(CAPTION, width=96, height=96, steps=8, seeds=tuple(range(16)))
    noise = packed_noise(turbo, request, torch.bfloat16)
    exact = expected_latents(turbo, request, noise=noise.float(), text_tokens=TEXT_TOKENS)
    diffusers = expected_latents(turbo, request, torch.bfloat16, text_tokens=TEXT_TOKENS)
    engine = [picture.latents for picture in rank_groups.run_requests(turbo, [request], dtype="bfloat16")]
    theirs, ours = mean_error(diffusers, exact), mean_error(engine, exact)
    assert theirs > 1e-3  # otherwise nothing ran in bfloat16
    assert ours <= 1.1 * theirs


def test_bfloat16_at_tp_2_is_as_close_as_at_tp_1(turbo: Path, rank_groups: RankGroups) -> None:
    request = Request(CAPTION, width=96, height=96, steps=8, guidance=1.5, seeds=(0, 1, 2, 3))
    noise = packed_noise(turbo, request, torch.bfloat16)
    exact = expected_latents(turbo, request, noise=noise.float(), text_tokens=TEXT_TOKENS)
    one, two = (rank_groups.run_requests(turbo, [request], tp=tp, dtype="bfloat16") for tp in (1, 2))
    errors = [mean_error([picture.latents for picture in run], exact) for run in (one, two)]
    assert errors[1] <= 1.2 * errors[0]


def mean_error(latents: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    return float(np.mean([(a - b).abs().mean().item() for a, b in zip(latents, exact, strict=True)]))
