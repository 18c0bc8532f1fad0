"""Whatever a file claims, its tensors are read with the shapes that they are said to have, or a `CheckpointError` says
what is wrong."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from engine.checkpoint.convert.quantize import header_metadata
from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.layouts.encodings import stored_tensors
from engine.checkpoint.quantized.metadata import FORMATS
from engine.errors import CheckpointError
from tests.engine.checkpoint.files.memory_file import DTYPES, MemoryFile
from tests.engine.checkpoint.layouts.encoded import FORMATS as WRITTEN
from tests.engine.checkpoint.layouts.encoded import encode, metadata_tensor

KINDS = ("weight", "weight_scale", "weight_scale_2", "scale_weight", "input_scale", "pre_quant_scale")
LENGTHS = (0, 1, 2, 4, 8, 32, 64, 128, 256)
JUNK = (None, True, 1, -1, 0.5, "", [], {}, [["mxfp8"]], float("nan"), 10**30)
OPTIONS = ("format", "convrot", "convrot_groupsize", "full_precision_matrix_mult", "params")

shapes = st.lists(st.sampled_from(LENGTHS), max_size=3).map(tuple)
values = st.one_of(st.sampled_from(JUNK), st.sampled_from(FORMATS), st.sampled_from((True, False, 4, 16, 64, 256)))


@st.composite
def files(draw: st.DrawFn) -> MemoryFile:
    """A layer in some format, of which something or other was replaced, added or left out."""
    weight = torch.ones(draw(st.sampled_from((1, 8, 130))), 256)
    tensors, options = encode(draw(st.sampled_from(WRITTEN)), "a", weight, full_precision=draw(st.booleans()))
    header: dict[str, Any] = {"a": options} if draw(st.booleans()) else {}
    blob: Any = dict(options)
    for change in draw(
        st.lists(st.sampled_from(("drop", "replace", "option", "blob", "header", "rename")), max_size=2)
    ):
        name = f"{draw(st.sampled_from(('a', 'last.down')))}.{draw(st.sampled_from(KINDS))}"
        if change == "drop":
            tensors.pop(draw(st.sampled_from(sorted(tensors))), None)
        elif change == "replace":
            tensors[name] = draw(random_tensors())
        elif change == "option" and isinstance(blob, dict):
            blob[draw(st.sampled_from(OPTIONS))] = draw(values)
        elif change == "blob":
            blob = deepcopy(draw(values))  # which may be changed next
        elif change == "header":
            header[draw(st.sampled_from(("a", "b.a", "", "last.down")))] = draw(
                st.one_of(values, st.dictionaries(st.sampled_from(OPTIONS), values))
            )
        else:
            tensors = {f"b.{name}": tensor for name, tensor in tensors.items()}
    metadata = {"_quantization_metadata": json.dumps({"layers": header})} if header else {}
    if not header or draw(st.booleans()):
        tensors |= metadata_tensor("a", blob)
    return MemoryFile(tensors, metadata | draw(st.sampled_from(({}, {"quant_format": "mxfp8"}))))


@st.composite
def random_tensors(draw: st.DrawFn) -> torch.Tensor:
    shape, dtype = draw(shapes), draw(st.sampled_from(list(DTYPES)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    octets = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
    return octets.view(dtype).reshape(shape) if octets.numel() else torch.empty(shape, dtype=dtype)


@given(file=files())
@settings(max_examples=400, deadline=None)
def test_any_file_is_read_or_refused(file: MemoryFile) -> None:
    try:
        found = stored_tensors(file)
    except CheckpointError as error:
        check(error)
        return
    for name, tensor in found.items():
        assert name in file.headers
        bounds = tuple(slice(0, length) for length in tensor.shape)
        try:
            values = tensor.read(bounds)
            assert values.shape == tensor.shape
            assert values.is_floating_point()
            file.bytes_read = 0
            tensor.read(bounds)
            assert file.bytes_read == tensor.size(bounds)
            if tensor.weight_format == "fp8":
                codes, scales = tensor.read_eight_bit(bounds)
                assert torch.equal((codes.float() * scales).nan_to_num(), values.nan_to_num())
        except CheckpointError as error:
            check(error)


def check(error: CheckpointError) -> None:
    assert error.message.startswith("model.safetensors: ")
    assert error.message.isprintable()
    assert len(error.message) < 600


@pytest.mark.parametrize("in_header", [True, False])
@pytest.mark.parametrize("format", WRITTEN)
def test_what_is_written_to_a_file_is_read_from_it(tmp_path: Path, format: str, in_header: bool) -> None:
    tensors, metadata = encode(format, "a", torch.randn(40, 256))
    file = tmp_path / "model.safetensors"
    if in_header:
        save_file(tensors, file, header_metadata({"a": metadata}))
    else:
        save_file(tensors | metadata_tensor("a", metadata), file)
    whole = (slice(0, 40), slice(0, 256))
    in_memory: dict[str, Any] = stored_tensors(MemoryFile(tensors, header_metadata({"a": metadata})))
    read = stored_tensors(open_tensor_file(file))
    assert list(read) == ["a.weight"]
    assert torch.equal(read["a.weight"].read(whole), in_memory["a.weight"].read(whole))
