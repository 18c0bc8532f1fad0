"""What an image that begins from a picture starts from, and what of the picture stays in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class EncodedPicture:
    """A picture as an image's tokens, both (image tokens, in_channels) float32.

    latents: what the VAE's encoder makes of it, without noise. mask: 1 where it is repainted, 0 where it stays, and in
    between where it joins late; None where all is repainted.
    """

    latents: torch.Tensor
    mask: torch.Tensor | None = None

    def with_noise(self, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """Bring the latents to a noise level: σ · noise + (1 − σ) · latents. At 1 that is the noise and at 0 the
        latents, to the bit, whatever the other is."""
        if sigma == 1.0:
            return noise
        if sigma == 0.0:
            return self.latents
        return (noise * sigma).add_(self.latents, alpha=1.0 - sigma)


@dataclass(frozen=True)
class KeptParts:
    """The parts of a picture that stay in an image, with the image's own noise, (image tokens, in_channels) float32."""

    picture: EncodedPicture
    noise: torch.Tensor

    def put_back(self, latents: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
        """Put the picture into the latents that a step from one noise level has brought to the next: everywhere but
        where the mask is at least `sigma`. So what is white is repainted in all steps, what is grey in the last ones.
        """
        assert self.picture.mask is not None
        return torch.where(self.picture.mask >= sigma, latents, self.picture.with_noise(self.noise, sigma_next))
