"""Turns prompts into Krea 2's token layout: the chat template's prefix, the prompt cut to its limit, the suffix."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from engine.checkpoint.added_tokens import read_added_tokens
from engine.checkpoint.tokenizer_files import ADDED_TOKENS, SETTINGS, TokenizerFiles, find_tokenizer
from engine.config.chat_template import MAX_PROMPT_TOKENS, PREFIX, PREFIX_TOKENS, SUFFIX, SUFFIX_TOKENS
from engine.config.in_its_place import LOOKED_AT, answer_in_its_place, in_its_place, text_in_its_place
from engine.config.json_fields import JsonFields
from engine.errors import CheckpointError

_CLASS = "Qwen2Tokenizer"  # transformers'
_LIKE_SPECIAL = re.compile("<.+>")
_BYTES = 256  # each a token
_TEMPLATE_TOKENS = ("<|im_start|>", "<|im_end|>")
# How Qwen's tokenizers cut a text into words: contractions, letters with what stands before them, single digits, other
# characters with the ends of their lines, and blanks.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Prompt:
    """A whole token sequence: the template's prefix, the prompt, the suffix; `cut` if the prompt was too long."""

    ids: tuple[int, ...]
    cut: bool


class PromptTokenizer:
    """Tokenises as the tokenizer that transformers loads from a checkpoint.

    path: tokenizer.json, vocab.json beside its merges.txt, the folder of either, or a checkpoint folder in the
    diffusers layout. Raises `CheckpointError` if a file is missing or damaged, if the template does not have the length
    that the model was trained with, or if the tokenizer knows tokens that the text encoder does not.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.files = find_tokenizer(path)
        self._tokenizer = _load(self.files)
        prefix, self._suffix = self._encode(PREFIX), self._encode(SUFFIX)
        for name, ids, expected in (("prefix", prefix, PREFIX_TOKENS), ("suffix", self._suffix, SUFFIX_TOKENS)):
            if len(ids) != expected:
                problem = f"the template's {name} has another length"
                raise CheckpointError.of(self.files.main, problem, expected=f"{expected} tokens", found=len(ids))
        known = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.tokens, largest = len(known), max(known, default=0)
        if largest >= vocab_size:
            problem = "has tokens that the text encoder does not know"
            allowed = f"ids below its vocab_size {vocab_size}"
            raise CheckpointError.of(self.files.main, problem, expected=allowed, found=largest)

    def encode(self, prompt: str) -> Prompt:
        """Tokenise prefix and prompt together, cut them to 34 + 507 tokens, and append the suffix."""
        ids = self._encode(PREFIX + prompt)
        kept = ids[: PREFIX_TOKENS + MAX_PROMPT_TOKENS]
        return Prompt((*kept, *self._suffix), cut=len(kept) < len(ids))

    def _encode(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text).ids
        except BaseException as error:
            raise _damaged(self.files.main, error) from None
        return ids


def _load(files: TokenizerFiles) -> Tokenizer:
    settings_file = files.beside(SETTINGS)
    settings = JsonFields(files.main, {}) if settings_file is None else JsonFields.read(settings_file)
    if files.merges is not None:
        tokenizer = _from_vocabulary(files.main, files.merges, settings)
        _add_tokens(tokenizer, files, settings)
        return tokenizer
    try:
        tokenizer = Tokenizer.from_file(str(files.main))
    except BaseException as error:  # the library panics, too, and that is no Exception
        raise _damaged(files.main, error) from None
    # Files may carry the settings of some training run.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # transformers' class for Qwen normalises like this whatever the file says.
    if _class_of(settings).startswith(_CLASS):
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _class_of(settings: JsonFields) -> str:
    return str(settings.values.get("tokenizer_class") or _CLASS)


def _damaged(file: Path, error: BaseException, *others: Path) -> CheckpointError:
    """others: files that were read with it."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
        raise error
    for each in (file, *others):
        with contextlib.suppress(OSError), each.open("rb") as opened:
            start = opened.read(LOOKED_AT)
            if (other := in_its_place(start) or (_answered(start) if each == file else None)) is not None:
                return CheckpointError.of(each, other)
    return CheckpointError.of(file, f"is not a tokenizer that can be read: {' '.join(str(error).split())}")


def _answered(start: bytes) -> str | None:
    """What a json file is that begins so, if a server answered that in its place."""
    if not start.lstrip().startswith(b"{"):
        return text_in_its_place(start)
    with contextlib.suppress(ValueError, RecursionError):  # whole, it is short
        return answer_in_its_place(json.loads(start))
    return None


# ---- of a vocabulary and its merges, as transformers' Qwen2Tokenizer does it


def _from_vocabulary(vocabulary: Path, merges: Path, settings: JsonFields) -> Tokenizer:
    """A byte-level BPE in Qwen's form, without special tokens."""
    if not _class_of(settings).startswith(_CLASS):
        raise settings.error("tokenizer_class", _CLASS, settings.values["tokenizer_class"])
    for key in ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens"):
        settings.expect(key, False, default=False)
    try:
        tokenizer = Tokenizer(BPE.from_file(str(vocabulary), str(merges)))
    except BaseException as error:
        raise _damaged(vocabulary, error, merges) from None
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    known = tokenizer.get_vocab()
    if lacking := set(pre_tokenizers.ByteLevel.alphabet()) - set(known):
        raise CheckpointError.of(vocabulary, f"has no tokens for {len(lacking)} of the {_BYTES} bytes")
    if len(set(known.values())) < len(known):
        raise CheckpointError.of(vocabulary, "has an id twice")
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, files: TokenizerFiles, settings: JsonFields) -> None:
    """Add the tokens that no merge makes, whose ids follow those of the vocabulary, or are in it."""
    tokens = read_added_tokens(files, settings)
    stated = {token.content for token in tokens}
    if lacking := [name for name in _TEMPLATE_TOKENS if name not in stated]:
        problem = f"its ids of {' and '.join(lacking)} are said nowhere: {SETTINGS} with added_tokens_decoder, or"
        raise CheckpointError.of(files.main, f"{problem} {ADDED_TOKENS}, must lie beside it")
    known = tokenizer.get_vocab()
    others = sum(name in stated or _LIKE_SPECIAL.fullmatch(name) is not None for name in known)
    merged = len(known) - _BYTES - others
    if (merges := _count_merges(files)) < merged:  # as of a download that broke off
        raise CheckpointError.of(
            files.merges or files.main, "lacks merges", expected=f"at least {merged}", found=merges
        )
    for token in tokens:
        if token.id is None and token.content not in known:
            raise CheckpointError.of(token.said.file, "is a special token whose id is said nowhere", name=token.content)
    try:
        tokenizer.add_tokens(
            [
                AddedToken(token.content, special=token.special, normalized=token.normalized, **token.flags)
                for token in sorted(tokens, key=lambda token: token.id or 0)
            ]
        )
        ids = [tokenizer.token_to_id(token.content) for token in tokens]
    except BaseException as error:
        raise _damaged(files.main, error) from None
    for token, id in zip(tokens, ids, strict=True):
        if token.id not in (None, id):
            problem = "has an id that neither is in the vocabulary nor follows it"
            raise CheckpointError.of(token.said.file, problem, name=token.content, expected=id, found=token.id)


def _count_merges(files: TokenizerFiles) -> int:
    lines = b"" if files.merges is None else files.merges.read_bytes()
    return sum(bool(line.strip()) and not line.startswith(b"#version") for line in lines.splitlines())
