"""Texts as they are compared: without case, accents, widths, zero-width characters and letters of other scripts that
only look like Latin ones. Lists and prompts go through the same."""

from __future__ import annotations

import re
import unicodedata

from launcher.filters.built_in.word_list.lookalikes import GREEK_CAPITALS, READ_AS

# Scripts that are written without spaces: Thai, Lao, Myanmar, Khmer, kana, Han, and Hangul, whose words have endings.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003134f"
)
WORDS = re.compile(rf"[^\W_{UNSPACED}]+|[{UNSPACED}]+")
LETTERS = re.compile(r"[^\W\d_]+")
UNSPACED_LETTER = re.compile(f"[{UNSPACED}]")

_GREEK_CAPITAL = re.compile("[ΗΝΥΒΖΡΧ]")
_CAPITAL_I = re.compile("(?<=[a-z])I")  # which looks like a small l; read as 1, which stands for both
_MARK = re.compile("[\u0300-\u036f]")
_BORDER = re.compile(rf"(?<=[{UNSPACED}])(?=[^\W_{UNSPACED}])|(?<=[^\W_{UNSPACED}])(?=[{UNSPACED}])")


def fold(text: str) -> str:
    """Fold a text, with a space wherever a script without spaces meets another."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return _BORDER.sub(" ", unicodedata.normalize("NFC", text.translate(READ_AS)))


def fold_prompt(text: str) -> tuple[str, ...]:
    """Fold a text in the ways that it can be read: in two, if it has Greek capitals that look like other letters than
    their small ones."""
    if "I" in text:
        text = _CAPITAL_I.sub("1", text)
    if text.isascii() or _GREEK_CAPITAL.search(text := unicodedata.normalize("NFKD", text)) is None:
        return (fold(text),)
    return fold(text), fold(text.translate(GREEK_CAPITALS))


def is_marked(word: str) -> bool:
    """Whether letters of a word have accents or other marks."""
    return len(word.split()) == 1 and _MARK.search(unicodedata.normalize("NFD", word)) is not None


def as_written(word: str) -> str:
    """A word without case alone, marks and all."""
    return unicodedata.normalize("NFC", word.casefold())
