"""Which prompts a checkpoint can draw, where its model_index.json says that: `prompt_pattern` and `prompt_note`."""

from __future__ import annotations

from dataclasses import dataclass

import re2

from engine.json_fields import JsonFields

_MOST_PATTERN, _MOST_NOTE = 4096, 1024  # characters
# Patterns come with checkpoints and prompts over the wire, and none of them may keep the front-end: RE2 takes time
# linear in the prompt, where Python's own engine may take an exponential one, and its memory bounds the factor: the
# worst patterns tried took 0.3 s over 16 kB.
_MEMORY = 2**17  # bytes


@dataclass(frozen=True)
class PromptDomain:
    """pattern: an RE2 regular expression that matches the whole of each prompt that the checkpoint can draw, upper and
    lower case being the same. note: what to tell those who ask for something else."""

    pattern: str
    note: str

    def includes(self, prompt: str) -> bool:
        """Whether the checkpoint can draw this prompt. White space around it does not count."""
        return _compile(self.pattern).fullmatch(prompt.strip()) is not None


def read_prompt_domain(index: JsonFields) -> PromptDomain | None:
    """None if the file has neither key. Raises `CheckpointError` if it has one alone, or a value that does not fit."""
    if not (index.has("prompt_pattern") or index.has("prompt_note")):
        return None
    pattern = index.text("prompt_pattern", most=_MOST_PATTERN)
    try:
        _compile(pattern)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace")
        raise index.error("prompt_pattern", f"a regular expression that RE2 takes ({reason})", pattern) from None
    return PromptDomain(pattern, index.text("prompt_note", most=_MOST_NOTE))


def _compile(pattern: str) -> re2._Regexp:
    options = re2.Options()
    options.case_sensitive = False
    options.never_capture = True
    options.log_errors = False
    options.max_mem = _MEMORY
    return re2.compile(pattern, options)  # which keeps what it has compiled
