"""A filter of words: `words[:FILE_OR_FOLDER][,languages=en/de][,negative=yes]`.

Its own lists, unless a file or a folder of `*.txt` files is given, which stands for them; with languages beside it both
count. Negative prompts name what must not be drawn, as in "nsfw, nude, lowres", so that they count only where that is
asked for. `word_list/entries.py` says what a list looks like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from engine.errors import ArgumentError
from launcher.filters.built_in.word_list.entries import MOST_ENTRIES, Entry, read_list
from launcher.filters.protocol import Prompt, Scores
from launcher.filters.spec import is_yes, meant, wrong

OPTIONS = ("languages", "negative")
_NAME = "words"
MOST_BYTES = 16 * 2**20  # of all lists of a filter

_LISTS = Path(__file__).parent / "lists"


def check_options(value: str, options: Mapping[str, str]) -> str:
    """Read the lists, and raise `ArgumentError` where they cannot be, or where an option is wrong. Returns the absolute
    path of the operator's file or folder, or ""."""
    path = str(Path(value).expanduser().absolute()) if value else ""
    is_yes(_NAME, options, "negative")
    for _ in _entries(path, options):
        pass
    return path


def make(value: str, options: Mapping[str, str]) -> Words:
    """Make the filter, in its process. Raises as `check_options` does."""
    return Words(_entries(value, options), negative=is_yes(_NAME, options, "negative"))


class Words:
    """Gives a prompt, by category, the highest score of the listed words in it.

    categories: those of the lists. negative: whether the negative prompt counts, too, as a text of its own.
    """

    def __init__(self, entries: Iterator[Entry], *, negative: bool) -> None:
        from launcher.filters.built_in.word_list.matching import WordMatcher

        categories: dict[str, None] = {}

        def noted() -> Iterator[Entry]:
            for entry in entries:
                if entry.category is not None:
                    categories[entry.category] = None
                yield entry

        self._matcher = WordMatcher(noted())
        self.categories = tuple(categories)
        self._negative = negative

    def check_prompts(self, prompts: Sequence[Prompt]) -> Sequence[Scores]:
        """Return the scores of each prompt."""
        return [self._scores(prompt) for prompt in prompts]

    def _scores(self, prompt: Prompt) -> Scores:
        scores = self._matcher.scores(prompt.text)
        if self._negative and prompt.negative:
            for category, score in self._matcher.scores(prompt.negative).items():
                scores[category] = max(score, scores.get(category, 0.0))
        return scores


def _entries(path: str, options: Mapping[str, str]) -> Iterator[Entry]:
    files = _own_lists(options.get("languages"), given=bool(path))
    if path:
        files += _files(Path(path))
    bytes_left, count = MOST_BYTES, 0
    for file in files:
        text, size = _read(file, bytes_left)
        bytes_left -= size
        for entry in read_list(str(file) if file.parent != _LISTS else f"the list {file.stem}", text):
            count += 1
            if count > MOST_ENTRIES:
                raise wrong(_NAME, f"its lists must have at most {MOST_ENTRIES} entries, and {file} has one more")
            yield entry
    if not count:
        raise wrong(_NAME, f"its value must be a file or folder of lists with entries, and {path} has none")


def _own_lists(languages: str | None, *, given: bool) -> list[Path]:
    if languages is None:
        return [] if given else sorted(_LISTS.glob("*.txt"))
    known = {file.stem: file for file in sorted(_LISTS.glob("*.txt"))}
    for language in languages.split("/"):
        if language not in known:
            allowed = f"some of {'/'.join(known)}, with / between them"
            raise wrong(_NAME, f"{ArgumentError.of('languages=', allowed, languages).message}{meant(language, known)}")
    return [file for language, file in known.items() if language in languages.split("/")]


def _files(path: Path) -> list[Path]:
    try:
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    except OSError as error:
        raise wrong(_NAME, f"{path} cannot be read: {error.strerror or error}") from None
    if not files:
        raise wrong(_NAME, f"its value must be a file or a folder of *.txt files, and {path} has none")
    return files


def _read(file: Path, most: int) -> tuple[str, int]:
    try:
        if not file.is_file():  # a pipe might be read for ever
            raise wrong(
                _NAME, f"its value must be a file or a folder of *.txt files, and {file} is not there, or no file"
            )
        with file.open("rb") as opened:
            data = opened.read(most + 1)
    except OSError as error:
        raise wrong(_NAME, f"{file} cannot be read: {error.strerror or error}") from None
    if len(data) > most:
        raise wrong(_NAME, f"its lists must be at most {MOST_BYTES // 2**20} MiB, and with {file} they are more")
    try:
        return data.decode(), len(data)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise wrong(_NAME, f"{file}, line {line}: a list must be UTF-8, and this line is not") from None
