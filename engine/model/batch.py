"""The packed batch: the tokens of all segments as rows of one matrix, (tokens, width).

A segment is [an image's text tokens | its image tokens]. A guided image has two segments, one for its prompt and one
for the negative prompt, over the same latents. Nothing is padded and nothing is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from engine.kernels.packing import Packing
from engine.parallel.group import Group
from engine.parallel.row_share import RowShare


@dataclass(frozen=True)
class Segment:
    """The shape of one segment, in tokens. image: the index of its image in the batch."""

    image: int
    text_tokens: int
    grid_height: int
    grid_width: int

    @property
    def image_tokens(self) -> int:
        return self.grid_height * self.grid_width

    @property
    def tokens(self) -> int:
        return self.text_tokens + self.image_tokens


class Layout:
    """Offsets and positions of a packed batch, the same for every step in which the same segments meet.

    share: which rows this rank has; `share.whole` packs the segments. rotations: RoPE of the rows that the rank
    multiplies, (multiplied rows, head_dim / 2) complex64, the identity on text.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        grids: Sequence[torch.Tensor],
        sequence: Group | None = None,
        tensor: Group | None = None,
    ) -> None:
        """grids: each segment's image rotations, (image tokens, head_dim / 2) complex64. sequence, tensor: the ranks
        that share the rows, and the matrices, as in `RowShare`."""
        self.segments = tuple(segments)
        self.share = RowShare(Packing([segment.tokens for segment in segments], grids[0].device), sequence, tensor)
        parts = []
        for segment, grid in zip(segments, grids, strict=True):
            parts += [grid.new_ones((segment.text_tokens, grid.shape[1])), grid]
        self.rotations = self.share.take_multiplied(torch.cat(parts))
        # where each image's tokens lie among those of all images, guided ones counted once
        sizes = {segment.image: segment.image_tokens for segment in segments}
        starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        self._image_rows = [slice(starts[s.image], starts[s.image] + s.image_tokens) for s in segments]

    def pack(self, text: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Lay out text features and embedded image tokens, both of the same dtype: (tokens, width).

        text: each segment's, (text tokens, width). images: (image tokens, width) of all images, each image once.
        """
        parts = []
        for features, rows in zip(text, self._image_rows, strict=True):
            parts += [features, images[rows]]
        return torch.cat(parts)

    def take_images(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the rows that are image tokens: (tokens, width) → (image tokens of all segments, width)."""
        places = zip(self.segments, pairwise(self.share.whole.bounds), strict=True)
        return torch.cat([x[start + segment.text_tokens : stop] for segment, (start, stop) in places])
