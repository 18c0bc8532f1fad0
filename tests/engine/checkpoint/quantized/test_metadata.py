"""Which tensors a file means: metadata in the header and in tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.checkpoint.layouts.encodings import stored_tensors
from engine.checkpoint.quantized.metadata import read_quantization_metadata
from tests.engine.checkpoint.files.memory_file import MemoryFile
from tests.engine.checkpoint.quantized.formats import (
    FORMAT_FP8,
    FORMAT_INT8,
    FP8,
    FP8_LAYER,
    INT8_LAYER,
    blob,
    formats,
    header,
    layer,
    refusal,
    zeros,
)

# ---- where metadata stands


def test_metadata_in_the_header() -> None:
    assert formats(INT8_LAYER, header({"blocks.0.a": FORMAT_INT8})) == {"blocks.0.a.weight": "int8_tensorwise"}


@pytest.mark.parametrize("padding", [0, 1, 57])
def test_metadata_as_a_tensor(padding: int) -> None:
    tensors = INT8_LAYER | {"blocks.0.a.comfy_quant": blob(FORMAT_INT8, padding)}
    assert formats(tensors) == {"blocks.0.a.weight": "int8_tensorwise"}


def test_metadata_in_both_places_adds_up() -> None:
    tensors = FP8_LAYER | {"blocks.0.a.comfy_quant": blob(FORMAT_FP8)}
    metadata = header({"blocks.0.a": FORMAT_FP8 | {"full_precision_matrix_mult": True}})
    assert stored_tensors(MemoryFile(tensors, metadata))["blocks.0.a.weight"].full_precision
    assert not stored_tensors(MemoryFile(tensors))["blocks.0.a.weight"].full_precision


@pytest.mark.parametrize(
    ("option", "ours", "theirs"),
    [("format", "int8_tensorwise", "convrot_w4a4"), ("convrot", True, False), ("convrot_groupsize", 256, 64)],
)
def test_metadata_that_disagrees_is_refused(option: str, ours: object, theirs: object) -> None:
    tensors = INT8_LAYER | {"blocks.0.a.comfy_quant": blob(FORMAT_INT8 | {option: theirs})}
    message = refusal(tensors, header({"blocks.0.a": FORMAT_INT8 | {option: ours}}))
    assert message == (
        f"blocks.0.a: the header's metadata and the comfy_quant tensor disagree on {option}, "
        f"expected {json.dumps(ours)}, found {json.dumps(theirs)}"
    )


def test_options_one_level_down() -> None:
    metadata = FORMAT_INT8 | {"params": {"convrot": True, "convrot_groupsize": 16}}
    weight = torch.randint(-128, 128, (4, 64), dtype=torch.int8)
    tensors = INT8_LAYER | {"blocks.0.a.weight": weight}
    read = {
        nested: stored_tensors(MemoryFile(tensors, header({"blocks.0.a": m})))["blocks.0.a.weight"].read(
            (slice(0, 4), slice(0, 64))
        )
        for nested, m in ((True, metadata), (False, FORMAT_INT8 | metadata["params"]))  # type: ignore[arg-type]
    }
    assert torch.equal(read[True], read[False])
    assert not torch.equal(read[True], weight.float())


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_metadata_whose_prefix_is_not_the_tensors(prefix: str) -> None:
    names = ["blocks.0.a", "txtfusion.layerwise_blocks.0.a"]
    tensors, prefixed = {}, {}
    for name in names:
        tensors |= layer(name, torch.int8, weight_scale=torch.ones(()))
        prefixed |= layer(prefix + name, torch.int8, weight_scale=torch.ones(()))
    assert set(formats(tensors, header({prefix + name: FORMAT_INT8 for name in names})).values()) == {"int8_tensorwise"}
    assert set(formats(prefixed, header(dict.fromkeys(names, FORMAT_INT8))).values()) == {"int8_tensorwise"}


def test_a_prefix_that_could_be_either_of_two_is_no_prefix() -> None:
    tensors = layer("model.a", torch.int8, weight_scale=torch.ones(()))
    tensors |= layer("visual.a", torch.int8, weight_scale=torch.ones(()))
    assert "is quantised, but neither the header nor a comfy_quant tensor" in refusal(
        tensors, header({"a": FORMAT_INT8})
    )


def test_metadata_of_layers_that_are_not_there_is_left_out() -> None:
    metadata = header({"blocks.0.a": FORMAT_INT8, "last.down": FORMAT_INT8, "visual.0": FORMAT_FP8})
    assert formats(INT8_LAYER, metadata) == {"blocks.0.a.weight": "int8_tensorwise"}


def test_one_format_for_the_whole_file() -> None:
    scale = zeros(128, 4, dtype=torch.uint8)
    tensors = layer("a", FP8, weight_scale=scale) | {"b.weight": zeros(4, 64), "a.bias": zeros(4)}
    assert formats(tensors, {"quant_format": "mxfp8"}) == {"a.weight": "mxfp8", "a.bias": "BF16", "b.weight": "BF16"}
    # a name that is not known says nothing
    assert formats(FP8_LAYER, {"quant_format": "fp8_scaled"}) == {"blocks.0.a.weight": "float8_e4m3fn"}


def test_a_format_that_is_always_rotated_is_so_in_the_whole_file() -> None:
    codes = torch.randint(-128, 128, (4, 128), dtype=torch.int8)
    tensors = {"a.weight": codes, "a.weight_scale": torch.rand(4, 1)}
    bounds = slice(0, 4), slice(0, 256)
    of_file, of_layer = (
        stored_tensors(MemoryFile(tensors, said))["a.weight"].read(bounds)
        for said in ({"quant_format": "convrot_w4a4"}, header({"a": {"format": "convrot_w4a4"}}))
    )
    assert torch.equal(of_file, of_layer)


# ---- metadata that is damaged


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "_quantization_metadata: is not valid json"),
        ("{", "_quantization_metadata: is not valid json"),
        ("[" * 100_000, "_quantization_metadata: is not valid json"),
        ("[]", "_quantization_metadata: does not hold a json object, found list"),
        ("{}", "_quantization_metadata.layers: has a value that does not fit"),
        ('{"layers": []}', "_quantization_metadata.layers: has a value that does not fit"),
        ('{"layers": {"blocks.0.a": "nvfp4"}}', "blocks.0.a: has metadata that is not a json object"),
        (
            '{"layers": {"blocks.0.a": {"params": 3}}}',
            "blocks.0.a: has metadata that is not a json object",
        ),
        (
            '{"layers": {"blocks.0.a": {}}}',
            "blocks.0.a: format: marks weights as quantised without saying in which format; use another download",
        ),
        (
            '{"layers": {"blocks.0.a": {"format": ["nvfp4"]}}}',
            "blocks.0.a: format: marks weights as quantised in a format that cannot",
        ),
        (
            '{"layers": {"blocks.0.a": {"format": "int5"}}}',
            "blocks.0.a: format: marks weights as quantised in a format that cannot",
        ),
        ('{"layers": {"blocks.0.a": {"format": "int4_tensorwise", "awq": true}}}', "blocks.0.a: awq: has a value that"),
        (f'{{"layers": {{"{"long" * 250}": 0}}}}', "longlong"),
        (f'{{"layers": {{"{"long" * 100_000}": 0}}}}', "_quantization_metadata: is not valid json: keys of at most"),
        ('{"layers": {}, "layers": {}}', "_quantization_metadata: is not valid json: the key 'layers' is there twice"),
        ('{"layers": {"\\u001b[31m\\n": 0}}', r"\x1b[31m\n: has metadata that is not a json object"),
    ],
)
def test_damaged_metadata_in_the_header_is_refused(text: str, message: str) -> None:
    assert refusal(INT8_LAYER, {"_quantization_metadata": text}).startswith(message)


@pytest.mark.parametrize(
    ("option", "value", "other"),
    [
        ("bits", 4, 8),
        ("packing", "signed_low_high", "signed_high_low"),
        ("stabilizer_rank", 0, 16),
        ("padded_in_features", 256, 512),
    ],
)
def test_int4_that_is_packed_otherwise_is_refused(option: str, value: object, other: object) -> None:
    said = {"format": "int4_tensorwise", "in_features": 256}
    for each, is_read in ((value, True), (other, False)):
        text = json.dumps({"layers": {"blocks.0.a": said | {option: each}}})
        if is_read:
            read_quantization_metadata(MemoryFile(INT8_LAYER, {"_quantization_metadata": text}), {"blocks.0.a"})
        else:
            message = refusal(INT8_LAYER, {"_quantization_metadata": text})
            assert message.startswith(f"blocks.0.a: {option}: has a value that does not fit, expected")


@pytest.mark.parametrize("group", [0, -4, 1, 2, 8, 32, 100, 4**7, 10**30, 16.0, "16", True])
def test_groups_that_cannot_be_rotated_are_refused(group: object) -> None:
    metadata = FORMAT_INT8 | {"convrot": True, "convrot_groupsize": group}
    assert refusal(INT8_LAYER, header({"blocks.0.a": metadata})).startswith(
        "blocks.0.a: convrot_groupsize: has a value"
    )


@pytest.mark.parametrize("option", ["convrot", "full_precision_matrix_mult"])
def test_options_that_are_not_true_or_false_are_refused(option: str) -> None:
    message = refusal(INT8_LAYER, header({"blocks.0.a": FORMAT_INT8 | {option: "yes"}}))
    assert message.startswith(f"blocks.0.a: {option}: has a value that does not fit, expected true or false")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (blob(b""), "is not quantization metadata"),
        (blob(b"", padding=8), "is not valid json"),
        (blob(b"\xff\xfe{}"), "is not UTF-8"),
        (blob(b"[]"), "does not hold a json object"),
        (
            torch.ones(20),
            r"is not quantization metadata, expected 1 to 65536 bytes (U8) in one dimension, found F32 (20,)",
        ),
        (zeros(2, 20, dtype=torch.uint8), "is not quantization metadata"),
        (torch.empty(1 << 40, dtype=torch.uint8, device="meta"), "is not quantization metadata"),
    ],
)
def test_damaged_metadata_as_tensors_is_refused(tensor: torch.Tensor, message: str) -> None:
    message = f"blocks.0.a.comfy_quant: {message}"
    assert refusal(INT8_LAYER | {"blocks.0.a.comfy_quant": tensor}).startswith(message)


# ---- a real file


def fp8_scaled_file() -> MemoryFile:
    """Names, shapes and metadata of Comfy-Org's krea2_turbo_fp8_scaled; no data but the scales."""
    main: dict[str, tuple[int, int]] = {f"attn.{part}": (6144, 6144) for part in ("wq", "gate", "wo")}
    main |= {"attn.wk": (1536, 6144), "attn.wv": (1536, 6144), "mlp.down": (6144, 16384)}
    main |= {"mlp.gate": (16384, 6144), "mlp.up": (16384, 6144)}
    fusion: dict[str, tuple[int, int]] = {f"attn.{part}": (2560, 2560) for part in ("wq", "wk", "wv", "gate", "wo")}
    fusion |= {"mlp.gate": (6912, 2560), "mlp.up": (6912, 2560), "mlp.down": (2560, 6912)}
    norms = ("attn.qknorm.qnorm.scale", "attn.qknorm.knorm.scale", "prenorm.scale", "postnorm.scale")
    blocks = {f"blocks.{n}": (main, (*norms, "mod.lin")) for n in range(28)}
    for kind in ("layerwise", "refiner"):
        blocks |= {f"txtfusion.{kind}_blocks.{n}": (fusion, norms) for n in range(2)}
    tensors, metadata = {}, {}
    for block, (matrices, vectors) in blocks.items():
        for name, shape in matrices.items():
            matrix = f"{block}.{name}"
            tensors[f"{matrix}.weight"] = torch.empty(shape, dtype=FP8, device="meta")
            tensors[f"{matrix}.weight_scale"] = torch.ones(())
            metadata[matrix] = dict[str, Any](FORMAT_FP8)
            if name in ("attn.gate", "attn.wo"):
                metadata[matrix]["full_precision_matrix_mult"] = True
        tensors |= {f"{block}.{name}": torch.empty(128, dtype=torch.bfloat16, device="meta") for name in vectors}
    outside = ["first", "tmlp.0", "tmlp.2", "tproj.1", "txtmlp.1", "txtmlp.3", "last.linear"]
    others = [f"{name}.{kind}" for name in outside for kind in ("weight", "bias")]
    others += ["txtmlp.0.scale", "txtfusion.projector.weight", "last.norm.scale", "last.modulation.lin"]
    tensors |= {name: torch.empty(64, 64, dtype=torch.bfloat16, device="meta") for name in others}
    return MemoryFile(tensors, header(metadata))


def test_the_real_fp8_scaled_file_is_recognised() -> None:
    file = fp8_scaled_file()
    assert len(file.headers) == 686
    found = stored_tensors(file)
    assert len(found) == 430
    fp8 = {name: tensor for name, tensor in found.items() if tensor.weight_format == "fp8"}
    assert len(fp8) == 256
    assert {tensor.format for name, tensor in found.items() if name not in fp8} == {"BF16"}
    full_precision = {name for name, tensor in found.items() if tensor.full_precision}
    assert full_precision == {name for name in fp8 if name.endswith(("attn.gate.weight", "attn.wo.weight"))}
    assert len(full_precision) == 64
    down = found["blocks.27.mlp.down.weight"]
    assert down.shape == (6144, 16384)
    assert down.size((slice(0, 6144), slice(0, 4096))) == 6144 * 4096 + 4


# ---- without torch


def test_files_are_recognised_without_torch(tmp_path: Path) -> None:
    """By `krea2 info` and the front-end, which would take seconds and memory for it."""
    save_file(FP8_LAYER | {"blocks.0.a.comfy_quant": blob(FORMAT_FP8)}, tmp_path / "model.safetensors")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from engine.checkpoint.layouts.encodings import stored_tensors\n"
        "from engine.checkpoint.files.open import open_tensor_file\n"
        "found = stored_tensors(open_tensor_file(Path(sys.argv[1])))\n"
        "print({name: tensor.format for name, tensor in found.items()}, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.safetensors")],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert done.stdout.strip() == "{'blocks.0.a.weight': 'float8_e4m3fn'} False"
