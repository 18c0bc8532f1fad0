"""The decoder's way of computing on a GPU, with the references of its kernels and with the kernels themselves in
Triton's interpreter: the pictures are those of the way on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.kernels import image_norm, upsample
from engine.kernels.attention import chunked as chunked_attention
from engine.model import vae, vae_blocks
from engine.model.vae import VAEDecoder
from tests.engine.model.test_vae_encoder import encode, encoder_of, random_pixels, random_weights
from tests.engine.model.test_vae_in_rows import split
from tests.engine.model.test_vae_on_devices import REAL_PROPORTIONS, decoder

TOLERANCE = 1e-5  # of pixels in [-1, 1]: sums in another order
CONFIGS: list[dict[str, Any]] = [{}, REAL_PROPORTIONS, {"dim_mult": (2, 1, 3), "num_res_blocks": 3}]


def pixels(decoder: VAEDecoder, latents: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        return decoder(latents, **options)


def compute_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, *, triton: bool = False) -> None:
    monkeypatch.setattr(vae_blocks, "_attend", chunked_attention.chunked_attention)
    monkeypatch.setattr(vae_blocks, "_adds_bias_apart", lambda device: True)
    if triton:
        monkeypatch.setattr(chunked_attention, "weigh", chunked_attention.weigh_triton)
        monkeypatch.setattr(vae_blocks, "image_norm", image_norm.image_norm_triton)
        monkeypatch.setattr(vae_blocks, "add_image_norm_", image_norm.add_image_norm_triton_)
        monkeypatch.setattr(vae_blocks, "add_residual_", image_norm.add_residual_triton_)
        monkeypatch.setattr(vae, "upsample", upsample.upsample_triton)


@pytest.mark.parametrize("fields", CONFIGS)
def test_pictures_are_the_same(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    model = decoder(**fields)
    latents = torch.randn(2, 16, 24, 26)
    whole, in_tiles = pixels(model, latents), pixels(model, latents, tile=24)
    assert whole.std() > 0.02
    compute_as_on_a_gpu(monkeypatch)
    torch.testing.assert_close(pixels(model, latents), whole, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(pixels(model, latents, tile=24), in_tiles, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("ranks", [2, 4])
def test_rows_of_several_ranks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    model = decoder(**REAL_PROPORTIONS)
    latents = torch.randn(1, 16, 31, 6)
    whole = pixels(model, latents)
    compute_as_on_a_gpu(monkeypatch)
    torch.testing.assert_close(torch.cat(split(model, latents, ranks), dim=2), whole, atol=TOLERANCE, rtol=0)


def test_pictures_of_the_kernels_are_the_same(
    monkeypatch: pytest.MonkeyPatch, loops_with_run_time_bounds: None
) -> None:
    model = decoder(**REAL_PROPORTIONS)
    latents = torch.randn(1, 16, 5, 6)
    whole = pixels(model, latents)
    compute_as_on_a_gpu(monkeypatch, triton=True)
    torch.testing.assert_close(pixels(model, latents), whole, atol=TOLERANCE, rtol=0)


def test_residual_blocks_and_the_attention_leave_biases_and_sums_to_the_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = decoder(**REAL_PROPORTIONS)
    assert vae_blocks._adds_bias_apart(torch.device("cuda", 0))
    with Convolutions() as convolutions:
        pixels(model, torch.randn(1, 16, 4, 6))
    assert convolutions.unbiased == 0  # a CPU adds biases within
    compute_as_on_a_gpu(monkeypatch)
    kernels: list[str] = []

    def counted(name: str) -> None:
        function = getattr(vae_blocks, name)
        monkeypatch.setattr(vae_blocks, name, lambda *args, **more: kernels.append(name) or function(*args, **more))

    for name in ("image_norm", "add_image_norm_", "add_residual_"):
        counted(name)
    with Convolutions() as convolutions:
        pixels(model, torch.randn(1, 16, 4, 6))
    blocks = 2 + 4 * 3
    assert convolutions.unbiased == 2 * blocks + 1
    # of a level's three blocks the last one's sum goes to the upsampling, or to the norm behind all levels
    assert kernels.count("add_image_norm_") == 3 * 2 + 3
    assert kernels.count("add_residual_") == 2 + 1 + 3


class Convolutions(TorchDispatchMode):
    """Counts those without a bias."""

    unbiased = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.conv2d.default:
            self.unbiased += len(args) < 3 or args[2] is None
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("triton", [False, True])
def test_latents_are_the_same(
    monkeypatch: pytest.MonkeyPatch, loops_with_run_time_bounds: None, *, triton: bool
) -> None:
    model = encoder_of(random_weights(REAL_PROPORTIONS))
    picture = random_pixels(model, 1, 3, 2)
    on_cpu = encode(model, picture)
    compute_as_on_a_gpu(monkeypatch, triton=triton)
    torch.testing.assert_close(encode(model, picture), on_cpu, atol=TOLERANCE, rtol=0)
