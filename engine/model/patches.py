"""Latents to image tokens and back: a token is a patch of latent pixels, as diffusers' `Krea2Pipeline` packs them."""

from __future__ import annotations

import torch


def pack_latents(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """Pack (c, h·p, w·p) to (h·w, c·p·p): one token a patch, row by row."""
    channels, height, width = latents.shape
    patches = latents.view(channels, height // patch, patch, width // patch, patch)
    return patches.permute(1, 3, 0, 2, 4).reshape(-1, channels * patch * patch)


def unpack_latents(tokens: torch.Tensor, grid_height: int, grid_width: int, patch: int) -> torch.Tensor:
    """Unpack (h·w, c·p·p) to (c, h·p, w·p), the inverse of `pack_latents`."""
    patches = tokens.view(grid_height, grid_width, -1, patch, patch)
    return patches.permute(2, 0, 3, 1, 4).reshape(-1, grid_height * patch, grid_width * patch)
