"""The arithmetic of the text encoder and of both halves of the VAE, against what torch counts of their modules."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.model.text_encoder import TextEncoder
from engine.model.vae import VAEDecoder
from engine.model.vae_encoder import VAEEncoder
from engine.parallel.group import LocalGroup
from engine.planning.floor import decode_flops, encode_flops, text_encoder_parameters

DEMO = ModelConfig.from_folder(DEMO_CHECKPOINT)


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_the_decoder_s_arithmetic_is_what_torch_counts(size: tuple[int, int]) -> None:
    decoder = VAEDecoder(DEMO.vae)
    decoder.load_state_dict(decoder.state_dict())  # which puts mean and deviation in place
    latents = torch.zeros(1, DEMO.vae.z_dim, *(side // DEMO.vae.scale_factor for side in size[::-1]))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        decoder(latents)
    pixels, width = latents[0, 0].numel(), decoder.decoder.conv_in.weight.shape[0]
    attention = 4 * pixels**2 * width  # which torch does not count on a CPU
    assert decode_flops(DEMO.vae, *size) == counter.get_total_flops() + attention


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_the_picture_encoder_s_arithmetic_is_what_torch_counts(size: tuple[int, int]) -> None:
    encoder = VAEEncoder(DEMO.vae)
    encoder.load_state_dict(encoder.state_dict())
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        latents = encoder(torch.zeros(1, 3, *size[::-1]))
    attention = 4 * latents[0, 0].numel() ** 2 * DEMO.vae.base_dim * DEMO.vae.dim_mult[-1]
    assert encode_flops(DEMO.vae, *size) == counter.get_total_flops() + attention


def test_the_text_encoder_s_matrices_are_those_of_the_layers_that_are_built() -> None:
    with torch.device("meta"):
        layers = TextEncoder(DEMO, LocalGroup()).layers
    elements = sum(parameter.numel() for parameter in layers.parameters() if parameter.dim() == 2)
    assert text_encoder_parameters(DEMO.text_encoder, DEMO.text_layers) == elements
