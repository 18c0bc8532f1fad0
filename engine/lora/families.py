"""The kinds of adapters, by the tensors that each has for a layer: which are complete, whether they fit, how large.

Pure Python. A layer's weight is (height, columns), in the file perhaps higher: q, k and v below each other. What is no
matrix, a norm's weight or a modulation table, is called a vector here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from itertools import accumulate

from engine.checkpoint.files.stored import TensorFile
from engine.checkpoint.layouts.tensors import Source


class Family(Enum):
    """Names what a layer's tensors are, for people."""

    LORA = "LoRA"
    LOHA = "LoHa"
    LOKR = "LoKr"
    DIFFERENCE = "full difference"
    REPLACEMENT = "replacement"
    BIAS = "bias difference"


# The roles of a complete family; a factor of LoKr's product may itself be a product.
_LOKR_FIRST = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
_LOKR_SECOND = (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
_COMPLETE: dict[frozenset[str], Family] = {
    frozenset(("down", "up")): Family.LORA,
    frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")): Family.LOHA,
    **{frozenset((*first, *second)): Family.LOKR for first in _LOKR_FIRST for second in _LOKR_SECOND},
    frozenset(("diff",)): Family.DIFFERENCE,
    frozenset(("set_weight",)): Family.REPLACEMENT,
}
_OF_CONVOLUTIONS = {"lokr_t2", "hada_t1", "hada_t2"}
_EXTRA = {"alpha", "magnitude", "diff_b"}
_WITH_RANK = (Family.LORA, Family.LOHA, Family.LOKR)
_SHOWN = {"down": "lora_A (lora_down)", "up": "lora_B (lora_up)", "magnitude": "dora_scale"}


class Misfit(Exception):
    """Says what is wrong with the tensors of one layer."""


@dataclass(frozen=True)
class Change:
    """What an adapter changes of one layer's weight.

    source: the layer's weight. tensors, shapes: the file's names and shapes by role. stacked: the weights that the file
    has as one matrix, this one or q, k and v, and rows: this one's among theirs. scale: alpha / rank, which the change
    is multiplied with.
    """

    file: TensorFile
    layer: str
    source: Source
    family: Family
    tensors: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    stacked: tuple[Source, ...]
    rows: slice
    scale: float

    @property
    def is_vector(self) -> bool:
        """Whether it is of a norm's weight or a modulation table, which every rank holds whole, in float32."""
        return is_vector(self.source)

    @property
    def by_column(self) -> bool:
        """Whether DoRA's magnitudes are those of the columns, of all that is `stacked`."""
        return self.shapes.get("magnitude") == (1, self.source.shape[1])

    def of_stacked(self) -> list[Change]:
        """Returns the changes of all weights that the file has as one matrix, in order; this is one of them."""
        ends = accumulate(source.shape[0] for source in self.stacked)
        return [
            replace(self, layer=layer_of(source), source=source, rows=slice(end - source.shape[0], end))
            for source, end in zip(self.stacked, ends, strict=True)
        ]

    def elements_on_rank(self, tp: int) -> int:
        """Counts the numbers that each of `tp` ranks holds of it, in the forms of `engine.lora.deltas`; of a Kronecker
        product those of the rank that holds the most."""
        if self.is_vector:
            return math.prod(self.source.shape)
        (rows, columns), shapes = self.source.shard_shape(tp), self.shapes
        by_row = "magnitude" in shapes and not self.by_column
        matrices = rows * columns
        if self.family is Family.BIAS:
            matrices = 0
        elif self.by_column:
            pass
        elif self.family is Family.LORA:
            matrices = shapes["down"][0] * (rows + columns)
        elif self.family is Family.LOHA:
            matrices = min(shapes["hada_w1_b"][0] * shapes["hada_w2_b"][0] * (rows + columns), matrices)
        elif self.family is Family.LOKR:
            block = lokr_factor(shapes, "lokr_w2")
            shares = [self.source.shard_bounds(rank, tp) for rank in range(tp)]
            blocks = [
                blocks_of(shifted(rows_, self.rows.start), block[0]) * blocks_of(columns_, block[1])
                for rows_, columns_ in shares
            ]
            matrices = max(blocks) + math.prod(block) + rows * by_row
        return matrices + rows * (by_row + ("diff_b" in shapes))

    def bytes_on_rank(self, tp: int, bytes_per_element: int) -> int:
        """Counts the bytes of these, in a model of whose dtype a number takes `bytes_per_element`."""
        return self.elements_on_rank(tp) * (4 if self.is_vector else bytes_per_element)


def shifted(part: slice, by: int) -> slice:
    """Returns the slice that begins and ends `by` later."""
    return slice(part.start + by, part.stop + by)


def blocks_of(part: slice, length: int) -> int:
    """Counts the blocks of this length that a slice touches."""
    return -(-part.stop // length) - part.start // length


def layer_of(source: Source) -> str:
    """Returns the name of the layer that a weight is of."""
    return source.name.removesuffix(".weight")


def is_vector(source: Source) -> bool:
    """Whether a tensor of the transformer is a norm's weight, (width,), or a modulation table, (rows, width)."""
    return source.float32


def family_of(shapes: Mapping[str, tuple[int, ...]], height: int, columns: int) -> Family:
    """Returns the family of which these are all tensors, by role. Raises `Misfit` where there is none, and for shapes
    that do not fit a (height, columns) weight."""
    family = _complete_family(shapes)
    _check_shapes(family, shapes, height, columns)
    return family


def family_of_vector(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> Family:
    """As `family_of` for a norm's weight, (width,), or a modulation table, (rows, width). What is added to it or put in
    its place may be flat; a product of matrices has its numbers as they are, in one row, or in one column."""
    family, count = _complete_family(shapes), math.prod(shape)
    if "magnitude" in shapes:
        raise Misfit(f"{_SHOWN['magnitude']} is the norms of a matrix, and this is none")
    if math.prod(shapes.get("diff_b", ())) > count:
        raise Misfit(f"diff_b is {shapes['diff_b']}, which does not fit a parameter of {shape}")
    own = {role: shapes[role] for role in shapes if role != "diff_b"}
    if family in (Family.DIFFERENCE, Family.REPLACEMENT):
        ((role, found),) = own.items()
        if [length for length in found if length != 1] not in ([n for n in shape if n != 1], [count]):
            raise Misfit(f"{role} is {found}, which does not fit a parameter of {shape}")
    elif family in _WITH_RANK:
        for rows, columns in ((count // shape[-1], shape[-1]), (1, count), (count, 1)):
            with suppress(Misfit):
                _check_shapes(family, own, rows, columns)
                return family
        given = ", ".join(f"{_show([role])} {own[role]}" for role in sorted(own.keys() - {"alpha"}))
        raise Misfit(f"{given} do not multiply to a parameter of {shape}")
    return family


def product_shape(change: Change) -> tuple[int, int]:
    """Returns the (rows, columns) of what the matrices of a family with a rank multiply to."""
    shapes = change.shapes
    if change.family is Family.LOKR:
        (height, width), (rows, columns) = (lokr_factor(shapes, part) for part in ("lokr_w1", "lokr_w2"))
        return height * rows, width * columns
    first, last = ("up", "down") if change.family is Family.LORA else ("hada_w1_a", "hada_w1_b")
    return shapes[first][0], shapes[last][1]


def _complete_family(shapes: Mapping[str, tuple[int, ...]]) -> Family:
    if convolutional := sorted(shapes.keys() & _OF_CONVOLUTIONS):
        raise Misfit(f"{convolutional[0]} belongs to a convolution, of which Krea 2 has none")
    roles = shapes.keys() - _EXTRA
    family = _COMPLETE.get(frozenset(roles)) if roles else Family.BIAS
    if family is None:
        whole = min((known for known in _COMPLETE if known > roles), key=len, default=None)
        if whole is None:
            raise Misfit(f"{_show(roles)} do not belong together")
        raise Misfit(f"{_show(roles)} without {_show(whole - roles)}")
    if family not in _WITH_RANK and (lonely := sorted(shapes.keys() & {"alpha", "magnitude"})):
        raise Misfit(f"{_show(lonely)} without matrices that it is for")
    return family


def rank_of(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Returns what alpha is divided by, given a complete family's shapes. None where alpha counts for nothing."""
    return next((shapes[role][0] for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if role in shapes), None)


def lokr_factor(shapes: Mapping[str, tuple[int, ...]], part: str) -> tuple[int, int]:
    """Returns the (rows, columns) of a Kronecker factor, which may itself be a product."""
    first, last = (part, part) if part in shapes else (f"{part}_a", f"{part}_b")
    return shapes[first][0], shapes[last][1]


def _check_shapes(family: Family, shapes: Mapping[str, tuple[int, ...]], height: int, columns: int) -> None:
    def rank(role: str) -> int:
        return shapes[role][0] if shapes[role] else 0

    def misshapen(role: str) -> Misfit:
        return Misfit(f"{_show([role])} is {shapes[role]}, which does not fit a weight of {(height, columns)}")

    expected: dict[str, tuple[int, ...]] = {}
    match family:
        case Family.LORA:
            expected = {"down": (rank("down"), columns), "up": (height, rank("down"))}
        case Family.LOHA:
            for part in ("hada_w1", "hada_w2"):
                inner = rank(f"{part}_b")
                expected |= {f"{part}_a": (height, inner), f"{part}_b": (inner, columns)}
        case Family.LOKR:
            for role in shapes.keys() - _EXTRA:
                rows, last = (*shapes[role], 0, 0)[:2]
                expected[role] = (rows, rank(role[:-1] + "b") if role.endswith("_a") else last)
        case Family.DIFFERENCE | Family.REPLACEMENT:
            expected = dict.fromkeys(shapes.keys() - _EXTRA, (height, columns))
    if "diff_b" in shapes:
        expected["diff_b"] = (height,)
    for role, shape in expected.items():
        if shapes[role] != shape or 0 in shape:
            raise misshapen(role)
    if family is Family.LOKR:
        first, second = (lokr_factor(shapes, part) for part in ("lokr_w1", "lokr_w2"))
        if (first[0] * second[0], first[1] * second[1]) != (height, columns):
            raise Misfit(f"the Kronecker product of {first} and {second} does not fit a weight of {(height, columns)}")
    if "magnitude" in shapes and shapes["magnitude"] not in ((height,), (height, 1), (1, columns)):
        raise misshapen("magnitude")
    if math.prod(shapes.get("alpha", ())) != 1:
        raise Misfit(f"alpha is {shapes['alpha']}, not one number")


def _show(roles: Iterable[str]) -> str:
    return ", ".join(_SHOWN.get(role, role) for role in sorted(roles))
