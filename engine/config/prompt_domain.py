"""Reads and applies what model_index.json may say of the prompts that a checkpoint can draw."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.config.json_fields import JsonFields

_MOST_WORDS, _MOST_NOTE = 4096, 1024  # words, characters
_WORDS_NAMED = 5  # in a warning
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class PromptDomain:
    """The words that the checkpoint was made for, in lower case, and a note for prompts that have others."""

    words: frozenset[str]
    note: str

    def warning(self, prompt: str) -> str | None:
        """Give the note, after the first of the prompt's words that the checkpoint does not know, in lower case, once
        each; None if there are none. Whatever is neither letter nor number divides words."""
        unknown = self._unknown(prompt)
        return unknown and f"the model does not know {unknown}. {self.note}"

    def negative_warning(self, prompt: str) -> str | None:
        """Say which words of a negative prompt the checkpoint does not know; None if there are none. They pull shapes
        out of theirs all the same."""
        unknown = self._unknown(prompt)
        return unknown and f"the model does not know {unknown} of the negative prompt, which may spoil the picture"

    def _unknown(self, prompt: str) -> str | None:
        unknown = [word for word in dict.fromkeys(_WORD.findall(prompt.lower())) if word not in self.words]
        named = ", ".join(f'"{word[:40]}"' for word in unknown[:_WORDS_NAMED])
        return f"{named}{' and more' if len(unknown) > _WORDS_NAMED else ''}" or None


def read_prompt_domain(index: JsonFields) -> PromptDomain | None:
    """Read `prompt_words` and `prompt_note`; None if there is neither. Raises `CheckpointError` for one without the
    other, and for a value that does not fit."""
    if not (index.has("prompt_words") or index.has("prompt_note")):
        return None
    words = index.texts("prompt_words", most=_MOST_WORDS)
    for word in words:
        if _WORD.fullmatch(word) is None or word != word.lower():
            raise index.error("prompt_words", "words of letters and numbers, in lower case", word)
    return PromptDomain(frozenset(words), index.text("prompt_note", most=_MOST_NOTE))
