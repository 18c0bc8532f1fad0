"""Small pictures of what latents may become, too cheap to be felt beside a denoise step.

The decoder takes as long as several steps. A map from each latent by itself to the 2 × 2 pixels it stands for takes
next to nothing, and shows shapes and colours: a layer of fixed random features (Huang et al., "Extreme learning
machine", 2006), and after it a linear one. That one belongs to a VAE, so it is learned by least squares from the images
that this VAE decodes: the warm-up's first, then the ones that users ask for. On the demo's images it is off by 0.03
on average (a linear map of the latents alone by 0.13, of 3 × 3 latents by 0.10).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

SCALE = 2  # pixels a latent, in each direction
_HIDDEN = 128  # random features of a latent
_RIDGE = 1e-3  # of the least squares, for each pixel learned from
_LARGEST = 50.0  # latents are about 1; what has run away, or is not a number, teaches nothing
_MEMORY = 0.97  # what an image still counts after the next one: a hundred images shape the map


class PreviewMap:
    """Learns in one thread, draws in another. All on `device`, but for solving the small system of equations."""

    def __init__(self, latent_channels: int, device: torch.device) -> None:
        self._device = device
        generator = torch.Generator().manual_seed(0)
        self._weight = (torch.randn(latent_channels, _HIDDEN, generator=generator) / latent_channels**0.5).to(device)
        self._bias = torch.randn(_HIDDEN, generator=generator).to(device)
        features = latent_channels + _HIDDEN + 1
        self._products = torch.zeros(features, features, dtype=torch.float64)
        self._targets = torch.zeros(features, 3 * SCALE**2, dtype=torch.float64)
        # (features, 3 · SCALE²) float32 to colours of 0 to 255, replaced as a whole
        self._map: torch.Tensor | None = None

    def learn(self, latents: torch.Tensor, pixels: torch.Tensor) -> None:
        """Learn from latents, (channels, h, w) float32, and pixels, (8h, 8w, 3) uint8, that the VAE made of them."""
        if not latents.abs().max() < _LARGEST:
            return
        height, width = latents.shape[1:]
        picture = pixels.permute(2, 0, 1)[None].float()
        small = F.adaptive_avg_pool2d(picture, (SCALE * height, SCALE * width))
        x, hidden = self._features(latents)
        x = torch.cat([x, hidden, x.new_ones(len(x), 1)], dim=1)
        y = F.unfold(small, SCALE, stride=SCALE)[0].T
        products, targets = (x.T @ x).double().cpu(), (x.T @ y).double().cpu()  # both, or none if memory runs out
        self._products = _MEMORY * self._products + products
        self._targets = _MEMORY * self._targets + targets
        rows = self._products[-1, -1]  # of the constant feature, 1
        ridge = _RIDGE * rows * torch.eye(len(self._products), dtype=torch.float64)
        solved = torch.linalg.solve(self._products + ridge, self._targets).float()
        solved[-1] += 0.5  # so that cutting off the fraction rounds
        self._map = solved.to(self._device)

    def draw(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Draw the latents of an image without noise: (channels, h, w) float32 → (2h, 2w, 3) uint8; None as long as
        nothing was learned."""
        learned = self._map
        if learned is None:
            return None
        if learned.is_cuda:  # it was made in another stream, and may be replaced before this one has used it
            learned.record_stream(torch.cuda.current_stream(learned.device))
        channels, height, width = latents.shape
        x, hidden = self._features(latents)
        colours = torch.addmm(learned[-1], x, learned[:channels]).addmm_(hidden, learned[channels:-1])
        patches = colours.clamp_(0, 255).to(torch.uint8).view(height, width, 3, SCALE, SCALE)
        return patches.permute(0, 3, 1, 4, 2).reshape(SCALE * height, SCALE * width, 3)

    def _features(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(channels, h, w) → (h · w, channels) and (h · w, hidden): each latent, and its random features."""
        x = latents.flatten(1).T
        return x, torch.addmm(self._bias, x, self._weight).relu_()
