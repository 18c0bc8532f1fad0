"""Writes a text's disguised words of lists as the lists have them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from operator import mul
from string import digits

from launcher.filters.built_in.word_list.disguises import (
    CHUNKS,
    LEAST_REPEATS,
    MAY_BE_SPACED,
    REPEATED,
    SPACED,
    Runs,
    as_letters,
    is_plain,
    parts,
    readings,
    repeats,
    runs,
    spaced_words,
    without_joins,
)
from launcher.filters.built_in.word_list.folding import UNSPACED_LETTER

_SHORTEST = 3  # letters of a word that is looked for in disguise
_SHORTEST_WITHIN = 4  # letters of a word that is looked for among spaced letters that are more than it
_ARTICLES = ("an", "a", "the")  # with which they may begin


class Revealer:
    """Knows the folded words of lists: closed ones, and opened ones, which may go on. alone: those that are an entry by
    themselves."""

    def __init__(self, closed: Iterable[str], opened: Iterable[str], alone: Collection[str]) -> None:
        self._closed: defaultdict[str, list[tuple[Runs, str]]] = defaultdict(list)
        self._open: defaultdict[str, list[tuple[Runs, str]]] = defaultdict(list)
        self._within: dict[str, str] = {}  # by how it is looked for
        for index, words in ((self._closed, closed), (self._open, opened)):
            for word in filter(str.isalpha, words):
                key = as_letters(word)
                letters, counts = runs(key)
                if len(key) >= _SHORTEST:
                    index[letters if index is self._closed else letters[:_SHORTEST]].append(((letters, counts), word))
                if len(key) >= _SHORTEST_WITHIN and word in alone:
                    self._within[key] = word
        self._longest = max(map(len, self._within), default=0)
        self._open_lengths = sorted({len(letters) for letters in self._open})

    def reveal(self, folded: str, words: Iterable[str]) -> str:
        """Reveal what of a text is a listed word in disguise. words: its words."""
        if MAY_BE_SPACED.search(f" {' '.join(words)} "):
            folded = SPACED.sub(self._spaced, folded)
        known: dict[str, str] = {}
        repeated = REPEATED.search(folded) is not None
        for chunk in CHUNKS.findall(folded):
            if chunk.isalpha() and not (repeated and REPEATED.search(chunk)):
                continue
            if chunk not in known and (not is_plain(chunk) or repeated):
                known[chunk] = self._chunk(chunk)
        if all(chunk == word for chunk, word in known.items()):
            return folded
        return CHUNKS.sub(lambda match: known.get(match[0], match[0]), folded)

    def _chunk(self, chunk: str) -> str:
        """The listed words that a chunk can be read as: one, and those of its parts."""
        if UNSPACED_LETTER.search(chunk):
            return without_joins(chunk)
        word, pieces = self._written(chunk), parts(chunk)
        known = [piece if piece.isalpha() else self._written(piece) or piece for piece in pieces]
        if len(pieces) < 2 or known == pieces:
            return word or chunk
        return " ".join([*filter(None, [word]), *known])

    def _written(self, chunk: str) -> str | None:
        """The listed word that a chunk can be read as; one that it is, rather than one that it begins with."""
        read = dict.fromkeys(readings(chunk))
        whole = next(filter(None, map(self._whole, read)), None) or self._between_digits(chunk)
        return whole or next(filter(None, map(self._begun, read)), None)

    def _between_digits(self, chunk: str) -> str | None:
        """The listed word that a chunk is between the digits that it begins or ends with, which are kept beside it."""
        core = chunk.strip(digits)
        if core == chunk or len(core) < _SHORTEST:
            return None
        read = [as_letters(core)] if core.isalpha() else dict.fromkeys(readings(core))
        word = next(filter(None, map(self._whole, read)), None)
        if word is None:
            return None
        before, _, after = chunk.partition(core)
        return f"{before} {word} {after}".strip()

    def _word(self, reading: str) -> str | None:
        """The listed word that a reading is, or begins with, in letters as `as_letters` has them."""
        return self._whole(reading) or self._begun(reading)

    def _whole(self, reading: str) -> str | None:
        if len(reading) < _SHORTEST:
            return None
        letters, counts = runs(reading)
        return next((word for (_, listed), word in self._closed.get(letters, ()) if repeats(counts, listed)), None)

    def _begun(self, reading: str) -> str | None:
        if len(reading) < _SHORTEST:
            return None
        letters, counts = runs(reading)
        for length in self._open_lengths:
            for (listed_letters, listed), word in self._open.get(letters[:length], ()):
                n = len(listed)
                if letters[:n] != listed_letters or counts[n - 1] < listed[-1]:
                    continue
                if repeats(counts[: n - 1], listed[: n - 1]):
                    more = counts[n - 1] - listed[-1]
                    rest = [letters[n - 1] * (more if counts[n - 1] < LEAST_REPEATS else 0)]
                    return word + "".join([*rest, *map(mul, letters[n:], counts[n:])])
        return None

    def _spaced(self, match: re.Match[str]) -> str:
        """The listed words that spaced letters spell, or that what they spell begins with."""
        if not any(map(str.isalpha, match[0])):
            return match[0]
        found: dict[str, None] = {}
        for spelled in dict.fromkeys(spaced_words(match[0])):
            for reading in dict.fromkeys(readings("".join(spelled.split()))):
                found |= dict.fromkeys(filter(None, (self._word(reading), self._segments(reading))))
        if found:
            return f" {' '.join(found)} "
        if UNSPACED_LETTER.search(match[0]):
            return "".join(filter(str.isalnum, match[0]))
        return match[0]

    def _segments(self, letters: str) -> str | None:
        """The listed words, the longest first, that letters begin with, and what follows."""
        words: list[str] = []
        article = next((len(article) for article in _ARTICLES if letters.startswith(article)), 0)
        for at in (0, article):
            while (word := self._longest_at(letters, at)) is not None:
                words.append(self._within[word])
                at += len(word)
            if words:
                return " ".join([*words, f"0{letters[at:]}"])  # by the digit no word of a list
        return None

    def _longest_at(self, letters: str, at: int) -> str | None:
        lengths = range(min(self._longest, len(letters) - at), _SHORTEST_WITHIN - 1, -1)
        return next((part for n in lengths if (part := letters[at : at + n]) in self._within), None)
