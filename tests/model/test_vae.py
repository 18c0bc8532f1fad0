"""The VAE's decoder in two dimensions against diffusers' in three."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.config import EngineConfig
from engine.model import VAEDecoder
from engine.parallel import LocalGroup
from engine.rank import Rank
from tests.engine_runs import on_ranks
from tests.oracle import load_pipeline, relative_error

TOLERANCE = 1e-5
SHAPES: dict[str, dict[str, Any]] = {
    "flat": {},
    "real proportions": {"vae_mult": (1, 2, 4, 4), "vae_res_blocks": 2},
    "wide": {"vae_base": 24, "vae_mult": (2, 1, 3, 2), "vae_res_blocks": 3},
    "three levels": {"vae_mult": (1, 2, 4), "vae_res_blocks": 2},
}


def theirs(folder: Path, latents: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As the end of `Krea2Pipeline.__call__`: (images, 3, H, W) in [-1, 1]."""
    vae = load_pipeline(folder, dtype).vae
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.inference_mode():
        return vae.decode(latents.to(dtype)[:, :, None] * std + mean).sample[:, :, 0]


def decoder(folder: Path, device: str = "cpu", dtype: str = "float32") -> VAEDecoder:
    vae = Rank(EngineConfig(model=str(folder), dtype=dtype), LocalGroup(), torch.device(device)).vae
    assert vae is not None
    return vae


def decode(folder: Path, latents: torch.Tensor, dtype: str = "float32") -> torch.Tensor:
    def run(rank: Rank) -> torch.Tensor:
        assert rank.vae is not None
        return rank.vae(latents)

    (image,) = on_ranks(folder, run, dtype=dtype)
    return image


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (26, 14), (1, 3)])
def test_decoded_pixels_equal_diffusers(checkpoint: Callable[..., Path], shape: str, height: int, width: int) -> None:
    # 64 input channels of the DiT are 16 latent channels of 2×2, whatever the VAE's depth
    folder = checkpoint(**SHAPES[shape])
    latents = torch.randn(2, 16, height, width, generator=torch.Generator().manual_seed(height))
    expected = theirs(folder, latents)
    assert expected.std() > 0.1
    assert relative_error(decode(folder, latents), expected) <= TOLERANCE


def test_a_middle_attention_over_many_pixels_equals_diffusers(turbo: Path) -> None:
    latents = torch.randn(1, 16, 66, 70, generator=torch.Generator().manual_seed(0))
    assert relative_error(decode(turbo, latents), theirs(turbo, latents)) <= TOLERANCE


def test_bytes_are_clipped_and_rounded_as_diffusers_does(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(vae_contrast=2.0)
    latents = torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(0))

    def run(rank: Rank) -> torch.Tensor:
        assert rank.vae is not None
        return rank.vae.decode_pixels(latents)

    (pixels,) = on_ranks(folder, run)
    (image,) = load_pipeline(folder).image_processor.postprocess(theirs(folder, latents), output_type="pil")
    difference = np.abs(pixels[0].numpy().astype(int) - np.asarray(image).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3  # float error at a rounding edge, not another rounding
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_bfloat16_decodes_as_closely_as_diffusers(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(**SHAPES["real proportions"])
    latents = torch.randn(4, 16, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    exact = theirs(folder, latents)
    error = (decode(folder, latents, dtype="bfloat16").float() - exact).abs().mean()
    assert error <= 1.1 * (theirs(folder, latents, torch.bfloat16).float() - exact).abs().mean()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_images_are_channels_last_between_all_convolutions(
    checkpoint: Callable[..., Path], device: str, dtype: str
) -> None:
    vae = decoder(checkpoint(**SHAPES["real proportions"]), device, dtype)
    convolutions = [module for module in vae.modules() if getattr(module, "weight", torch.empty(0)).dim() == 4]
    seen: list[torch.nn.Module] = []

    def check(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen.append(module)
        # the first image has the latents' layout
        images = [output] if module is vae.post_quant_conv else [*inputs, output]
        assert all(image.is_contiguous(memory_format=torch.channels_last) for image in images)

    for convolution in convolutions:
        convolution.register_forward_hook(check)
    with torch.inference_mode():
        pixels = vae.decode_pixels(torch.randn(2, 16, 6, 4, device=device))
    assert set(seen) == set(convolutions)
    assert len(seen) == len(convolutions)
    assert pixels.shape == (2, 48, 32, 3)
    assert pixels.is_contiguous()


def test_cudnn_times_convolutions_while_a_shape_is_warmed_up_and_never_else(turbo: Path) -> None:
    vae = decoder(turbo)
    latents = torch.randn(1, 16, 4, 6)
    timed: list[bool] = []
    hook = vae.decoder.conv_out.register_forward_pre_hook(lambda *_: timed.append(torch.backends.cudnn.benchmark))
    with torch.inference_mode():
        vae.warm_up(latents)
        vae.decode_pixels(latents)
        hook.remove()
        vae.decoder.conv_out.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vae.warm_up(latents)
    assert timed == [True, False]
    assert not torch.backends.cudnn.benchmark


@pytest.mark.gpu
@pytest.mark.parametrize(("height", "width"), [(16, 16), (26, 14), (1, 3)])
def test_a_gpu_decodes_as_closely_as_a_cpu(checkpoint: Callable[..., Path], height: int, width: int) -> None:
    """Both round to bfloat16 at the same places, so one has no reason to be further from float32 than the other."""
    folder = checkpoint(**SHAPES["real proportions"])
    latents = torch.randn(2, 16, height, width, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    with torch.inference_mode():
        exact = decoder(folder)(latents)
        on_cpu = decoder(folder, dtype="bfloat16")(latents).float()
        vae = decoder(folder, "cuda", "bfloat16")
        vae.warm_up(latents.cuda())
        on_gpu = vae(latents.cuda()).float().cpu()
    assert (on_gpu - exact).abs().mean() <= 1.2 * (on_cpu - exact).abs().mean()
    assert (on_gpu - exact).abs().max() <= 2 * (on_cpu - exact).abs().max()


@pytest.mark.gpu
def test_a_gpu_decodes_without_the_host_waiting(checkpoint: Callable[..., Path]) -> None:
    vae = decoder(checkpoint(**SHAPES["real proportions"]), "cuda", "bfloat16")
    latents = torch.randn(1, 16, 16, 16, device="cuda")
    with torch.inference_mode():
        vae.warm_up(latents)
        torch.cuda.set_sync_debug_mode("error")
        try:
            vae.decode_pixels(latents)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("width", [8, 12])
def test_the_middle_attention_on_a_gpu_never_holds_all_scores(checkpoint: Callable[..., Path], width: int) -> None:
    vae = decoder(checkpoint(vae_base=width), "cuda", "bfloat16").decoder.mid_block
    image = torch.randn(1, width, 128, 128, device="cuda", dtype=torch.bfloat16)
    image = image.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        vae(image)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        vae(image)
    assert torch.cuda.max_memory_allocated() - before < (128 * 128) ** 2 / 2
