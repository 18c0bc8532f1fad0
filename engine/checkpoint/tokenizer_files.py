"""Finds the files that a tokenizer is made of: tokenizer.json, or a vocabulary and its merges, and their settings."""

from __future__ import annotations

from dataclasses import dataclass
from os.path import isdir, isfile, lexists  # unlike Path's, they raise nothing for a name that is too long
from pathlib import Path

from engine.errors import CheckpointError

WHOLE, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
SETTINGS, ADDED_TOKENS, SPECIAL_TOKENS = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
LARGEST = 64 << 20  # bytes of each: Qwen's tokenizer.json takes 11 MB, its vocab.json 3 MB


@dataclass(frozen=True)
class TokenizerFiles:
    """Where a tokenizer is. main: tokenizer.json, whatever it is called, or vocab.json; merges: that of vocab.json,
    None for tokenizer.json, in which they are."""

    main: Path
    merges: Path | None = None

    def beside(self, name: str) -> Path | None:
        """The file of this name in the same folder, None if there is none."""
        file = self.main.with_name(name)
        return file if lexists(file) else None

    def by_name(self) -> dict[str, Path]:
        """All that there are, by the names under which programs look for them."""
        own = {WHOLE: self.main} if self.merges is None else {VOCABULARY: self.main, MERGES: self.merges}
        names = (SETTINGS, ADDED_TOKENS, SPECIAL_TOKENS, "chat_template.jinja")
        return own | {name: file for name in names if (file := self.beside(name)) is not None}


def find_tokenizer(path: Path) -> TokenizerFiles:
    """Find the files of a tokenizer.

    path: a file of it, its folder, or a checkpoint folder in the diffusers layout. Of a folder that has both,
    tokenizer.json is taken. Raises `CheckpointError` if a file is missing, or larger than any tokenizer's.
    """
    found = _find(path)
    for file in found.by_name().values():
        if not isfile(file):  # reading from a pipe might never end
            raise CheckpointError.of(file, "is not a file")
        if (size := file.stat().st_size) > LARGEST:
            raise CheckpointError.of(file, "is too long", expected=f"at most {LARGEST} bytes", found=size)
    return found


def _find(path: Path) -> TokenizerFiles:
    if not lexists(path):
        raise CheckpointError.of(path, "there is no such file or folder")
    if isdir(path):
        folder, is_pair = path / "tokenizer", False
        folder = folder if isdir(folder) else path
    elif path.name in (VOCABULARY, MERGES, SETTINGS, ADDED_TOKENS, SPECIAL_TOKENS):
        folder, is_pair = path.parent, path.name in (VOCABULARY, MERGES)
    else:
        return TokenizerFiles(path)
    whole, vocabulary, merges = folder / WHOLE, folder / VOCABULARY, folder / MERGES
    if not is_pair and lexists(whole):
        return TokenizerFiles(whole)
    if lexists(vocabulary) and lexists(merges):
        return TokenizerFiles(vocabulary, merges)
    if lexists(vocabulary) or lexists(merges):
        missing = merges if lexists(vocabulary) else vocabulary
        raise CheckpointError.of(missing, f"the file is missing: {VOCABULARY} and {MERGES} are a tokenizer together")
    raise CheckpointError.of(whole, f"the file is missing, and so are {VOCABULARY} and {MERGES}, which would do")
