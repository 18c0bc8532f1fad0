"""Quantised tensors read in part: any slice is the slice of the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.convert.quantize import header_metadata
from engine.checkpoint.layouts.encodings import stored_tensors
from tests.engine.checkpoint.files.memory_file import MemoryFile
from tests.engine.checkpoint.layouts.encoded import FORMATS, encode, whole


def cases() -> dict[str, tuple[MemoryFile, torch.Tensor]]:
    weight = torch.randn(140, 512, generator=torch.Generator().manual_seed(0))
    made = {format: encode(format, "a", weight) for format in FORMATS}
    made["small groups"] = encode("convrot_w4a4", "a", weight, group=16)
    made["not rotated"] = encode("int8_tensorwise", "a", weight, group=1)
    made["scaled columns"] = encode("nvfp4", "a", weight)
    made["scaled columns"].tensors["a.pre_quant_scale"] = torch.rand(512)
    files = {name: MemoryFile(tensors, header_metadata({"a": metadata})) for name, (tensors, metadata) in made.items()}
    files["cast"] = MemoryFile({"a.weight": weight.to(torch.float8_e4m3fn)})
    return {name: (file, whole(stored_tensors(file)["a.weight"])) for name, file in files.items()}


CASES = cases()


def bounds(length: int) -> st.SearchStrategy[slice]:
    return st.tuples(st.integers(0, length), st.integers(0, length)).map(lambda ends: slice(min(ends), max(ends)))


@pytest.mark.parametrize("case", CASES)
@given(rows=bounds(140), columns=bounds(512))
@settings(max_examples=30, deadline=None)
def test_any_slice_is_the_slice_of_the_whole(case: str, rows: slice, columns: slice) -> None:
    file, expected = CASES[case]
    tensor = stored_tensors(file)["a.weight"]
    file.bytes_read = 0
    assert torch.equal(tensor.read((rows, columns)), expected[rows, columns])
    assert file.bytes_read == tensor.size((rows, columns))
    if tensor.weight_format == "fp8":
        values, scales = tensor.read_eight_bit((rows, columns))
        assert torch.equal(values.float() * scales, expected[rows, columns])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_read_their_share_and_little_more(case: str, ranks: int) -> None:
    file, _ = CASES[case]
    tensor = stored_tensors(file)["a.weight"]
    weight_bytes = file.tensors["a.weight"].nbytes
    for dimension, length in enumerate(tensor.shape):
        share = [slice(0, 140), slice(0, 512)]
        share[dimension] = slice(0, length // ranks)
        # 128-row tiles of scales, whole groups of columns
        assert tensor.size(tuple(share)) <= weight_bytes * (0.5 if "int8" in case or "w4a4" in case else 1 / ranks) + (
            sum(t.nbytes for name, t in file.tensors.items() if name != "a.weight")
        )
