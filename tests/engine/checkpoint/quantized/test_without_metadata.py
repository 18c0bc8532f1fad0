"""Which tensors a file means without quantisation metadata: scales beside weights, and what has neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.checkpoint.files.stored import PlainTensor
from engine.checkpoint.layouts.encodings import stored_tensors
from engine.errors import CheckpointError
from tests.engine.checkpoint.files.memory_file import MemoryFile
from tests.engine.checkpoint.quantized.formats import (
    FORMAT_FP8,
    FP8,
    FP8_LAYER,
    blob,
    formats,
    layer,
    refusal,
    zeros,
)


def test_plain_tensors_stay_what_they_are() -> None:
    tensors = {"a.weight": zeros(4, 4), "a.bias": zeros(4, dtype=torch.float32), "mod.lin": zeros(6)}
    tensors |= {"blocks.0.attn.qknorm.qnorm.scale": zeros(4), "weight_scale": zeros(1), "position_ids": torch.arange(3)}
    found = stored_tensors(MemoryFile(tensors))
    assert list(found) == list(tensors)
    assert isinstance(found["a.weight"], PlainTensor)


def test_other_dtypes_are_an_error_only_when_they_are_read() -> None:
    found = stored_tensors(MemoryFile({"position_ids": torch.arange(3)}))["position_ids"]
    for use in (found.read, found.size):
        with pytest.raises(CheckpointError, match=r"position_ids: has a dtype that cannot be read, .* found I64"):
            use((slice(0, 3),))


def test_fp8_with_a_scale_and_no_metadata() -> None:
    assert formats(FP8_LAYER) == {"blocks.0.a.weight": "float8_e4m3fn"}
    e5m2 = layer("a", torch.float8_e5m2, weight_scale=torch.ones(()), input_scale=torch.ones(()))
    assert formats(e5m2) == {"a.weight": "float8_e5m2"}


def test_a_cast_to_fp8_without_a_scale() -> None:
    tensors = {"a.weight": torch.ones(4, 4), "a.bias": torch.ones(4), "norm.scale": torch.ones(4)}
    found = stored_tensors(MemoryFile({name: tensor.to(FP8) for name, tensor in tensors.items()}))
    assert [tensor.weight_format for tensor in found.values()] == ["fp8", "float", "float"]
    assert torch.equal(found["norm.scale"].read((slice(1, 3),)), torch.ones(2))
    values, scales = found["a.weight"].read_eight_bit((slice(0, 2), slice(0, 3)))
    assert torch.equal(values.float() * scales, torch.ones(2, 3))


@pytest.mark.parametrize("marker_length", [0, 1, 2])
def test_the_older_fp8_files(marker_length: int) -> None:
    """A marker, of two elements where products are to be in full precision, and other names for the scales."""
    prefix = "model.diffusion_model."
    tensors = layer(f"{prefix}a", FP8, scale_weight=torch.tensor(3.0), scale_input=torch.ones(()))
    tensors |= {f"{prefix}scaled_fp8": zeros(marker_length, dtype=FP8), f"{prefix}a.bias": zeros(4)}
    tensors |= layer("text_encoder.b", FP8, scale_weight=torch.ones(()))
    tensors[f"{prefix}a.weight"] = torch.ones(4, 64).to(FP8)
    found = stored_tensors(MemoryFile(tensors))
    assert list(found) == [f"{prefix}a.weight", f"{prefix}a.bias", "text_encoder.b.weight"]
    weight = found[f"{prefix}a.weight"]
    assert torch.equal(weight.read((slice(0, 4), slice(0, 64))), torch.full((4, 64), 3.0))
    assert weight.full_precision == (marker_length == 2)
    assert not found["text_encoder.b.weight"].full_precision


def test_two_names_for_one_scale_are_refused() -> None:
    message = refusal(FP8_LAYER | {"blocks.0.a.scale_weight": torch.ones(())})
    assert message == "blocks.0.a.scale_weight: means the same as blocks.0.a.weight_scale"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_integers_without_metadata_are_refused(dtype: torch.dtype) -> None:
    message = refusal(layer("blocks.0.a", dtype, weight_scale=torch.ones(4, 1)))
    assert message.startswith(
        "blocks.0.a.weight: is quantised, but neither the header nor a comfy_quant tensor says how"
    )


def test_nvfp4_without_metadata_is_named() -> None:
    tensors = layer("a", torch.uint8, weight_scale=torch.ones(4, 8).to(FP8), weight_scale_2=torch.ones(()))
    assert refusal(tensors).startswith("a.weight: is quantised to NVFP4 as ModelOpt writes it, without a mark")


def test_scales_of_a_weight_that_is_not_quantised_are_refused() -> None:
    message = refusal(layer("a", torch.bfloat16, weight_scale=torch.ones(())))
    assert message == "a.weight_scale: is for a quantised weight, and a.weight is not"
    assert formats(layer("a", torch.bfloat16, input_scale=torch.ones(()))) == {"a.weight": "BF16"}


@pytest.mark.parametrize("kind", ["weight_scale_inv", "weight_zero_point"])
def test_scales_of_other_kinds_are_refused(kind: str) -> None:
    assert refusal(layer("a", FP8, **{kind: torch.ones(())})).startswith("a.weight")


# ---- forms of other programs that are not read


@pytest.mark.parametrize(
    ("names", "form"),
    [
        (("qweight", "wscales", "smooth_factor", "proj_down", "proj_up"), "nunchaku (SVDQuant)"),
        (("qweight", "qzeros", "scales", "g_idx"), "GPTQ"),
        (("qweight", "qzeros", "scales"), "AWQ"),
        (("weight_packed", "weight_scale", "weight_shape"), "compressed-tensors with packed weights"),
        (("weight", "scale"), "SDNQ"),
        (("weight", "scale", "zero_point", "svd_up", "svd_down"), "SDNQ"),
        (("weight", "scales", "biases"), "MLX"),
        (("_weight_qdata", "_weight_scale"), "torchao"),
        (("weight:qdata", "weight:scale"), "torchao"),
        (("weight._data", "weight._scale", "weight._shift"), "optimum-quanto in 2 or 4 bits"),
    ],
)
def test_other_programs_forms_are_refused_by_name(names: tuple[str, ...], form: str) -> None:
    tensors = {f"blocks.0.a.{name}": zeros(4, 64, dtype=torch.int8) for name in names}
    message = refusal(tensors | {"blocks.0.prenorm.scale": zeros(64)})
    assert f": belongs to weights quantised by {form}, which are not read; use another download" in message
    assert message.endswith("expected bfloat16, fp8, int8, mxfp8, nvfp4, GGUF, or bitsandbytes' 4 or 8 bits")


@pytest.mark.parametrize(
    ("config", "dtype", "message"),
    [
        (
            {"quant_method": "torchao"},
            FP8,
            "was quantised in a way that is not read, as the config.json beside it says; ",
        ),
        ({"quant_method": ["x" * 99]}, FP8, "was quantised in a way that is not read"),
        ({"bits": 4}, FP8, "was quantised in a way that is not read"),
        (
            {"quant_method": "compressed-tensors", "transform_config": {"hadamard": 1}},
            FP8,
            "transform_config: has weights that were rotated before they were quantised, as the config.json",
        ),
        ({"quant_method": "modelopt"}, torch.uint8, "a.weight: is quantised by modelopt, as the config.json beside it"),
        ({"quant_method": "compressed-tensors", "transform_config": {}}, FP8, None),
        ({"quant_method": "fp8"}, FP8, None),
        ("damaged", FP8, None),
    ],
)
def test_what_the_config_beside_weights_says_of_them(
    tmp_path: Path, config: object, dtype: torch.dtype, message: str | None
) -> None:
    file = MemoryFile(layer("a", dtype, weight_scale=torch.ones(4, 1)))
    file.path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    if message is None:
        assert stored_tensors(file)["a.weight"].format == "float8_e4m3fn"
        return
    with pytest.raises(CheckpointError) as error:
        stored_tensors(file)
    assert error.value.message.startswith(f"{file.path}: {message}")
    assert len(error.value.message) < 400


# ---- companions without their weight


@pytest.mark.parametrize("kind", ["weight_scale", "scale_weight", "input_scale", "weight_scale_2", "pre_quant_scale"])
def test_scales_without_a_weight_are_refused(kind: str) -> None:
    message = refusal(FP8_LAYER | {f"blocks.1.a.{kind}": torch.ones(())})
    assert message == f"blocks.1.a.{kind}: belongs to blocks.1.a.weight, which is missing"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_dead_matrices_take_their_companions_with_them(prefix: str) -> None:
    dead = layer(f"{prefix}last.down", FP8, weight_scale=torch.ones(()), comfy_quant=blob(FORMAT_FP8))
    assert list(formats(FP8_LAYER | dead)) == ["blocks.0.a.weight", f"{prefix}last.down.weight"]
    del dead[f"{prefix}last.down.weight"]
    assert list(formats(FP8_LAYER | dead)) == ["blocks.0.a.weight"]
    assert "is missing" in refusal(FP8_LAYER | {f"{prefix}blast.down.weight_scale": torch.ones(())})
