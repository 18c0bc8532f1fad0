"""GGUF files in parts, as the library writes them: read as one, whichever part is given, or refused with what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter

from engine.checkpoint.files.gguf_file import GgufFile
from engine.checkpoint.files.open import open_component, open_tensor_file
from engine.checkpoint.layouts.encodings import stored_tensors
from engine.errors import CheckpointError
from tests.engine.checkpoint.files.gguf_files import random_blocks, refusal, whole

PARTS = [f"model-{number:05}-of-00003.gguf" for number in (1, 2, 3)]


def write(path: Path, **options: int) -> Path:
    """Five tensors, the first a plain one, by the library's writer."""
    path.parent.mkdir(exist_ok=True)
    writer = GGUFWriter(path, "krea2", **options)
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    for name in "bcde":
        writer.add_tensor(name, random_blocks(Type.Q8_0, 4, 2), raw_dtype=Type.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.parent


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return write(tmp_path / "parts/model.gguf", split_max_tensors=2)


@pytest.mark.parametrize("given", [*PARTS, "."])
def test_any_part_or_the_folder_stands_for_all(tmp_path: Path, parts: Path, given: str) -> None:
    alone = stored_tensors(GgufFile(write(tmp_path / "one/model.gguf") / "model.gguf"))
    file = open_component(parts / given, "transformer", "diffusion_pytorch_model")
    assert file.path == parts / PARTS[0]
    assert file.metadata["general.architecture"] == "krea2"
    together = stored_tensors(file)
    assert list(together) == list(alone)
    for name, tensor in alone.items():
        bounds = whole(tensor.shape)
        assert torch.equal(together[name].read(bounds), tensor.read(bounds))
        assert together[name].size(bounds) == tensor.size(bounds)
        assert file.octets(name).tobytes() == tensor._file.octets(name).tobytes()  # type: ignore[attr-defined]
    assert [tensor.file.name for tensor in together.values()] == [PARTS[0], PARTS[0], PARTS[1], PARTS[1], PARTS[2]]
    file.close()


def test_a_part_without_the_others_says_which_is_missing(parts: Path) -> None:
    (parts / PARTS[1]).unlink()
    assert refusal(parts / PARTS[2]) == (
        "is one of 3 parts of a GGUF file, which must lie beside one another, or make one file of them: "
        f"llama-gguf-split --merge FIRST-PART NEW-FILE, expected {PARTS[1]}, found no such file"
    )


def test_a_part_of_another_name_is_refused(parts: Path) -> None:
    shutil.move(parts / PARTS[0], parts / "model.gguf")
    message = refusal(parts / "model.gguf")
    assert message.startswith("is one of 3 parts of a GGUF file, which is not called as they are; give all their names")
    assert message.endswith("expected a name that ends in -00001-of-00003.gguf")


def test_parts_of_other_files_are_refused(tmp_path: Path, parts: Path) -> None:
    shutil.copy(parts / PARTS[0], parts / PARTS[1])
    with pytest.raises(CheckpointError, match=r"split\.no: does not belong to the other parts, expected 1, found 0"):
        open_tensor_file(parts / PARTS[0])
    two = write(tmp_path / "two/model.gguf", split_max_tensors=3)
    shutil.copy(two / "model-00002-of-00002.gguf", parts / PARTS[1])
    with pytest.raises(CheckpointError, match=r"split\.count: does not belong to the other parts, expected 3, found 2"):
        open_tensor_file(parts / PARTS[2])


def test_several_files_that_are_not_parts_of_one_are_still_several(parts: Path) -> None:
    shutil.copy(parts / PARTS[0], parts / "other.gguf")
    assert refusal_of_folder(parts).startswith("holds several files of tensors: name one of them")


def refusal_of_folder(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_component(folder, "transformer", "diffusion_pytorch_model")
    return str(error.value).removeprefix(f"{folder}: ")
