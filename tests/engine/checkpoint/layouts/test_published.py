"""Forms that other programs publish: read as these programs dequantise them, whole and in slices, and named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.layouts.encodings import stored_tensors
from engine.errors import CheckpointError
from tests.engine.checkpoint.files.memory_file import MemoryFile
from tests.engine.checkpoint.layouts.published import FORMS, NF4, Published, publish

SHAPES = {"": (140, 192), " of other sizes": (9, 12)}  # whole blocks of 64 in a row, and three rows in a block of 64
ODD = ("nf4", "fp4", "int8", "quanto", "fp8 a row")  # forms in which columns may be of any number


def cases() -> dict[str, tuple[MemoryFile, Published]]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for form in FORMS:
        for what, shape in SHAPES.items():
            if not what or any(each in form for each in ODD):
                published = publish(form, "a", torch.randn(shape, generator=generator))
                made[form + what] = (MemoryFile(published.tensors), published)
    return made


CASES = cases()


def bounds(length: int) -> st.SearchStrategy[slice]:
    return st.tuples(st.integers(0, length), st.integers(0, length)).map(lambda ends: slice(min(ends), max(ends)))


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_any_slice_is_as_its_program_dequantises_it(case: str, data: st.DataObject) -> None:
    file, published = CASES[case]
    tensors = stored_tensors(file)
    assert list(tensors) == ["a.weight"]
    tensor, expected = tensors["a.weight"], published.values
    assert tensor.shape == expected.shape
    largest = expected.abs().max().item()
    for part in (
        (slice(0, expected.shape[0]), slice(0, expected.shape[1])),
        tuple(map(data.draw, map(bounds, expected.shape))),
    ):
        file.bytes_read = 0
        values = tensor.read(part)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, expected[part], rtol=1e-6, atol=4e-7 * largest)
        assert file.bytes_read == tensor.size(part)
        if tensor.weight_format == "fp8":
            codes, scales = tensor.read_eight_bit(part)
            torch.testing.assert_close(codes.float() * scales, expected[part])


def test_a_matrix_that_bitsandbytes_wrote() -> None:
    """By `bitsandbytes.functional.quantize_4bit(…, compress_statistics=True)` of 0.50.2, and its `dequantize_4bit`."""
    packed = bytes.fromhex(
        "36a37b48c5926b37c48d5a26c38d49e5b16d28e4a15c17d29e4b15d17e2af4c06c28d4a15c17d29e4b15c17e29f4b16d18e3a04c16e19f3b05d17e2a"
    )
    state = (
        b'{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [3, 40], "nested_blocksize": 256, '
        b'"nested_dtype": "float32", "nested_offset": 3.011000156402588}'
    )
    nested = torch.zeros(256)
    nested[0], nested[255] = -0.992968738079071, 1.0
    tensors = {
        "a.weight": torch.tensor(list(packed), dtype=torch.uint8).unsqueeze(1),
        "a.weight.absmax": torch.tensor([0, 255], dtype=torch.uint8),
        "a.weight.quant_map": torch.tensor(NF4),
        "a.weight.nested_absmax": torch.tensor([0.5610001087188721]),
        "a.weight.nested_quant_map": nested,
        "a.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state), dtype=torch.uint8),
    }
    (tensor,) = stored_tensors(MemoryFile(tensors)).values()
    assert (tensor.format, tensor.shape, tensor.weight_format) == ("bitsandbytes nf4", (3, 40), "float")
    values = tensor.read((slice(1, 3), slice(20, 40)))
    first = [2.453945, -0.698003, 1.081478, -2.453945, -0.325231, 1.574216, -1.875561, 0.284261, 2.009668, -1.016025]
    last = [-3.572, -0.660011, 2.009668, -2.486801, 0.0, 2.582402, -1.875561, 0.879113]
    torch.testing.assert_close(values[0, :10], torch.tensor(first), rtol=0, atol=1e-6)
    torch.testing.assert_close(values[1, -8:], torch.tensor(last), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        ("bitsandbytes nf4", {"weight.absmax": None}, "a.weight: has the format bitsandbytes nf4, .* its absmax"),
        ("bitsandbytes nf4", {"weight.absmax": torch.ones(3)}, "a.weight.absmax: does not fit the format bitsandbytes"),
        ("bitsandbytes nf4", {"weight.quant_map": torch.ones(16)}, "a.weight.quant_map: is not the code book of"),
        ("bitsandbytes nf4", {"weight": torch.ones(9, 64, dtype=torch.uint8)}, "a.weight: does not fit the format"),
        ("bitsandbytes nf4 twice", {"weight.nested_quant_map": None}, "a.weight: .* its nested_quant_map"),
        ("bitsandbytes int8", {"SCB": torch.ones(3)}, "a.SCB: does not fit the format bitsandbytes int8"),
        ("bitsandbytes int8", {"weight_format": torch.ones((), dtype=torch.uint8)}, "a.weight_format: says an order"),
        ("quanto int8", {"weight._scale": None}, "a.weight._data: .* for which its weight_scale"),
        ("DeepSeek", {"weight_scale_inv": torch.ones(9, 1)}, "a.weight_scale_inv: .* one for each of .* squares"),
        ("fp8 in squares", {"weight_scale": torch.ones(1, 64)}, "a.weight_scale: .* the weight's squares of 64"),
        ("int4", {"weight": torch.ones(9, 32, dtype=torch.uint8)}, "a.weight: .*int4_tensorwise, .* of I8"),
        ("int4", {"int4_awq_scales": torch.ones(64)}, "a.int4_awq_scales: is not known for .* int4"),
        ("w4a8", {"weight_s_rel": torch.ones(9, 64)}, "a.weight_s_rel: does not fit the format asym_w4a8_int8"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(form: str, changes: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = publish(form, "a", torch.randn(9, 64)).tensors
    for name, tensor in changes.items():
        tensors.pop(f"a.{name}", None)
        if tensor is not None:
            tensors[f"a.{name}"] = tensor
    with pytest.raises(CheckpointError, match=f"^model.safetensors: {message}"):
        stored_tensors(MemoryFile(tensors))
