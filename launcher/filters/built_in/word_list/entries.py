"""What a list of words says. One file a list, in UTF-8:

    [sexual]                        # a category, whose entries count 1
    porn*, x-rated                  # entries, between commas or lines; * at the end of a word: however it goes on
    [sexual 0.5]                    # a category whose entries count 0.5
    nude, nud{ity|ism|ist|ists}     # {…|…}: each of these; {1-17}: each of these numbers
    [sexual/minors with sexual]     # entries that count in a prompt in which some other entry of sexual is found
    child{|ren}, {1-17} years old
    [except]                        # what holds a listed word and is none of it
    naked mole rat{|s}

Words before any category are of the category `listed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from engine.errors import ArgumentError

MOST_ENTRIES = 200_000  # of a filter
_MOST_OF_ONE = 10_000  # entries that one with {…|…} stands for
_EXCEPT = "except"

_CATEGORY = r"[a-z0-9][a-z0-9_/-]{0,63}"
_HEADER = re.compile(rf"\[\s*({_CATEGORY})(?:\s+(\d*\.?\d+))?(?:\s+with\s+({_CATEGORY}))?\s*\]")
_CHOICES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d{1,4})-(\d{1,4})")


@dataclass(frozen=True)
class Entry:
    """A word or phrase, as the list has it. category: None for an exception. needs: the category that another entry
    must be found of."""

    text: str
    category: str | None
    score: float = 1.0
    needs: str | None = None


def read_list(name: str, text: str) -> Iterator[Entry]:
    """Read a list. Raises `ArgumentError` about filters, which names the list, its line and what is wrong."""
    category: str | None = "listed"
    score, needs = 1.0, None
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        where = f"{name}, line {number}"
        line = line.split("#", 1)[0].strip()
        if line.startswith("["):
            if (header := _HEADER.fullmatch(line)) is None or not 0 < float(header[2] or 1) <= 1:
                raise _error(where, "a category is [name], [name 0.5] (above 0, at most 1) or [name with other]", line)
            category, score, needs = header[1], float(header[2] or 1), header[3]
            if category == _EXCEPT:
                if header[2] or needs:
                    raise _error(where, "exceptions begin with [except] alone", line)
                category = None
            continue
        for part in filter(None, map(str.strip, line.split(","))):
            for entry in _expanded(where, part):
                yield Entry(_checked(where, entry), category, score, needs)


def _expanded(where: str, part: str) -> Iterator[str]:
    pieces = _CHOICES.split(part)  # what stands between the braces is at odd places
    if any(brace in piece for piece in pieces[::2] for brace in "{}"):
        raise _error(where, "every { needs its }, and there are none within others", part)
    choices = [_choices(where, piece) if at % 2 else [piece] for at, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MOST_OF_ONE:
        raise _error(where, f"an entry may stand for at most {_MOST_OF_ONE}", part)
    return ("".join(chosen).strip() for chosen in product(*choices))


def _choices(where: str, text: str) -> list[str]:
    found: list[str] = []
    for choice in text.split("|"):
        if (numbers := _NUMBERS.fullmatch(choice.strip())) is None:
            found.append(choice)
        elif int(numbers[1]) <= int(numbers[2]):
            found.extend(map(str, range(int(numbers[1]), int(numbers[2]) + 1)))
        else:
            raise _error(where, "a range of numbers goes from the lower to the higher one", choice)
    return found


def _checked(where: str, entry: str) -> str:
    if not any(map(str.isalnum, entry)):
        raise _error(where, "an entry has letters", entry)
    if any("*" in word[:-1] or len(word) in (1, 2, 3) for word in entry.split() if "*" in word):
        raise _error(where, "* stands at the end of a word, after at least three letters", entry)
    return entry


def _error(where: str, allowed: str, found: str) -> ArgumentError:
    shown = found if len(found) <= 60 else f"{found[:60]}…"
    return ArgumentError(f"filter words: {where}: {allowed}, got {shown!r}", parameter="filters")
