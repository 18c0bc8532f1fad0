"""Tokenizers of vocab.json and merges.txt: which files are taken, and what is refused. What they make of prompts is
compared with transformers in tests/launcher/requests/test_tokenizer.py."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert.convert import convert
from engine.checkpoint.tokenizer_files import find_tokenizer
from engine.config.engine_config import EngineConfig
from engine.errors import CheckpointError
from launcher.requests.tokenizer import PromptTokenizer
from tests.damage import bounded_memory
from tests.engine.checkpoint.qwen_vocabulary import PLAIN, SPECIAL, settings_of, write_json, write_vocabulary

CASES = 200
Change = Callable[[Path, dict[str, Any]], None]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "tokenizer"
    return write_json(folder, tokenizer_config=settings_of(write_vocabulary(folder)))


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "tokenizer"))


def size_of(folder: Path) -> int:
    return len(json.loads((folder / "vocab.json").read_text())) + len(SPECIAL + PLAIN)


# ---- which files


@pytest.mark.parametrize("given", ["", ".", "..", "vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_folder_a_repository_and_each_file_of_it_name_the_tokenizer(folder: Path, given: str) -> None:
    found = find_tokenizer(folder / given)
    assert [*found.by_name()] == ["vocab.json", "merges.txt", "tokenizer_config.json"]
    assert all(file.resolve() == folder / name for name, file in found.by_name().items())


def test_of_a_folder_with_both_forms_tokenizer_json_is_taken_as_by_transformers_unless_the_other_is_named(
    folder: Path,
) -> None:
    (folder / "tokenizer.json").write_text("{}")
    for given in (folder, folder.parent, folder / "tokenizer.json", folder / "tokenizer_config.json"):
        assert find_tokenizer(given).main.name == "tokenizer.json"
    for given in (folder / "vocab.json", folder / "merges.txt"):
        assert find_tokenizer(given).main.name == "vocab.json"
    renamed = (folder / "tokenizer.json").rename(folder / "qwen.json")
    assert find_tokenizer(renamed).by_name()["tokenizer.json"] == renamed


@pytest.mark.parametrize(
    ("remove", "given", "says"),
    [
        ("merges.txt", "", r"merges\.txt: the file is missing: vocab\.json and merges\.txt are a tokenizer together"),
        ("vocab.json", "merges.txt", r"vocab\.json: the file is missing: vocab\.json and merges\.txt are a"),
        ("*", "", r"tokenizer\.json: the file is missing, and so are vocab\.json and merges\.txt, which would do"),
        ("", "nothing", "nothing: there is no such file or folder"),
        ("", "x" * 300, "x: there is no such file or folder"),
    ],
)
def test_what_is_missing_is_named(folder: Path, remove: str, given: str, says: str) -> None:
    for file in folder.glob(remove) if remove else ():
        file.unlink()
    with pytest.raises(CheckpointError, match=says):
        find_tokenizer(folder / given)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_what_is_no_file_or_too_long_is_refused_unread(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}: is not a file"):
        find_tokenizer(folder)
    (folder / name).unlink()
    with (folder / name).open("wb") as file:
        file.truncate(1 << 40)  # a sparse file, of no blocks
    with pytest.raises(CheckpointError, match=f"{name}: is too long, expected at most 67108864 bytes"):
        find_tokenizer(folder)


def test_convert_takes_all_files_along(turbo: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(100))  # which belongs to no tokenizer
    checkpoint = CheckpointFiles.open(replace(EngineConfig(model=str(turbo)), tokenizer=str(folder / "vocab.json")))
    output = tmp_path / "converted"
    convert(checkpoint, output, layout="diffusers", weights="keep")
    checkpoint.close()
    copies = {file.name: file.read_bytes() for file in (output / "tokenizer").iterdir()}
    assert copies == {name: (folder / name).read_bytes() for name in copies}
    assert sorted(copies) == ["merges.txt", "tokenizer_config.json", "vocab.json"]


# ---- what is refused


def without_settings(folder: Path, _: dict[str, Any]) -> None:
    (folder / "tokenizer_config.json").unlink()


def cut_merges(folder: Path, _: dict[str, Any]) -> None:
    lines = (folder / "merges.txt").read_bytes().splitlines(keepends=True)
    (folder / "merges.txt").write_bytes(b"".join(lines[:-40]))


def vocabulary(change: Callable[[dict[str, int]], None]) -> Change:
    def apply(folder: Path, _: dict[str, Any]) -> None:
        content = json.loads((folder / "vocab.json").read_text())
        change(content)
        (folder / "vocab.json").write_text(json.dumps(content))

    return apply


def settings(**changes: Any) -> Change:
    return lambda _, content: content.update(changes)


def tokens(change: Callable[[dict[str, Any]], None]) -> Change:
    return lambda _, content: change(content["added_tokens_decoder"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            without_settings,
            r"vocab\.json: its ids of <\|im_start\|> and <\|im_end\|> are said nowhere: tokenizer_config",
        ),
        (settings(added_tokens_decoder={}, additional_special_tokens=[]), "ids of .* said nowhere"),
        (cut_merges, r"merges\.txt: lacks merges, expected at least \d+, found \d+"),
        (vocabulary(lambda known: known.pop("!")), r"vocab\.json: is not a tokenizer|has no tokens for 1 of the 256"),
        (vocabulary(lambda known: known.update(a=known["b"])), r"vocab\.json: has an id twice"),
        (vocabulary(lambda known: known.update(a=-1)), r"vocab\.json: is not a tokenizer that can be read"),
        (vocabulary(lambda known: known.update(a=10**6)), "has tokens that the text encoder does not know"),
        (
            settings(tokenizer_class="CLIPTokenizer"),
            'tokenizer_class: .* expected Qwen2Tokenizer, found "CLIPTokenizer"',
        ),
        (settings(add_prefix_space=True), r"tokenizer_config\.json: add_prefix_space: .* expected false, found true"),
        (settings(add_bos_token=True), "add_bos_token: has a value that does not fit"),
        (settings(split_special_tokens=True), "split_special_tokens: has a value that does not fit"),
        (settings(bos_token="<s>"), "<s>: is a special token whose id is said nowhere"),
        (settings(added_tokens_decoder=[]), "added_tokens_decoder: has a value that does not fit, expected an object"),
        (settings(extra_special_tokens="x"), "extra_special_tokens: .* expected a list or an object"),
        (settings(extra_special_tokens=[1]), "extra_special_tokens.0: has a value that does not fit"),
        (settings(extra_special_tokens=["x"] * 70_000), "expected at most 65536 tokens, found 70000"),
        (tokens(lambda known: known.update(x=known.popitem()[1])), 'expected ids as keys, found "x"'),
        (tokens(lambda known: known.update({"9000": known.popitem()[1]})), "has an id that neither is in the vocab"),
        (tokens(lambda known: known.update({"1": {"content": "a"}})), "a: has an id that neither is in the vocab"),
        (tokens(lambda known: known.update({"9": {"content": ""}})), r"added_tokens_decoder\.9\.content: has a value"),
        (tokens(lambda known: known.update({"9": {}})), r"added_tokens_decoder\.9\.content: is missing"),
        (tokens(lambda known: known.update({"9": "x"})), r"added_tokens_decoder\.9: .* expected an object"),
        (tokens(lambda known: known.popitem()[1].update(lstrip=3) or known.clear()), "said nowhere"),
    ],
)
def test_what_would_tokenise_otherwise_than_the_model_was_trained_is_refused(
    folder: Path, change: Change, says: str
) -> None:
    size = size_of(folder)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder, tokenizer_config=content)
    change(folder, content)
    if (folder / "tokenizer_config.json").exists():
        write_json(folder, tokenizer_config=content)
    with pytest.raises(CheckpointError, match=says) as refused:
        PromptTokenizer(folder, size)
    assert refused.value.message.startswith(str(folder))


def test_damaged_files_are_refused_or_work(published: Path, tmp_path: Path) -> None:
    size = size_of(published)
    messages = {}
    for seed in range(CASES):
        rng = random.Random(seed)
        folder = Path(shutil.copytree(published, tmp_path / str(seed)))
        name = rng.choice(("vocab.json", "merges.txt", "tokenizer_config.json"))
        (folder / name).write_bytes(damaged((folder / name).read_bytes(), rng))
        try:
            with bounded_memory():
                tokenizer = PromptTokenizer(folder, size)
        except CheckpointError as error:
            messages[folder] = error.message
            continue
        for prompt in ("a red circle", "", "雪\u0000🦊", "x " * 300):
            ids = tokenizer.encode(prompt).ids
            assert 39 <= len(ids) <= 546, (seed, name)
            assert all(0 <= token < size for token in ids), (seed, name)
    assert 0 < len(messages) < CASES
    assert all(message.startswith(str(folder)) and message.isprintable() for folder, message in messages.items())


def damaged(data: bytes, rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            changed = bytearray(data)
            for _ in range(rng.choice((1, 4, 64))):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)
        case 1:
            return data[: rng.randrange(len(data))]
        case 2:
            return rng.choice((b"", b"null", b"[]", b"{}", b"[" * 100_000, rng.randbytes(500), b"version https://git-"))
    lines = data.splitlines(keepends=True) if data.count(b"\n") > 1 else data.split(b",")
    rng.shuffle(lines)
    return (b"" if data.count(b"\n") > 1 else b",").join(lines[: rng.randrange(1, len(lines))])
