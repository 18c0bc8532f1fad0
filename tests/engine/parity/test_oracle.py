"""The oracle itself: that the random checkpoints would show a fault. A weak test is worse than none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Krea2Pipeline

from bench.engines.checkpoints import build_tokenizer
from engine.config.chat_template import PREFIX, PREFIX_TOKENS, SUFFIX, SUFFIX_TOKENS
from tests.engine.parity.test_parity import CAPTION, LATENT_TOLERANCE, TEXT_TOKENS
from tests.oracle import Request, expected_latents, expected_pictures, load_pipeline, relative_error

BASE = Request(CAPTION, width=128, height=96)


def latents_of(folder: Path, request: Request = BASE) -> torch.Tensor:
    (latents,) = expected_latents(folder, request, text_tokens=TEXT_TOKENS)
    return latents


def test_the_trained_tokenizer_has_the_template_s_length() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer(PREFIX).input_ids) == PREFIX_TOKENS
    assert len(tokenizer(SUFFIX).input_ids) == SUFFIX_TOKENS
    assert len(tokenizer("雪").input_ids) == 3  # bytes


@pytest.mark.parametrize(
    ("request_", "least"),
    [
        (Request("a small yellow star left of a purple ring", 128, 96), 100),
        (Request("", 128, 96), 1000),
        (Request(CAPTION, 128, 96, steps=5), 1000),
        (Request(CAPTION, 128, 96, guidance=3.5), 1000),
        (Request(CAPTION, 128, 96, mu=1.1), 50),
        (Request(CAPTION, 128, 96, seeds=(1,)), 1000),
    ],
    ids=["one word", "prompt", "steps", "guidance", "mu", "seed"],
)
def test_latents_depend_on(turbo: Path, request_: Request, least: float) -> None:
    assert _distance(latents_of(turbo, request_), latents_of(turbo)) > least


def test_latents_depend_on_the_negative_prompt(turbo: Path) -> None:
    one, two = (
        latents_of(turbo, Request(CAPTION, 128, 96, guidance=3.5, negative_prompt=negative))
        for negative in ("", "snow")
    )
    assert _distance(one, two) > 300


def test_latents_depend_on_positions(turbo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = latents_of(turbo)
    original = Krea2Pipeline.prepare_position_ids
    for wrong in (lambda ids: ids * 0, lambda ids: ids[:, [0, 2, 1]], lambda ids: ids * 1.05):
        monkeypatch.setattr(
            load_pipeline(turbo), "prepare_position_ids", lambda *args, wrong=wrong: wrong(original(*args))
        )
        assert _distance(latents_of(turbo), reference) > 100


def test_latents_depend_on_timesteps(turbo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = latents_of(turbo)
    embed = load_pipeline(turbo).transformer.time_embed
    original = embed.forward
    monkeypatch.setattr(embed, "forward", lambda timestep, dtype: original(timestep + 0.002, dtype))
    assert _distance(latents_of(turbo), reference) > 100


@pytest.mark.slow
def test_every_parameter_that_is_used_moves_the_picture(turbo: Path) -> None:
    """Zero one parameter at a time: the result leaves the tolerance by a factor of 30 at least."""
    request = Request(CAPTION, width=96, height=64, steps=2)
    pipeline = load_pipeline(turbo)
    reference = expected_pictures(turbo, request)[0]
    checked = 0
    for component, unused in (
        ("transformer", ()),
        ("text_encoder", ("visual.", "language_model.layers.5.", "language_model.norm.")),
        ("vae", ("encoder.", "quant_conv.", "time_conv")),
    ):
        for name, parameter in getattr(pipeline, component).named_parameters():
            if any(name.startswith(part) or part in name.split(".") for part in unused):
                continue
            with _zeroed(parameter):
                picture = expected_pictures(turbo, request)[0]
            if component == "vae":
                assert abs(picture.image.astype(int) - reference.image.astype(int)).max() > 3, name
            else:
                assert _distance(picture.latents, reference.latents) > 30, name
            checked += 1
    assert checked > 200


def test_the_same_fields_give_the_same_weights(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    from bench.engines.checkpoints import CheckpointSpec, build_checkpoint

    again = build_checkpoint(tmp_path / "again", CheckpointSpec())
    for file in ("transformer/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"):
        assert (again / f"{file}.safetensors").read_bytes() == (checkpoint() / f"{file}.safetensors").read_bytes()


def _distance(one: torch.Tensor, two: torch.Tensor) -> float:
    return relative_error(one, two) / LATENT_TOLERANCE


@contextmanager
def _zeroed(parameter: Any) -> Iterator[None]:
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.zero_()
        try:
            yield
        finally:
            parameter.copy_(kept)
