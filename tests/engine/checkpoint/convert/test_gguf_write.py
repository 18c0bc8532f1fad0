"""GGUF files as the gguf library reads them back, and their tensors as they are held."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from engine.checkpoint.convert.writers import GGUF_TYPES, write_gguf

# Largest errors, relative to the largest magnitude of 32 numbers: half a step, or a whole one where there is one step
# less on one side of zero; a bit more for the rounding of scales and offsets to float16.
ERRORS = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 0.57 / 127, "Q5_0": 1.01 / 16, "Q4_0": 1.01 / 8}
ERRORS |= {"Q5_1": 1.05 / 31, "Q4_1": 1.05 / 15}


@pytest.mark.parametrize("qtype", GGUF_TYPES)
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
