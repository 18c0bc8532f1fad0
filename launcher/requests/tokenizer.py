"""Turns prompts into Krea 2's token layout: the chat template's prefix, the prompt cut to its limit, the suffix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, normalizers

from engine.config.chat_template import MAX_PROMPT_TOKENS, PREFIX, PREFIX_TOKENS, SUFFIX, SUFFIX_TOKENS
from engine.config.json_fields import read_json_object
from engine.errors import CheckpointError

_LARGEST = 64 << 20  # bytes of tokenizer.json: Qwen's takes 11 MB


@dataclass(frozen=True)
class Prompt:
    """A whole token sequence: the template's prefix, the prompt, the suffix; `cut` if the prompt was too long."""

    ids: tuple[int, ...]
    cut: bool


class PromptTokenizer:
    """Tokenises as the tokenizer that transformers loads from a checkpoint.

    path: tokenizer.json, its folder, or a checkpoint folder in the diffusers layout. Raises `CheckpointError` if a file
    is damaged, if the template does not have the length that the model was trained with, or if the tokenizer knows
    tokens that the text encoder does not.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        self._file = _tokenizer_file(path)
        self._tokenizer = self._load()
        prefix, self._suffix = self._encode(PREFIX), self._encode(SUFFIX)
        for name, ids, expected in (("prefix", prefix, PREFIX_TOKENS), ("suffix", self._suffix, SUFFIX_TOKENS)):
            if len(ids) != expected:
                problem = f"the template's {name} has another length"
                raise CheckpointError.of(self._file, problem, expected=f"{expected} tokens", found=len(ids))
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if largest >= vocab_size:
            problem = "has tokens that the text encoder does not know"
            allowed = f"ids below its vocab_size {vocab_size}"
            raise CheckpointError.of(self._file, problem, expected=allowed, found=largest)

    def encode(self, prompt: str) -> Prompt:
        """Tokenise prefix and prompt together, cut them to 34 + 507 tokens, and append the suffix."""
        ids = self._encode(PREFIX + prompt)
        kept = ids[: PREFIX_TOKENS + MAX_PROMPT_TOKENS]
        return Prompt((*kept, *self._suffix), cut=len(kept) < len(ids))

    def _load(self) -> Tokenizer:
        if not self._file.is_file():
            raise CheckpointError.of(self._file, "the file is missing")
        if (size := self._file.stat().st_size) > _LARGEST:
            raise CheckpointError.of(self._file, "is too long", expected=f"at most {_LARGEST} bytes", found=size)
        settings_file = self._file.with_name("tokenizer_config.json")
        settings = read_json_object(settings_file) if settings_file.exists() else {}
        try:
            tokenizer = Tokenizer.from_file(str(self._file))
        except BaseException as error:  # the library panics, too, and that is no Exception
            raise self._damaged(error) from None
        # Files may carry the settings of some training run.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # transformers' class for Qwen normalises like this whatever the file says.
        if str(settings.get("tokenizer_class", "Qwen2Tokenizer")).startswith("Qwen2Tokenizer"):
            tokenizer.normalizer = normalizers.NFC()
        return tokenizer

    def _encode(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text).ids
        except BaseException as error:
            raise self._damaged(error) from None
        return ids

    def _damaged(self, error: BaseException) -> CheckpointError:
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise error
        return CheckpointError.of(self._file, f"is not a tokenizer that can be read: {' '.join(str(error).split())}")


def _tokenizer_file(path: Path) -> Path:
    if not path.is_dir() and path.exists():
        return path
    folder = path / "tokenizer"
    return (folder if folder.is_dir() else path) / "tokenizer.json"
