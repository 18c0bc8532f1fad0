"""The packed batch's bookkeeping, for random batches."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.model.batch import Layout, Segment

HALF_HEAD = 3


@st.composite
def batches(draw: st.DrawFn) -> list[Segment]:
    segments = []
    for image in range(draw(st.integers(1, 4))):
        height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        for _ in range(draw(st.integers(1, 2))):  # guided or not
            segments.append(Segment(image, draw(st.integers(0, 6)), height, width))
    return segments


@given(batches())
def test_rows_are_text_then_image_of_one_segment_after_the_other(segments: list[Segment]) -> None:
    grids = [torch.randn(s.image_tokens, HALF_HEAD, dtype=torch.complex64) for s in segments]
    layout = Layout(segments, grids)
    text = [torch.randn(s.text_tokens, 5) for s in segments]
    images = {s.image: torch.randn(s.image_tokens, 5) for s in segments}
    packed = layout.pack(text, torch.cat(list(images.values())))

    bounds = layout.share.whole.bounds
    taken = layout.take_images(packed).split([s.image_tokens for s in segments])
    assert bounds[0] == 0
    for index, segment in enumerate(segments):
        rows = packed[bounds[index] : bounds[index + 1]]
        assert torch.equal(rows, torch.cat([text[index], images[segment.image]]))
        rotations = layout.rotations[bounds[index] : bounds[index + 1]]
        assert torch.equal(rotations[: segment.text_tokens], torch.ones(segment.text_tokens, HALF_HEAD) + 0j)
        assert torch.equal(rotations[segment.text_tokens :], grids[index])
        assert torch.equal(taken[index], images[segment.image])
    assert bounds[-1] == packed.shape[0]
