"""Tensors of any roles and shapes are one complete family or a `Misfit`, never anything else."""

from __future__ import annotations

import math
from typing import Any, cast

from hypothesis import example, given
from hypothesis import strategies as st

from engine.checkpoint.layouts.tensors import ROWS, Source
from engine.lora.families import Change, Family, Misfit, family_of, family_of_vector, product_shape, rank_of

ROLES = [
    *("down", "up", "alpha", "magnitude", "diff", "diff_b", "set_weight", "lokr_t2", "hada_t1"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
]
SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 6, 8, 12]), max_size=4).map(tuple)
HEIGHT, COLUMNS = 12, 8


@given(st.dictionaries(st.sampled_from(ROLES), SHAPES, min_size=1, max_size=6))
@example({"lokr_w1": (2, 2), "lokr_w2_a": (6, 1), "lokr_w2_b": (1, 4)})
@example({"lokr_w1_a": (), "lokr_w1_b": (), "lokr_w2": (1,)})
@example({"hada_w1_a": (12, 2), "hada_w1_b": (2, 8), "hada_w2_a": (12, 4), "hada_w2_b": (4, 8)})
@example({"down": (), "up": ()})
@example({"diff_b": (12,)})
def test_shapes_fit_or_are_a_misfit(shapes: dict[str, tuple[int, ...]]) -> None:
    try:
        family = family_of(shapes, HEIGHT, COLUMNS)
    except Misfit:
        return
    rank = rank_of(shapes)
    assert rank is None or rank > 0
    source = Source("first.weight", (HEIGHT, COLUMNS), "first.weight", ROWS)
    tensors = {role: role for role in shapes}
    change = Change(cast(Any, None), "first", source, family, tensors, shapes, (source,), slice(0, HEIGHT), 1.0)
    stored = sum(math.prod(shape) for shape in shapes.values())
    assert 0 <= change.elements_on_rank(1) <= max(stored, HEIGHT * COLUMNS) + 2 * HEIGHT
    assert family is not Family.BIAS or "diff_b" in shapes


@given(
    st.dictionaries(st.sampled_from(ROLES), SHAPES, min_size=1, max_size=6), st.sampled_from([(8,), (2, 8), (1, 12)])
)
@example({"diff": (8,)}, (8,))
@example({"set_weight": (16, 1)}, (2, 8))
@example({"down": (4, 16), "up": (1, 4), "diff_b": (8,)}, (2, 8))
@example({"lokr_w1": (2, 2), "lokr_w2": (1, 4)}, (2, 8))
@example({"hada_w1_a": (8, 2), "hada_w1_b": (2, 1), "hada_w2_a": (8, 4), "hada_w2_b": (4, 1)}, (8,))
def test_shapes_of_what_is_no_matrix_fit_or_are_a_misfit(
    shapes: dict[str, tuple[int, ...]], shape: tuple[int, ...]
) -> None:
    try:
        family = family_of_vector(shapes, shape)
    except Misfit:
        return
    source = Source("norm.weight", shape, "norm.weight", float32=True)
    change = Change(cast(Any, None), "norm", source, family, {}, shapes, (source,), slice(0, shape[0]), 1.0)
    count = math.prod(shape)
    assert change.bytes_on_rank(4, 2) == 4 * count
    if family in (Family.DIFFERENCE, Family.REPLACEMENT):
        assert {math.prod(shapes[role]) for role in shapes.keys() - {"diff_b"}} == {count}
    elif family is not Family.BIAS:
        assert math.prod(product_shape(change)) == count
