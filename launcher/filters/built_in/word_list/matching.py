"""Finds the entries of lists in a text, whatever its disguises. Its work grows with the text, and hardly with the
lists."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from launcher.filters.built_in.word_list.entries import Entry
from launcher.filters.built_in.word_list.folding import (
    LETTERS,
    UNSPACED,
    UNSPACED_LETTER,
    WORDS,
    as_written,
    fold,
    fold_prompt,
    is_marked,
)
from launcher.filters.built_in.word_list.revealing import Revealer

_BOUND = re.compile(rf"[^\W_{UNSPACED}]{{2}}")  # within a word of a script with spaces
_HEAD = 3  # letters by which words with an open end are looked up


@dataclass(frozen=True)
class Pattern:
    """The folded words of entries that are the same. open: which of them may go on."""

    words: tuple[str, ...]
    open: tuple[bool, ...]

    def at(self, words: tuple[str, ...], start: int) -> bool:
        """Whether it begins at a word of a text."""
        if len(self.words) == 1:
            return words[start].startswith(self.words[0]) if self.open[0] else words[start] == self.words[0]
        found = words[start : start + len(self.words)]
        if found == self.words or True not in self.open or len(found) < len(self.words):
            return found == self.words
        pairs = zip(self.words, self.open, found, strict=True)
        return all(word.startswith(own) if goes_on else word == own for own, goes_on, word in pairs)


@dataclass(frozen=True)
class Found:
    """Where in a text a pattern is: from one word, or character, up to before another."""

    start: int
    end: int
    pattern: Pattern


class WordMatcher:
    """What finds entries in texts."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries: defaultdict[Pattern, list[Entry]] = defaultdict(list)
        self._as_written: set[str] = set()  # exceptions that are something else without their marks
        for entry in entries:
            if entry.category is None and is_marked(entry.text):
                self._as_written.add(as_written(entry.text))
                continue
            for pattern in _patterns(entry.text):
                self._entries[pattern].append(entry)
        self._exceptions = {p for p, entries in self._entries.items() if any(e.category is None for e in entries)}
        self._by_word: defaultdict[str, list[Pattern]] = defaultdict(list)
        self._by_head: defaultdict[str, list[Pattern]] = defaultdict(list)
        self._unspaced: defaultdict[str, list[Pattern]] = defaultdict(list)
        for pattern in self._entries:
            first = pattern.words[0]
            if UNSPACED_LETTER.search("".join(pattern.words)):
                self._unspaced[first[0]].append(pattern)
            elif pattern.open[0]:
                self._by_head[first[:_HEAD]].append(pattern)
            else:
                self._by_word[first].append(pattern)
        spaced = [p for p in self._entries if not UNSPACED_LETTER.search("".join(p.words))]
        pairs = [pair for p in spaced for pair in zip(p.words, p.open, strict=True)]
        self._revealer = Revealer(
            closed={word for word, goes_on in pairs if not goes_on},
            opened={word for word, goes_on in pairs if goes_on},
            alone={p.words[0] for p in spaced if len(p.words) == 1},
        )

    def scores(self, text: str) -> dict[str, float]:
        """By category, the highest score of an entry that the text has."""
        entries = self.find(text)
        scores: dict[str, float] = {}
        for entry in entries:
            needed = entry.needs is None or any(e.category == entry.needs and e.needs is None for e in entries)
            if needed and entry.category is not None:
                scores[entry.category] = max(entry.score, scores.get(entry.category, 0.0))
        return scores

    def find(self, text: str) -> list[Entry]:
        """The entries that a text has, exceptions left out, and what lies within them."""
        patterns: set[Pattern] = set()
        if not text.isascii() and self._as_written:
            text = self._without_exceptions(text)
        for folded in fold_prompt(text):
            words = tuple(WORDS.findall(folded))
            patterns |= self._in(folded, words)
            if (revealed := self._revealer.reveal(folded, words)) != folded:
                patterns |= self._in(revealed, tuple(WORDS.findall(revealed)))
        if not patterns:
            return []
        return [entry for pattern in patterns for entry in self._entries[pattern] if entry.category is not None]

    def _in(self, folded: str, words: tuple[str, ...]) -> set[Pattern]:
        found: list[Found] = []
        if not self._by_word.keys().isdisjoint(words):
            found += self._starting(words, self._by_word, words)
        heads = [word[:_HEAD] for word in words]
        if not self._by_head.keys().isdisjoint(heads):
            found += self._starting(words, self._by_head, heads)
        patterns = self._unexcepted(found) if found else set()
        if not folded.isascii() and not self._unspaced.keys().isdisjoint(folded):
            patterns |= self._unexcepted(list(self._substrings(folded)))
        return patterns

    @staticmethod
    def _starting(words: tuple[str, ...], index: dict[str, list[Pattern]], keys: Sequence[str]) -> Iterator[Found]:
        for start, key in enumerate(keys):
            for pattern in index.get(key, ()):
                if pattern.at(words, start):
                    yield Found(start, start + len(pattern.words), pattern)

    def _substrings(self, folded: str) -> Iterator[Found]:
        for first in self._unspaced.keys() & set(folded):
            for pattern in self._unspaced[first]:
                text, start = " ".join(pattern.words), -1
                while (start := folded.find(text, start + 1)) >= 0:
                    end = start + len(text)
                    if not _BOUND.search(folded[max(0, start - 1) : start + 1]) and not _BOUND.search(
                        folded[end - 1 : end + 1]
                    ):
                        yield Found(start, end, pattern)

    def _without_exceptions(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text)
        if self._as_written.isdisjoint(map(as_written, LETTERS.findall(text))):
            return text
        return LETTERS.sub(lambda match: "-" if as_written(match[0]) in self._as_written else match[0], text)

    def _unexcepted(self, found: list[Found]) -> set[Pattern]:
        """The patterns found anywhere but within an exception."""
        kept: set[Pattern] = set()
        excepted_to = 0
        for at in sorted(found, key=lambda at: (at.start, at.pattern not in self._exceptions)):
            if at.pattern in self._exceptions:
                excepted_to = max(excepted_to, at.end)
            elif at.end > excepted_to:
                kept.add(at.pattern)
        return kept


def _patterns(text: str) -> Iterator[Pattern]:
    """An entry's words, and a phrase also written as one word."""
    words: list[str] = []
    goes_on: list[bool] = []
    for part in text.split():
        folded = WORDS.findall(fold(part.rstrip("*")))
        words += folded
        goes_on += [False] * (len(folded) - 1) + [part.endswith("*")] if folded else []
    if words:
        yield Pattern(tuple(words), tuple(goes_on))
    if len(words) > 1:
        yield Pattern(("".join(words),), (goes_on[-1],))
