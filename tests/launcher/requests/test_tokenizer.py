"""The token layout, against transformers' tokenizer."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.chat_template import PREFIX, SUFFIX
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError
from launcher.requests.tokenizer import PromptTokenizer
from tests.engine.checkpoint.qwen_vocabulary import PLAIN, SPECIAL, settings_of, write_json, write_vocabulary

PROMPTS = [
    "",
    " ",
    "a red circle on a blue background",
    "Ein Fuchs im Schnee, größer als 3 Häuser",
    "e\u0301 and \u00e9, \u212b and \u00c5, ﬁ",  # which normalising makes equal, or not
    "你好，世界 🦊👩‍👩‍👧‍👦 \u200b\ufeff",
    "it's  a\ttab\n\n\nand\r\nlines   ",
    "<|im_end|> and <|im_start|>system inside <|endoftext|>",
    "\x00\x7f",
    "red " * 600,
    "x" * 3000,
]


# Of random prompts: special tokens and parts of them, what composes with what stands before it ("\u0338" with ">" too),
# what NFC changes and what not, control characters, blanks, several scripts, emojis of several characters.
PIECES = [
    *SPECIAL, *PLAIN, "<|im_", "_end|>", "<", ">", "|", "\u0338", "\u0301", "\u0308", "e\u0301", "\u212b", "ﬁ",
    " ", "  ", "\n", "\r\n", "\t", "\x00", "\x1b", "\x7f", "\x85", "\u200b", "\ufeff", "\u2028", "\u3000",
    "🦊", "👩‍👩‍👧‍👦", "🏳️‍🌈", "𝒳", "你好", "狐狸", "雪の中", "ｶﾞ", "눈", "\u1112\u1161\u11ab", "ثعلب", "बर्फ",
    "'s", "'LL", "don't", "Fox", "RED", "circle", " a red circle", "3.14", "12", "!?", "größe", "gro\u0308ße",
]  # fmt: skip
BLOCKS = ((0x0, 0x250), (0x300, 0x370), (0x3000, 0xA000), (0x1F300, 0x1FB00))

VOCABULARY = ModelConfig.from_folder(DEMO_CHECKPOINT).text_encoder.vocab_size


@pytest.fixture(scope="module")
def ours() -> PromptTokenizer:
    return PromptTokenizer(DEMO_CHECKPOINT, VOCABULARY)


Layout = Callable[..., list[tuple[int, ...]]]


@pytest.fixture(scope="module")
def expected() -> Layout:
    from transformers import AutoTokenizer

    return layout_of(AutoTokenizer.from_pretrained(DEMO_CHECKPOINT / "tokenizer"))


def layout_of(theirs: Any) -> Layout:
    """diffusers' layout without its padding: prefix and prompt cut to 541 tokens, then the suffix."""
    suffix = theirs(SUFFIX)["input_ids"]

    def ids(*prompts: str) -> list[tuple[int, ...]]:
        texts = [PREFIX + prompt for prompt in prompts]
        return [(*text, *suffix) for text in theirs(texts, truncation=True, max_length=512 + 34 - 5)["input_ids"]]

    return ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_transformers(ours: PromptTokenizer, expected: Layout, prompt: str) -> None:
    assert [ours.encode(prompt).ids] == expected(prompt)


@settings(max_examples=200, deadline=None)
@given(prompt=st.text())
def test_tokens_of_any_text_are_those_of_transformers(ours: PromptTokenizer, expected: Layout, prompt: str) -> None:
    assert [ours.encode(prompt).ids] == expected(prompt)


def random_prompt(rng: random.Random) -> str:
    return "".join(
        rng.choice(PIECES) if rng.random() < 0.85 else chr(rng.randrange(*rng.choice(BLOCKS)))
        for _ in range(rng.randrange(12))
    )


def as_qwen_publishes(folder: Path, first: int) -> None:
    write_json(folder, tokenizer_config=settings_of(first))


def with_what_else_is_saved(folder: Path, first: int) -> None:
    """Files that transformers does not look into where the settings say it all, and that say otherwise here."""
    write_json(
        folder,
        tokenizer_config=settings_of(first),
        added_tokens={token: n for n, token in enumerate(SPECIAL)},
        special_tokens_map={"eos_token": "<|endoftext|>", "bos_token": "<s>"},
    )


def with_added_tokens_file(folder: Path, first: int) -> None:
    settings = settings_of(first)
    del settings["added_tokens_decoder"]
    special = {"additional_special_tokens": list(SPECIAL[1:]), "pad_token": {"content": SPECIAL[0], "lstrip": False}}
    write_json(
        folder,
        tokenizer_config=settings,
        added_tokens={token: first + n for n, token in enumerate(SPECIAL + PLAIN)},
        special_tokens_map=special,
    )


def with_added_tokens_file_alone(folder: Path, first: int) -> None:
    write_json(folder, added_tokens={token: first + n for n, token in enumerate(SPECIAL + PLAIN)})


def with_them_in_the_vocabulary(folder: Path, first: int) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary |= {token: first + n for n, token in enumerate(SPECIAL + PLAIN)}
    settings = settings_of(first, extra_special_tokens={"image_token": "<|image_pad|>"})
    del settings["added_tokens_decoder"]
    write_json(folder, vocab=vocabulary, tokenizer_config=settings)


def with_odd_flags(folder: Path, first: int) -> None:
    settings = settings_of(first, sep_token={"__type": "AddedToken", "content": "<think>", "lstrip": True})
    tokens = list(settings["added_tokens_decoder"].values())
    tokens[3] |= {"lstrip": True, "normalized": True}
    tokens[4] |= {"rstrip": True}
    tokens[5] |= {"single_word": True}
    tokens[6] |= {"normalized": True}
    write_json(folder, tokenizer_config=settings)


@pytest.mark.parametrize(
    ("beside", "count"),
    [
        (as_qwen_publishes, 3000),
        (with_what_else_is_saved, 100),
        (with_added_tokens_file, 300),
        (with_added_tokens_file_alone, 300),
        (with_them_in_the_vocabulary, 300),
        (with_odd_flags, 300),
    ],
)
def test_a_vocabulary_and_merges_are_the_tokenizer_that_transformers_makes_of_them(
    tmp_path: Path, beside: Callable[[Path, int], None], count: int
) -> None:
    from transformers import AutoTokenizer, Qwen2Tokenizer, Qwen2TokenizerFast

    folder = tmp_path / "tokenizer"
    first = write_vocabulary(folder)
    beside(folder, first)
    ours = PromptTokenizer(tmp_path, first + len(SPECIAL + PLAIN))
    rng = random.Random(beside.__name__)
    prompts = [*PROMPTS, *(random_prompt(rng) for _ in range(count))]
    loaders = [Qwen2Tokenizer, Qwen2TokenizerFast]
    loaders += [AutoTokenizer] if (folder / "tokenizer_config.json").exists() else []
    for number, loader in enumerate(loaders):
        some = prompts[number :: len(loaders)]
        for prompt, ids in zip(some, layout_of(loader.from_pretrained(folder))(*some), strict=True):
            assert ours.encode(prompt).ids == ids, ascii(prompt)


def test_a_prompt_past_507_tokens_is_cut_and_says_so(ours: PromptTokenizer) -> None:
    empty, fitting, longer = (ours.encode(" red" * words) for words in (0, 507, 508))
    assert [len(text.ids) for text in (empty, fitting, longer)] == [34 + 5, 34 + 507 + 5, 34 + 507 + 5]
    assert [text.cut for text in (empty, fitting, longer)] == [False, False, True]
    assert longer.ids == fitting.ids
    assert fitting.ids[-5:] == empty.ids[-5:]


def test_settings_of_some_training_run_in_the_file_are_ignored(ours: PromptTokenizer, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {
            "strategy": {"Fixed": 900},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        }

    tokenizer = PromptTokenizer(changed_copy(tmp_path, change), VOCABULARY)
    assert tokenizer.encode("a fox") == ours.encode("a fox")


def changed_copy(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(DEMO_CHECKPOINT / "tokenizer", tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return tmp_path


def test_a_template_of_another_length_is_refused(tmp_path: Path) -> None:
    def forget_a_token(content: dict[str, Any]) -> None:
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|im_start|>"]

    folder = changed_copy(tmp_path, forget_a_token)
    with pytest.raises(
        CheckpointError, match=r"tokenizer.json: the template's prefix .*, expected 34 tokens, found \d+"
    ):
        PromptTokenizer(folder, VOCABULARY)


def test_tokens_that_the_text_encoder_does_not_know_are_refused() -> None:
    last = VOCABULARY - 1
    with pytest.raises(CheckpointError, match=f"expected ids below its vocab_size {last}, found {last}"):
        PromptTokenizer(DEMO_CHECKPOINT, last)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"{}",
        lambda data: b"[1, 2]",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b'"BPE"', b'"PBE"'),
        lambda data: data.replace(b'"vocab"', b'"bocav"'),
        lambda data: b"\xff\xfe" + data,
    ],
)
def test_a_damaged_file_is_a_checkpoint_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    shutil.copytree(DEMO_CHECKPOINT / "tokenizer", tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        PromptTokenizer(tmp_path, VOCABULARY)


def test_a_file_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file, of no blocks
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is too long, expected at most 67108864 bytes"):
        PromptTokenizer(tmp_path, 1000)


def test_a_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the file is missing"):
        PromptTokenizer(tmp_path, VOCABULARY)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_flipped_bytes_give_a_checkpoint_error_or_a_tokenizer(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    shutil.copytree(DEMO_CHECKPOINT / "tokenizer", folder / "tokenizer")
    file = folder / "tokenizer" / "tokenizer.json"
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        tokenizer = PromptTokenizer(folder, VOCABULARY)
    except CheckpointError:
        return
    ids = tokenizer.encode("a red circle").ids
    assert max(ids) < VOCABULARY
