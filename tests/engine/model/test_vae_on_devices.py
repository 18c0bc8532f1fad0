"""How the VAE's decoder computes on a CPU and on a GPU: layouts, what is tuned, what waits, the error of bfloat16."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.engines.real_size import TINY, RandomWeights
from engine.checkpoint.load import LoadOptions, load_weights
from engine.model.vae import VAEDecoder
from engine.parallel.row_share import ImageRows
from tests.cpu_kinds import pretend

DEADLINE_S = 240.0  # this runs where there is nothing of the server, and so nothing of tests.engine_runs
REAL_PROPORTIONS: dict[str, Any] = {"dim_mult": (1, 2, 4, 4), "num_res_blocks": 2}


def decoder(device: str = "cpu", dtype: torch.dtype = torch.float32, **fields: Any) -> VAEDecoder:
    """A random one, the same on every device, none of whose pixels are clipped."""
    weights = RandomWeights(replace(TINY, vae=replace(TINY.vae, **fields)), torch.device("cpu"))
    with torch.device("meta"):
        vae = VAEDecoder(weights.config.vae)
    load_weights(vae, weights, "vae", rank=0, size=1, options=LoadOptions(torch.device(device), dtype))
    vae.decoder.conv_out.weight.mul_(0.3)
    return vae


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("dtype", "native_bfloat16"), [(torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False)]
)
def test_images_are_channels_last_between_all_convolutions(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, native_bfloat16: bool
) -> None:
    pretend(monkeypatch, native_bfloat16=native_bfloat16)
    vae = decoder(device, dtype, **REAL_PROPORTIONS)
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


def test_cudnn_times_convolutions_while_a_shape_is_warmed_up_and_never_else() -> None:
    vae = decoder()
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


def test_threads_that_warm_up_at_once_leave_nothing_timed() -> None:
    first, second, latents = decoder(), decoder(), torch.randn(1, 16, 4, 6)
    first_began, second_began, first_ended = (threading.Event() for _ in range(3))

    def meet(*_: object) -> None:
        first_began.set()
        assert second_began.wait(DEADLINE_S)

    def wait(*_: object) -> None:
        second_began.set()
        assert first_ended.wait(DEADLINE_S)

    first.decoder.conv_out.register_forward_pre_hook(meet)
    second.decoder.conv_out.register_forward_pre_hook(wait)
    with ThreadPoolExecutor() as pool, torch.inference_mode():
        one = pool.submit(first.warm_up, latents)
        assert first_began.wait(DEADLINE_S)
        other = pool.submit(second.warm_up, latents)
        one.result(DEADLINE_S)
        first_ended.set()
        other.result(DEADLINE_S)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.gpu
@pytest.mark.parametrize(("height", "width"), [(16, 16), (26, 14), (1, 3)])
def test_a_gpu_decodes_as_closely_as_a_cpu(monkeypatch: pytest.MonkeyPatch, height: int, width: int) -> None:
    """Both round to bfloat16 at the same places, so one has no reason to be further from float32 than the other."""
    pretend(monkeypatch, native_bfloat16=True)
    latents = torch.randn(2, 16, height, width, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    with torch.inference_mode():
        exact = decoder(**REAL_PROPORTIONS)(latents)
        on_cpu = decoder(dtype=torch.bfloat16, **REAL_PROPORTIONS)(latents).float()
        vae = decoder("cuda", torch.bfloat16, **REAL_PROPORTIONS)
        vae.warm_up(latents.cuda())
        on_gpu = vae(latents.cuda()).float().cpu()
    assert (on_gpu - exact).abs().mean() <= 1.2 * (on_cpu - exact).abs().mean()
    assert (on_gpu - exact).abs().max() <= 2 * (on_cpu - exact).abs().max()


@pytest.mark.gpu
def test_a_gpu_decodes_without_the_host_waiting() -> None:
    vae = decoder("cuda", torch.bfloat16, **REAL_PROPORTIONS)
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
def test_the_middle_attention_on_a_gpu_keeps_to_the_memory_for_scores(width: int) -> None:
    attention = decoder("cuda", torch.bfloat16, base_dim=width).decoder.mid_block.attentions[0]
    image = torch.randn(1, width, 128, 128, device="cuda", dtype=torch.bfloat16)
    image = image.contiguous(memory_format=torch.channels_last)
    rows, room = ImageRows(128), 20_000_000
    with torch.inference_mode():
        attention(image, rows, room)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        attention(image, rows, room)
    assert torch.cuda.max_memory_allocated() - before <= room + 6 * image.nbytes
