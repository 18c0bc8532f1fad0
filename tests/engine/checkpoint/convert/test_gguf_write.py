"""GGUF files as the gguf library reads them back, and their tensors as they are held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from engine.checkpoint.convert.k_quants import K_QUANTS
from engine.checkpoint.convert.writers import GGUF_TYPES, describe_others, gguf_types, write_gguf
from engine.checkpoint.files.gguf_file import GgufFile
from engine.checkpoint.files.stored import whole
from engine.errors import CheckpointError

# Largest errors, relative to the largest magnitude of 32 numbers: half a step, or a whole one where there is one step
# less on one side of zero; a bit more for the rounding of scales and offsets to float16.
ERRORS = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 0.57 / 127, "Q5_0": 1.01 / 16, "Q4_0": 1.01 / 8}
ERRORS |= {"Q5_1": 1.05 / 31, "Q4_1": 1.05 / 15}


@pytest.mark.parametrize("qtype", [qtype for qtype in GGUF_TYPES if qtype not in K_QUANTS])
def test_every_type_is_read_back_within_its_step(tmp_path: Path, qtype: str) -> None:
    tensors = {
        "blocks.0.attn.wq.weight": torch.randn(24, 64),
        "blocks.0.mlp.up.weight": torch.randn(40, 96).bfloat16(),
        "blocks.0.mod.lin": torch.randn(2048),
        "first.weight": torch.randn(40, 50),  # of no whole blocks
        "txtfusion.projector.weight": torch.randn(1, 12),
    }
    file = tmp_path / "model.gguf"
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_gguf(file, shapes, qtype, tensors.__getitem__)
    reader = GGUFReader(file)
    assert reader.fields["general.architecture"].contents() == "krea2"
    assert ("general.quantization_version" in reader.fields) == qtype.startswith("Q")
    read = {tensor.name: tensor for tensor in reader.tensors}
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert tuple(reversed(read[name].shape.tolist())) == tuple(tensor.shape)
        blocks = name.startswith("blocks") and tensor.ndim == 2
        half_floats = name == "first.weight" and qtype in ("F16", "BF16")
        assert read[name].tensor_type.name == (qtype if blocks or half_floats else "F32")
        values = torch.from_numpy(dequantize(read[name].data, read[name].tensor_type).copy()).reshape(tensor.shape)
        if blocks:
            largest = tensor.float().unflatten(1, (-1, 32)).abs().amax(dim=2).repeat_interleave(32, dim=1)
            assert ((values - tensor.float()).abs() <= largest * ERRORS[qtype]).all()
        elif not half_floats:
            assert torch.equal(values, tensor)


SHAPES = {
    "blocks.0.mlp.up.weight": (24, 512),
    "first.weight": (40, 64),
    "last.linear.weight": (40, 50),
    "blocks.0.mod.lin": (2048,),
    "txtfusion.projector.weight": (1, 12),
}
INSTEAD = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@pytest.mark.parametrize("qtype", K_QUANTS)
def test_k_quants_give_way_to_blocks_of_32_and_are_read_as_the_library_reads_them(tmp_path: Path, qtype: str) -> None:
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in SHAPES.items()}
    file = tmp_path / "model.gguf"
    write_gguf(file, SHAPES, qtype, tensors.__getitem__)
    read = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    types = {name: tensor.tensor_type.name for name, tensor in read.items()}
    assert list(types.values()) == [qtype, INSTEAD[qtype], "F32", "F32", "F32"]
    assert types == gguf_types(SHAPES, qtype)
    told = f"1 of 3 matrices are {qtype}; the others, whose columns are no multiple of 256: 1 {INSTEAD[qtype]}, 1 F32"
    assert describe_others(SHAPES, qtype) == told
    ours = GgufFile(file)
    for name, tensor in tensors.items():
        theirs = torch.from_numpy(dequantize(read[name].data, read[name].tensor_type).copy()).reshape(tensor.shape)
        assert torch.equal(ours.read(name, whole(tensor.shape)), theirs)
        assert torch.nn.functional.cosine_similarity(theirs.flatten(), tensor.float().flatten(), dim=0) > 0.95
    ours.close()


def test_what_becomes_what_was_asked_for_needs_no_words() -> None:
    assert describe_others({"a": (64, 256), "b": (256,), "c": (1, 12)}, "Q4_K") is None
    assert describe_others({"a": (64, 250)}, "BF16") is None
    assert describe_others({"a": (64, 256), "table": (2, 1000)}, "Q4_K", {"table"}) is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 65600.0, -1e30])
@pytest.mark.parametrize("qtype", GGUF_TYPES)
def test_numbers_that_a_type_cannot_hold_are_refused(tmp_path: Path, qtype: str, number: float) -> None:
    matrix = torch.ones(8, 256)
    matrix[3, 100] = number
    file = tmp_path / "model.gguf"
    if qtype in ("F32", "BF16"):
        write_gguf(file, {"a": (8, 256)}, qtype, lambda _: matrix)
        return
    problem = rf"model\.gguf: a: cannot be {qtype}: holds other numbers than a float16 does, expected finite ones"
    with pytest.raises(CheckpointError, match=problem):
        write_gguf(file, {"a": (8, 256)}, qtype, lambda _: matrix)
    assert not list(tmp_path.iterdir())


def test_a_file_that_has_no_room_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    shapes = {f"{index}": (1 << 20, 1 << 20) for index in range(300)}  # 169 TB
    with pytest.raises(CheckpointError, match=r"the disk has too little room, expected \S+ GB, found \S+ GB"):
        write_gguf(tmp_path / "model.gguf", shapes, "Q4_K", dict[str, torch.Tensor]().__getitem__)
    assert not list(tmp_path.iterdir())
