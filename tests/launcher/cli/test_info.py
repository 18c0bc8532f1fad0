"""`krea2 info` of the demo, and of a model as ComfyUI's users have it, at its real size: only headers are read."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.engines.real_size import KREA2
from engine.checkpoint.layouts.names import NATIVE_TRANSFORMER_SIGNATURE as NATIVE
from engine.checkpoint.layouts.names import linear_modules, transformer_to_native, vae_to_wan
from engine.checkpoint.layouts.tensors import (
    text_encoder_sources,
    transformer_sources,
    vae_encoder_sources,
    vae_sources,
)
from engine.config.demo_checkpoints import DEMO_CHECKPOINT, DEMO_LORAS
from engine.config.engine_config import EngineConfig
from engine.errors import CheckpointError
from launcher.cli.described.components import describe_file, is_lone_file
from launcher.cli.info import describe_checkpoint
from tests.engine.checkpoint.layouts.layouts import (
    language_model,
    load_text_encoder,
    load_transformer,
    load_vae,
    native_transformer,
    prefixed,
    save,
    wan_vae,
)
from tests.launcher.conftest import Krea2

BYTES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
PREFIX = "model.diffusion_model."


def write_empty(file: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> str:
    """A safetensors file whose data is a hole: it takes no room on the disk, and nobody reads it."""
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + end)
    return str(file)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def comfy(tmp_path: Path) -> dict[str, str]:
    matrices = {f"{layer}.weight" for layer, _ in linear_modules(KREA2.transformer) if "_blocks." in layer}
    transformer: dict[str, tuple[str, tuple[int, ...]]] = {}
    layers = {}
    for source in transformer_sources(KREA2.transformer):
        name = f"{PREFIX}{transformer_to_native(source.name)}"
        shape = (math.prod(source.shape),) if name.endswith(".mod.lin") else source.shape
        transformer[name] = ("F8_E4M3" if source.name in matrices else "BF16", shape)
        if source.name in matrices:
            layer = name.removesuffix(".weight")
            transformer[f"{layer}.weight_scale"] = ("F32", ())
            layers[layer] = {"format": "float8_e4m3fn"}
    assert len(transformer) == 686
    quantization = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    text_encoder = {f"model.{source.name}": ("BF16", source.shape) for source in text_encoder_sources(KREA2)}
    both = *vae_sources(KREA2.vae), *vae_encoder_sources(KREA2.vae)
    vae = {vae_to_wan(source.name) or "": ("BF16", source.shape) for source in both}
    return {
        "transformer": write_empty(tmp_path / "krea2_raw_fp8_scaled.safetensors", transformer, quantization),
        "text_encoder": write_empty(tmp_path / "qwen3vl_4b_bf16.safetensors", text_encoder, {}),
        "vae": write_empty(tmp_path / "qwen_image_vae.safetensors", vae, {}),
        "tokenizer": str(DEMO_CHECKPOINT / "tokenizer" / "tokenizer.json"),
    }


def test_the_files_of_comfyui_are_a_whole_model(comfy: dict[str, str]) -> None:
    text = describe_checkpoint(EngineConfig(**comfy, dtype="bfloat16"))  # type: ignore[arg-type]
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == f"Krea 2 Raw (its name says so): {comfy['transformer']}"
    assert "transformer   28 blocks, width 6144, 48 heads, 12 kv heads, SwiGLU 16384" in lines
    assert any(line.startswith("text encoder  36 layers, width 2560, 32 heads, 8 kv heads") for line in lines)
    assert f"transformer   {comfy['transformer']}" in lines
    assert f"native names after {PREFIX}: 256 float8_e4m3fn, 174 BF16" in lines
    assert "transformers names after model.: 386 BF16" in lines
    assert any(line.startswith("Wan names: ") for line in lines)
    assert f"tokenizer     {comfy['tokenizer']}" in lines
    (row,) = (line.split() for line in lines if line.startswith("transformer ") and line.endswith(" GB"))
    assert row[1] == "12,820,073,036"
    assert 13.0 < float(row[2]) < 13.5, "about half of what bfloat16 takes: the file's fp8 stays fp8"


def test_a_parts_file_as_model_says_what_else_it_needs(comfy: dict[str, str]) -> None:
    with pytest.raises(Exception, match="missing: text_encoder, vae, tokenizer; give each as a file or a folder"):
        describe_checkpoint(EngineConfig(model=comfy["transformer"]))


def test_a_file_alone_is_told_by_what_is_in_it(comfy: dict[str, str], tmp_path: Path) -> None:
    for part, (what, names, stored) in {
        "transformer": ("transformer", f"native names after {PREFIX}", "256 float8_e4m3fn, 174 BF16"),
        "text_encoder": ("text encoder", "transformers names after model.", "386 BF16"),
        "vae": ("vae", "Wan names", ""),
    }.items():
        assert is_lone_file(EngineConfig(model=comfy[part]))
        first, second, _ = describe_file(Path(comfy[part])).splitlines()
        assert first == f"Krea 2's {what}: {comfy[part]}"
        assert second.startswith(f"  {names}: {stored}")
    assert not is_lone_file(EngineConfig(model=comfy["transformer"], vae=comfy["vae"]))
    assert not is_lone_file(EngineConfig(model="demo"))
    other = Path(write_empty(tmp_path / "other.safetensors", {"img_in.weight": ("BF16", (3072, 64))}, {}))
    with pytest.raises(CheckpointError, match=r"other\.safetensors: is no part of Krea 2, expected"):
        describe_file(other)
    for tensors, said in (
        ({"transformer_blocks.0.img_mod.1.weight": ("BF16", (8, 8))}, "is no part of Krea 2: it is Qwen-Image"),
        ({"a.qweight": ("F32", (8, 8)), "a.wscales": ("BF16", (8,))}, "quantised by nunchaku"),
        ({"model.embed_tokens.weight": ("BF16", (8, 8))}, "is not Krea 2's text encoder, Qwen3-VL-4B-Instruct"),
        ({NATIVE: ("F32", (1, 2)), "transformer_blocks.0.attn.to_q.weight": ("F32", (8, 8))}, "mixes two namings"),
        ({NATIVE: ("F32", (1, 2)), "blocks.0.attn.wq.lora_A": ("F32", (8, 8))}, "holds a LoRA beside the weights"),
    ):
        with pytest.raises(CheckpointError, match=said):
            describe_file(Path(write_empty(tmp_path / "named.safetensors", tensors, {})))
    other.write_bytes(other.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"other\.safetensors: is not a whole safetensors file"):
        describe_file(other)


def test_of_one_of_several_shards_the_size_of_all_is_told(tmp_path: Path) -> None:
    tensors = load_vae(DEMO_CHECKPOINT)
    for number in (0, 1):
        shard = {name: tensors[name] for index, name in enumerate(tensors) if index % 2 == number}
        save(shard, tmp_path / f"model-0000{number + 1}-of-00002.safetensors")
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    for file in tmp_path.iterdir():
        assert f" parameters in {size / 1e6:.2f} MB; more is said" in describe_file(file)


def test_a_file_of_all_parts_is_told_part_by_part(tmp_path: Path) -> None:
    tensors = {
        **native_transformer(load_transformer(DEMO_CHECKPOINT)),
        **prefixed("text_encoders.qwen3vl_4b.transformer.model.", language_model(load_text_encoder(DEMO_CHECKPOINT))),
        **prefixed("vae.", wan_vae(load_vae(DEMO_CHECKPOINT), 1)),
        "epoch": torch.zeros(()),
    }
    file = save(tensors, tmp_path / "everything.safetensors")
    assert is_lone_file(EngineConfig(model=str(file)))
    lines = describe_file(file).splitlines()
    assert lines.pop().endswith(" MB together; more is said if the other parts are given")
    assert [line for line in lines if not line.startswith(" ")] == [
        f"Krea 2's {part}: {file}" for part in ("transformer", "text encoder", "vae")
    ]
    assert lines[1].startswith("  native names, without 1 tensor of its training: ")
    assert [line.strip().partition(":")[0] for line in lines if " names" in line][1:] == [
        "transformers names after text_encoders.qwen3vl_4b.transformer.model.", "Wan names after vae."
    ]  # fmt: skip


def test_info_shows_parameters_and_bytes_of_each_rank(krea2: Krea2) -> None:
    code, stdout, stderr = krea2("info", "demo", "--tp", "2")
    assert (code, stderr) == (0, "")
    assert "Krea 2 Turbo" in stdout
    assert "6 blocks, width 128, 8 heads, 4 kv heads" in stdout
    assert "made for      sides from 96 to 256 pixels\n" in stdout
    total = next(line for line in stdout.splitlines() if line.strip().startswith("total"))
    assert len(re.findall(r"\d+\.\d+ MB", total)) == 2


def test_info_counts_the_encoder_with_and_without(krea2: Krea2) -> None:
    totals = []
    for options in ((), ("--no-image-input",)):
        code, stdout, stderr = krea2("info", "demo", *options)
        assert (code, stderr) == (0, "")
        rows = {line[:16].strip(): line[16:].split() for line in stdout.splitlines() if line.endswith(" MB")}
        assert ("vae encoder" in rows) is (not options)
        totals.append(int(rows["total"][0].replace(",", "")))
    assert totals[0] - totals[1] == 383_968


def test_info_shows_whole_weights_on_ranks_that_share_tokens(krea2: Krea2) -> None:
    code, stdout, stderr = krea2("info", "demo", "--sp", "4")
    assert (code, stderr) == (0, "")
    assert "sp            possible: 1, 2, 4, with tp 1 and no cfg-parallel" in stdout
    row = next(line for line in stdout.splitlines() if line.strip().startswith("transformer") and "MB" in line)
    sizes = re.findall(r"\d+\.\d+ MB", row)
    assert len(sizes) == 4
    assert len(set(sizes)) == 1


def test_info_shows_hashes_as_sha256sum_does(krea2: Krea2, tmp_path: Path) -> None:
    folder, name = tmp_path / "mine", "diffusion_pytorch_model"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    whole = folder / "transformer" / f"{name}.safetensors"
    tensors = load_file(whole)
    weight_map = {tensor: f"{name}-{index % 2}.safetensors" for index, tensor in enumerate(tensors)}
    for shard in sorted(set(weight_map.values())):
        save_file(
            {each: tensors[each] for each in tensors if weight_map[each] == shard}, folder / "transformer" / shard
        )
    whole.with_suffix(".safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole.unlink()
    lora = DEMO_LORAS["demo-outlined"]
    code, stdout, _ = krea2("info", str(folder), "--hashes", "--lora", str(lora))
    assert code == 0
    shards, one = (
        subprocess.run(
            command, shell=True, cwd=folder / "transformer", capture_output=True, text=True, check=True
        ).stdout
        for command in ("sha256sum *.safetensors", "sha256sum *.safetensors | sha256sum")
    )
    _, _, shown = stdout.partition("SHA-256, of which sites and pictures show the first 10 digits\n")
    assert [line.split()[:3] for line in shown.splitlines()] == [
        ["transformer", *shards.splitlines()[0].split()],
        ["transformer", *shards.splitlines()[1].split()],
        [one.split()[0], "all", "of"],
        ["text", "encoder", sha256(folder / "text_encoder" / "model.safetensors")],
        ["vae", sha256(folder / "vae" / f"{name}.safetensors"), f"{name}.safetensors"],
        ["lora", sha256(lora), lora.name],
    ]
    code, stdout, _ = krea2("info", str(folder / "vae" / f"{name}.safetensors"), "--hashes")
    assert (code, sha256(folder / "vae" / f"{name}.safetensors") in stdout) == (0, True)
    assert "SHA-256" not in krea2("info", str(folder))[1]


def test_info_of_nothing_is_a_mistake(krea2: Krea2, tmp_path: Path) -> None:
    code, stdout, stderr = krea2("info", str(tmp_path))
    assert (code, stdout) == (2, "")
    assert stderr.startswith(
        f"error: {tmp_path}: is no checkpoint, for there is no model_index.json in it; a model is "
    )


def test_info_of_a_folder_that_was_split_shows_the_ranks_that_it_is_for(krea2: Krea2, tmp_path: Path) -> None:
    folder = tmp_path / "split"
    assert krea2("convert", str(folder), "--layout", "sharded", "--tp", "2")[0] == 0
    code, stdout, stderr = krea2("info", str(folder))
    assert (code, stderr) == (0, "")
    assert "split for tp 2" in stdout
    assert "rank 1" in stdout
    code, _, stderr = krea2("info", str(folder), "--tp", "4")
    assert (code, stderr) == (2, f"error: --tp must be 2, for which {folder} has been split, got 4\n")


def test_info_of_a_lora_alone_says_how_it_is_given(krea2: Krea2) -> None:
    file = str(DEMO_LORAS["demo-outlined"])
    code, stdout, stderr = krea2("info", file)
    assert (code, stdout) == (2, "")
    assert stderr == f"error: {file}: is a LoRA; give it beside a model: krea2 info --lora {file}\n"
    assert krea2("info", "--lora", file)[0] == 0
    code, _, stderr = krea2("info", "demo", "--transformer", file)
    assert stderr == f"error: {file}: is a LoRA, which goes with a model: give it as lora, not as model\n"


def test_info_of_a_damaged_tokenizer_is_the_error_that_serving_would_give(krea2: Krea2, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    code, stdout, stderr = krea2("info", str(folder))
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {folder}/tokenizer/tokenizer.json: is not a tokenizer that can be read")
