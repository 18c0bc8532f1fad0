"""How a written word may be read: digits and symbols for letters, letters that are repeated, spaced or starred out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby, product

from launcher.filters.built_in.word_list.folding import UNSPACED
from launcher.filters.built_in.word_list.lookalikes import LEET_SYMBOLS, WRITTEN_FOR

Runs = tuple[str, tuple[int, ...]]  # the letters of a word, and how often each stands there

CHUNKS = re.compile(r'[^\s,;:()\[\]{}<>"/\\]+')  # between them no word goes on
_SYMBOL = f"[{re.escape(LEET_SYMBOLS)}]"
_GAP = rf"(?:[^\w{re.escape(LEET_SYMBOLS)}]|_)"
SPACED = re.compile(  # letters that each stand alone, with anything between them; symbols for letters also at the ends
    rf"(?:(?<![^\W_])(?:{_SYMBOL}{_GAP}{{1,24}}){{1,3}})?"
    r"(?<![^\W_])[^\W_](?:[\W_]{1,24}[^\W_](?![^\W_]))+"
    rf"(?:(?:{_GAP}{{1,24}}{_SYMBOL}){{1,3}}(?![^\W_]))?"
)
MAY_BE_SPACED = re.compile(r" \w \w(?= )")  # in words with a space around each
LEAST_REPEATS = 3  # of a letter that is written more often than it is spelled
REPEATED = re.compile(r"([^\W\d_])\1\1")

_JOINS = r"[-_.*'’`~^=+·•|]+"  # what may stand between letters of one word, where sentences have none of it
_JOIN = re.compile(_JOINS)
_UNSPACED_JOINED = re.compile(rf"(?<=[{UNSPACED}]){_JOINS}(?=[{UNSPACED}])")
_BEFORE_SPACED = re.compile(rf"^[\da]{_GAP}+")
_AFTER_SPACED = re.compile(rf"{_GAP}+\d$")
_GAPS = re.compile(r"[\W_]+")
_NO_LETTERS = re.compile(r"[\W_]")
_NOT_READ = re.compile(_GAP)
_STAR = re.compile(r"(?<=[^\W\d_])\*(?=[^\W\d_])")
_LEET = re.compile(_SYMBOL)
_TWICE = re.compile(r"(.)\1")
_MOST_AT_ENDS = 2  # symbols at one end of a word of which some may be letters
_MOST_STARS = 2
_MOST_BESIDE = 2  # articles and digits on each side of spaced letters


def is_plain(chunk: str) -> bool:
    """Whether a chunk is a word of letters alone, whatever marks around it, or has no letter at all."""
    core = chunk.strip(".?'’`*_-~^=“”„‘…!")
    return (core.isalpha() and not chunk.endswith("!")) or not any(map(str.isalpha, core))


def readings(chunk: str) -> Iterator[str]:
    """The words of letters that a chunk can be read as. Not every one is new."""
    yield as_letters(_NO_LETTERS.sub("", chunk))
    if "*" in chunk:
        for unstarred in _unstarred(chunk):
            yield as_letters(_NO_LETTERS.sub("", unstarred))
    if _LEET.search(chunk) is None:
        return
    chunk = _trimmed(chunk)
    start, end = len(chunk) - len(chunk.lstrip(LEET_SYMBOLS)), len(chunk.rstrip(LEET_SYMBOLS))
    inner = chunk[start:end]
    fronts = {chunk[start - n : start] for n in range(min(start, _MOST_AT_ENDS) + 1)}
    backs = {chunk[end : end + n] for n in range(_MOST_AT_ENDS + 1)}
    for form in {_NOT_READ.sub("", inner), _NO_LETTERS.sub("", inner)}:
        yield from (as_letters(f"{front}{form}{back}") for front in fronts for back in backs)


def parts(chunk: str) -> list[str]:
    """The words that a chunk may be made of."""
    return [part for part in _JOIN.split(chunk) if part]


def as_letters(text: str) -> str:
    """Digits and symbols as the letters that they stand for, and l as i, which 1 stands for both of."""
    return text.translate(WRITTEN_FOR)


def without_joins(chunk: str) -> str:
    """Close the gaps between letters of scripts without spaces."""
    return _UNSPACED_JOINED.sub("", chunk)


def spaced_words(text: str) -> Iterator[str]:
    """What spaced letters may spell: one word, with an article or digits beside it or without, and words between gaps
    that are wider than others."""
    for start in _shorter(text, _BEFORE_SPACED):
        yield from _shorter(start, _AFTER_SPACED)
    gaps = {len(gap) for gap in _GAPS.findall(text.strip())}
    if len(gaps) > 1:
        yield from re.split(rf"[\W_]{{{min(gaps) + 1},}}", text.strip())


def runs(word: str) -> Runs:
    """Take the repetitions of letters out of a word, and say what they were."""
    if _TWICE.search(word) is None:
        return word, (1,) * len(word)
    grouped = [(letter, len(list(group))) for letter, group in groupby(word)]
    return "".join(letter for letter, _ in grouped), tuple(count for _, count in grouped)


def repeats(found: tuple[int, ...], listed: tuple[int, ...]) -> bool:
    """Whether a word is a listed one, with letters repeated at least that often."""
    return all(f == n or f >= max(LEAST_REPEATS, n) for f, n in zip(found, listed, strict=True))


def _shorter(text: str, cut: re.Pattern[str]) -> Iterator[str]:
    yield text
    for _ in range(_MOST_BESIDE):
        if (rest := cut.sub("", text)) == text:
            return
        yield (text := rest)


def _trimmed(chunk: str) -> str:
    start, end = 0, len(chunk)
    while start < end and not (chunk[start].isalnum() or chunk[start] in LEET_SYMBOLS):
        start += 1
    while end > start and not (chunk[end - 1].isalnum() or chunk[end - 1] in LEET_SYMBOLS):
        end -= 1
    return chunk[start:end]


def _unstarred(text: str) -> Iterator[str]:
    pieces = _STAR.split(text)
    if 2 <= len(pieces) <= _MOST_STARS + 1:
        for vowels in product("aeiou", repeat=len(pieces) - 1):
            yield "".join(piece for pair in zip(pieces, (*vowels, ""), strict=True) for piece in pair)
