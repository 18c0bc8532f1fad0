"""Which of a folder's files are taken, in all the spellings of shards and precisions."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint.files.file_sets import STEMS, file_sets, files_to_take, is_shard, variants_beside
from engine.checkpoint.files.open import open_component, open_tensor_file
from engine.checkpoint.files.safetensors_file import ShardedFile
from engine.checkpoint.files.stored import whole
from engine.errors import CheckpointError

STEM = "diffusion_pytorch_model"
FULL = ("diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors")
# (index, shards): as diffusers and transformers write them now, and did
SPELLINGS = {
    "now": (f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16-0000{{}}-of-00002.safetensors"),
    "with the variant before": (f"{STEM}.fp16.safetensors.index.json", f"{STEM}.fp16-0000{{}}-of-00002.safetensors"),
    "formerly": (f"{STEM}.safetensors.index.fp16.json", f"{STEM}-0000{{}}-of-00002.fp16.safetensors"),
    "without an index": (None, f"{STEM}.fp16-0000{{}}-of-00002.safetensors"),
}


def write_shards(folder: Path, index: str | None, shards: str, value: float = 1.0) -> list[str]:
    names = [shards.format(number) for number in (1, 2)]
    for name, tensor in zip(names, ("a", "b"), strict=True):
        save_file({tensor: torch.full((2,), value)}, folder / name)
    if index is not None:
        (folder / index).write_text(json.dumps({"weight_map": dict(zip(("a", "b"), names, strict=True))}))
    return names


def value_in(path: Path, component: str = "transformer") -> float:
    file = open_component(path, component, STEMS[component])
    assert set(file.headers) == {"a", "b"}
    value = float(file.read("b", (slice(0, 1),)))
    file.close()
    return value


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_variant_is_found_without_naming_it_where_there_is_nothing_else(tmp_path: Path, spelling: str) -> None:
    index, shards = SPELLINGS[spelling]
    names = write_shards(tmp_path, index, shards, 16.0)
    assert value_in(tmp_path) == 16.0
    assert all(value_in(tmp_path / name) == 16.0 for name in names), "by any of its shards, too"
    assert files_to_take([*names, *([index] if index else []), "config.json"], "transformer") == {
        *names, *([index] if index else [])
    }  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_full_precision_is_taken_before_a_variant_where_it_is_whole(tmp_path: Path, spelling: str) -> None:
    write_shards(tmp_path, *SPELLINGS[spelling], 16.0)
    write_shards(tmp_path, f"{STEM}.safetensors.index.json", f"{STEM}-0000{{}}-of-00002.safetensors", 32.0)
    assert value_in(tmp_path) == 32.0
    names = [file.name for file in tmp_path.iterdir()]
    assert files_to_take(names, "transformer") == {f"{STEM}.safetensors.index.json", *FULL}
    assert variants_beside(FULL[0], names) == [file_sets(names, STEM)[1].entry]
    (tmp_path / FULL[1]).unlink()  # as after a download of the variant alone, with every json file
    assert value_in(tmp_path) == 16.0
    (tmp_path / FULL[0]).unlink()
    assert value_in(tmp_path) == 16.0


def test_the_best_precision_is_taken() -> None:
    names = [f"model.{variant}.safetensors" for variant in ("non_ema", "fp16", "bf16", "fp8", "fp32")]
    order = ["fp32", "bf16", "fp16", "fp8", "non_ema"]
    assert [each.variant for each in file_sets(names, "model")] == order
    assert files_to_take(names, "text_encoder") == {"model.fp32.safetensors"}
    assert files_to_take([*names, "model.safetensors"], "text_encoder") == {"model.safetensors"}
    assert variants_beside("model.safetensors", ["model.safetensors", "model.fp16.safetensors"]) == [
        "model.fp16.safetensors"
    ]
    assert variants_beside("krea2.safetensors", ["krea2.safetensors", "krea2.fp16.safetensors"]) == []


def test_an_index_alone_says_what_its_shards_are_called(tmp_path: Path) -> None:
    names = write_shards(tmp_path, f"{STEM}.safetensors.index.json", "part{}.safetensors")
    assert value_in(tmp_path) == 1.0
    assert files_to_take([*names, f"{STEM}.safetensors.index.json"], "transformer") == {
        *names, f"{STEM}.safetensors.index.json"
    }  # fmt: skip
    assert files_to_take(["other.safetensors", "config.json"], "vae") == {"other.safetensors"}


def test_shards_of_any_name_are_one_file_and_what_lacks_is_named(tmp_path: Path) -> None:
    names = write_shards(tmp_path, None, "krea2_v1.5-0000{}-of-00002.safetensors")
    assert value_in(tmp_path) == 1.0
    file = open_tensor_file(tmp_path / names[1])
    assert isinstance(file, ShardedFile)
    assert file.path.name == "krea2_v1.5-*-of-00002.safetensors"
    (tmp_path / names[0]).unlink()
    with pytest.raises(CheckpointError) as error:
        open_tensor_file(tmp_path / names[1])
    assert error.value.message == (
        f"{tmp_path / names[1]}: is one of several shards, and others are missing, expected {names[0]}"
    )
    save_file({"a": torch.ones(1)}, tmp_path / "another.safetensors")
    with pytest.raises(CheckpointError, match=r"holds several files of tensors: name one of them, found another"):
        open_component(tmp_path, "transformer", STEM)


def test_a_trainers_pieces_are_refused_by_name(tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
        (tmp_path / name).touch()
    with pytest.raises(
        CheckpointError, match=r"is a checkpoint of torch\.distributed in pieces, .* merge-weights does"
    ):
        open_component(tmp_path, "transformer", STEM)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(open_component(tmp_path, "transformer", STEM).headers) == {"a"}


def test_what_is_no_shard_is_a_file_of_its_own(tmp_path: Path) -> None:
    for name in ("a-00003-of-00002", "a-00000-of-00002", "a-00001-of-00001", "lora-000010", "a-of-b"):
        assert not is_shard(f"{name}.safetensors")
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors")
        assert set(open_tensor_file(tmp_path / f"{name}.safetensors").headers) == {"a"}
    assert is_shard("a-00002-of-00002.safetensors")
    (huge,) = file_sets(["model-00001-of-999999.safetensors"], "model")
    assert not huge.is_whole
    assert len(huge.absent) < 20


def test_names_of_any_kind_are_sorted_without_an_error() -> None:
    rng = random.Random(0)
    pieces = ["model", STEM, ".fp16", ".", "-", "00001", "-of-", "00002", ".safetensors", ".index", ".json", "é", "\n"]
    for _ in range(2000):
        names = ["".join(rng.choices(pieces, k=rng.randrange(8))) for _ in range(rng.randrange(5))]
        for each in (*file_sets(names), *file_sets(names, "model")):
            assert set(each.files) <= set(names)
        assert files_to_take(names, "text_encoder") <= set(names)


@pytest.mark.parametrize("component", STEMS)
def test_a_repository_of_variants_is_the_same_model(
    checkpoint: Callable[..., Path], tmp_path: Path, component: str
) -> None:
    folder = shutil.copytree(checkpoint(), tmp_path / "copy")
    (file,) = (folder / component).glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    names = sorted(tensors)
    for number, some in enumerate((names[::2], names[1::2]), 1):
        shard = file.with_name(f"{STEMS[component]}.fp16-0000{number}-of-00002.safetensors")
        save_file({name: tensors[name] for name in some}, shard)
    found = open_component(folder, component, STEMS[component])
    for name in names:
        assert torch.equal(found.read(name, whole(tensors[name].shape)), tensors[name])
    save_file({name: torch.zeros(1) for name in names}, file)
    assert found.headers != open_component(folder, component, STEMS[component]).headers
