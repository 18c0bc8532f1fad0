"""Krea 2: text encoder, text fusion, the diffusion transformer and the VAE's decoder. Only the mathematics."""

from engine.model.text_encoder import TextEncoder
from engine.model.transformer import Transformer
from engine.model.vae import VAEDecoder

__all__ = ["TextEncoder", "Transformer", "VAEDecoder"]
