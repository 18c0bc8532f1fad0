"""Safetensors files that are refused: garbage, pickles, wrong headers, damage."""

from __future__ import annotations

import contextlib
import gc
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from engine.checkpoint.files.open import open_component, open_tensor_file
from engine.checkpoint.files.safetensors_file import LARGEST_HEADER, SafetensorsFile
from engine.errors import CheckpointError
from tests.damage import bounded_memory
from tests.engine.checkpoint.files.safetensors_files import FUZZ, entry, refusal, whole, write

DATA = bytes(24)


@pytest.mark.parametrize("content", [b"", b"\0", b"1234567", b"not a model at all", bytes(100), b"\xff" * 100])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("content", [b"PK\3\4 and so on", b"\x80\x02}q\0.", b"\x80\x05\x95\0\0\0\0\0\0\0\0."])
def test_pickles_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert refusal(path).startswith("model.safetensors: is a pickle")


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "download the file itself"),
        (b"<html><head>", "download the file itself"),
        (b"\n <?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "download the file itself"),
        (b'{"error":"Sorry, we can\'t find the page."}', "must be downloaded again: Sorry, we can't find the page."),
        (b'{"error": {"code": 403}}', "must be downloaded again: {'code': 403}"),
        (
            b"Entry not found",
            "is text, not the file that it should be, which must be downloaded again: Entry not found",
        ),
        ("Zugriff für Sie verweigert\nX".encode(), "must be downloaded again: Zugriff für Sie verweigert"),
        (b"x" * 5000, "must be downloaded again: " + "x" * 26 + "…" + "x" * 53),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0", "is a gzip archive: unpack it, and give what is in it"),
        (b"7z\xbc\xaf\x27\x1c\0\4\0\0", "is a 7-Zip archive: unpack it, and give what is in it"),
    ],
)
def test_what_lies_in_place_of_a_file_that_was_not_downloaded_is_known(
    tmp_path: Path, content: bytes, remedy: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert refusal(path).endswith(remedy)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors"}}')
    if content[:1] != b"{":
        assert refusal(index).endswith(remedy)


def test_a_file_that_aria2_has_not_done_with_is_refused(tmp_path: Path) -> None:
    """It has its whole length from the start, and zeros where nothing has come yet."""
    path = write(tmp_path / "model.safetensors", {"a": entry()}, bytes(24))
    open_tensor_file(path).close()
    (tmp_path / "model.safetensors.aria2").touch()
    expected = "aria2 keeps model.safetensors.aria2 beside it until it is whole"
    assert refusal(path) == f"model.safetensors: is not downloaded yet: {expected}"


def test_a_file_that_torch_saved_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    torch.save({"a": torch.zeros(3)}, tmp_path / "b.safetensors", _use_new_zipfile_serialization=False)
    assert "is a pickle" in refusal(tmp_path / "a.pt")
    assert "is a pickle" in refusal(tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"a\.pt: is a pickle"):
        open_component(tmp_path, "transformer", "diffusion_pytorch_model")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == "gone: the file is missing"
    (tmp_path / "folder").mkdir()
    assert refusal(tmp_path / "folder") == "folder: is not a file"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "pipe: is not a file"
    refusal(tmp_path / ("n" * 300))
    refusal(tmp_path / "a\0b")


@pytest.mark.parametrize("length", [3, 10**6, 2**31, LARGEST_HEADER + 1, 2**63, 2**64 - 1])
def test_a_wrong_header_length_is_refused(tmp_path: Path, length: int) -> None:
    refusal(write(tmp_path / "a", {"a": entry()}, DATA, length))


def test_a_header_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write((LARGEST_HEADER + 1).to_bytes(8, "little") + b"{")
        file.truncate(1 << 40)  # a sparse file, of no blocks
    assert "its header is too long" in refusal(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "is not valid json"),
        (b"{}}", "is not valid json"),
        (b'{"a\xff": 1}', "is not valid json"),
        (b'{"a": ' * 50_000, "is not valid json"),
        (b'{"a": ' + b"[" * 100_000, "is not valid json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid json"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F32"}}', "the key 'dtype' is there twice"),
        (b'{"\\ud800": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', "is not Unicode"),
        ({"__metadata__": {"a": 1}}, "__metadata__: has a value"),
        ({"__metadata__": []}, "__metadata__: has a value"),
        ({"a": []}, "a: is not described"),
        ({"a" * 1000: None}, "is not described"),
        ({"a" * 10**6: None}, "keys of at most 1024 characters are allowed"),
        ({"__metadata__": {"a": "b" * 3_000_000}}, "strings of at most 2097152 characters are allowed"),
        ({"a": {}}, "a: tensor has a dtype that cannot be read"),
        ({"a": entry(dtype="F33")}, "a: tensor has a dtype that cannot be read"),
        ({"a": entry(dtype=["F32"])}, "a: tensor has a dtype that cannot be read"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, header: Any, reason: str) -> None:
    assert reason in refusal(write(tmp_path / "a", header, DATA))


@pytest.mark.parametrize(
    "shape",
    [
        *(None, 6, "6", {}, [2, None], [2.0, 3.0], [True, 6], [-2, -3], [[6]], [6] + [1] * 63, [1] * 100_000),
        *([1 << 60], [1 << 30] * 3, [0, 1 << 60], [10**400], [10**400, 0], [1 << 32, 1 << 32]),
    ],
)
def test_a_shape_that_no_tensor_has_is_refused(tmp_path: Path, shape: Any) -> None:
    for end in (0, 24):
        assert "a: has a shape that no tensor has" in refusal(write(tmp_path / "a", {"a": entry(shape, 0, end)}, DATA))


@pytest.mark.parametrize(
    ("begin", "end"),
    [(0, 23), (0, 25), (24, 0), (-24, 0), (0.0, 24.0), (None, 24), (False, 24), ("0", "24"), (0, 10**4000)],
)
def test_offsets_that_do_not_fit_are_refused(tmp_path: Path, begin: Any, end: Any) -> None:
    assert "a: has data_offsets that do not fit" in refusal(
        write(tmp_path / "a", {"a": entry((2, 3), begin, end)}, DATA)
    )


@pytest.mark.parametrize("offsets", [None, [], [0], [0, 24, 24], "x", {"begin": 0}])
def test_what_are_no_offsets_is_refused(tmp_path: Path, offsets: Any) -> None:
    header = {"a": {**entry(), "data_offsets": offsets}}
    assert "a: has data_offsets that do not fit" in refusal(write(tmp_path / "a", header, DATA))


@pytest.mark.parametrize(
    "entries",
    [
        (entry(begin=8, end=32),),  # a gap at the start
        (entry(), entry()),
        (entry(), entry(begin=20, end=44)),
        (entry(), entry(begin=28, end=52)),
        (entry(), entry((0,), 12, 12)),
        (entry(), entry(begin=2**62, end=2**62 + 24)),
    ],
)
def test_overlaps_and_gaps_are_refused(tmp_path: Path, entries: tuple[dict[str, Any], ...]) -> None:
    header = dict(zip("ab", entries, strict=False))
    assert "does not begin where the tensor before it ends" in refusal(write(tmp_path / "a", header, bytes(64)))


@pytest.mark.parametrize("size", [0, 23, 25, 4096])
def test_data_of_another_length_is_refused(tmp_path: Path, size: int) -> None:
    assert "its data has another length" in refusal(write(tmp_path / "a", {"a": entry()}, bytes(size)))


def write_tensors(path: Path, tensors: int) -> Path:
    header = {f"blocks.{number}.attn.wq.weight": entry((1,), 4 * number, 4 * number + 4) for number in range(tensors)}
    return write(path, header, bytes(4 * tensors))


def seconds_to_open(path: Path) -> float:
    """Of this thread on a core. Python collects no garbage meanwhile, which takes time for all that the process
    holds."""
    gc.disable()
    try:
        began = time.thread_time()
        SafetensorsFile(path)
        return time.thread_time() - began
    finally:
        gc.enable()


def test_the_time_that_a_header_takes_grows_with_its_length_and_no_faster(tmp_path: Path) -> None:
    few, many = write_tensors(tmp_path / "few", 2_000), write_tensors(tmp_path / "many", 20_000)
    times = {few: [], many: []}
    for number in range(30):  # the least of them; as many as it takes on a machine that others disturb
        for path, seconds in times.items():
            seconds.append(seconds_to_open(path))
        ratio = min(times[many]) / min(times[few])
        if number >= 2 and ratio < 40:
            break
    assert ratio < 40  # 10 if it is in proportion, 100 if every tensor is compared with every other


@pytest.mark.parametrize("text", [b"0", b"[[[]]]"])
def test_the_memory_that_a_header_takes_is_in_proportion_to_its_length(tmp_path: Path, text: bytes) -> None:
    length = 1 << 17
    path = write(tmp_path / "a", b'{"a": [' + b",".join([text] * (length // (len(text) + 1))) + b"]}")
    tracemalloc.start()
    try:
        assert "is not described" in refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50 * length  # 800 MB for the largest header


# That time and memory are in proportion to a header's length: the two tests above.
@pytest.mark.slow
def test_a_header_of_a_hundred_thousand_tensors_is_read(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "many", 100_000)
    with bounded_memory():
        assert len(SafetensorsFile(path).headers) == 100_000


@FUZZ
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 400),
)
def test_damaged_files_are_refused_or_read(tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros((2, 3)), "b": torch.zeros((4,), dtype=torch.bfloat16)}, path, {"format": "pt"})
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    for position, value in changes:
        content[position % (8 + header)] = value
    read_all_or_refuse(path, bytes(content[: len(content) - max(0, cut - 300)]))


def read_all_or_refuse(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # files that are open stay as they are
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError), bounded_memory():
        file = open_tensor_file(path)
        for name, header in file.headers.items():
            assert file.read(name, whole(header.shape)).shape == header.shape
