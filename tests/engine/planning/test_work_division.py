"""Segments are divided among ranks so that none has much more to do, and what they then send is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.engines.real_size import KREA2
from engine.config.degrees import Degrees
from engine.planning.work_division import Traffic, divide_segments, forward_passes, sent_in_step


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=9), st.sampled_from([1, 2]))
def test_segments_are_divided_evenly(tokens: list[int], groups: int) -> None:
    members, even = divide_segments(tokens, groups)
    assert sorted(i for group in members for i in group) == list(range(len(tokens)))
    loads = [sum(tokens[i] for i in group) for group in members]
    assert max(loads) - min(loads) <= max(tokens) or groups == 1
    assert even == (max(loads) <= 1.25 * sum(tokens) / groups)


def test_a_guided_image_is_divided_and_a_lone_unguided_one_is_not_even() -> None:
    assert divide_segments([4110, 4096], 2) == ([[0], [1]], True)
    assert divide_segments([4110], 2) == ([[0], []], False)
    assert divide_segments([4110, 4096, 4103], 2)[1] is False  # 2 : 1
    assert divide_segments([4110, 4096, 4103, 4097], 2)[1] is True


def test_ranks_that_work_together_share_all_segments_however_even_they_are() -> None:
    tokens, degrees = [4110, 4096], Degrees(sp=2, cfg=2)
    assert forward_passes(KREA2.transformer, tokens, degrees) == ([[0], [1]], 2)
    assert forward_passes(KREA2.transformer, tokens, degrees, together=True) == ([[0, 1]], 4)
    assert forward_passes(KREA2.transformer, tokens, Degrees(), together=True) == ([[0, 1]], 1)


def test_what_the_real_model_sends() -> None:
    """As the arithmetic of a block has it: 2 · 2 (p − 1) / p activations, against (p − 1) / p² of q, k, v and o."""
    tokens, width, blocks = 4160, 6144, 28
    segments = [(64, 4096)]
    for ranks in (2, 4):
        summed = sum(sent_in_step(KREA2.transformer, segments, Degrees(tp=ranks), 2), Traffic())
        velocities = (ranks - 1) * tokens // ranks * 64 * 4
        assert summed.bytes - velocities == blocks * 2 * 2 * (ranks - 1) * tokens * width * 2 // ranks
        exchanged = sum(sent_in_step(KREA2.transformer, segments, Degrees(sp=ranks), 2), Traffic())
        assert exchanged.bytes - velocities == blocks * (ranks - 1) * tokens * 15360 * 2 // ranks**2
