"""The project's documents, cut into pieces: paragraphs, rows of tables, and lines of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOVED_FILES = ROOT / "docs" / "moved-files.md"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "bench" / "RESULTS.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@dataclass(frozen=True)
class Piece:
    """A paragraph, a row of a table, or a line of code, whose continued lines are one."""

    file: Path
    line: int
    text: str
    is_code: bool

    def says(self, what: str) -> str:
        """What is wrong, with where."""
        return f"{self.file.relative_to(ROOT)}:{self.line}: {what}"

    @property
    def code(self) -> list[str]:
        """What is set as code: the line without its comment, or what stands between backticks."""
        if self.is_code:
            return [re.sub(r"(^|\s)#.*", "", self.text)]
        return re.findall(r"`([^`]+)`", self.text)


def pieces() -> Iterator[Piece]:
    """Of all documents; of the table of moved files not the column of old names."""
    for file in DOCUMENTS:
        for piece in _pieces(file):
            if file == MOVED_FILES and piece.text.startswith("|"):
                yield Piece(file, piece.line, piece.text.split("|", 2)[2], False)
            else:
                yield piece


def headings(file: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = [piece.text for piece in _pieces(file) if not piece.is_code and piece.text.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lstrip("# ").lower()).replace(" ", "-") for title in titles}


def _pieces(file: Path) -> Iterator[Piece]:
    fenced, paragraph, begins = False, "", 0
    for number, line in enumerate([*file.read_text().splitlines(), ""], start=1):
        if line.startswith("```"):
            fenced = not fenced
            continue
        is_code = fenced or (line.startswith("    ") and (not paragraph or paragraph.endswith("\\\n")))
        if paragraph.endswith("\\\n"):
            paragraph = paragraph[:-2] + line.strip() + "\n"
            is_code = True
        elif is_code:
            paragraph, begins = line.strip() + "\n", number
        elif line.strip() and not line.startswith(("|", "#", "- ", "<")):
            begins = begins if paragraph else number
            paragraph += line.strip() + " "
            continue
        else:
            if paragraph:
                yield Piece(file, begins, paragraph.strip(), False)
            paragraph = ""
            if line.startswith("- "):
                paragraph, begins = line[2:] + " ", number
            elif line.strip():
                yield Piece(file, number, line, False)
            continue
        if not paragraph.endswith("\\\n"):
            yield Piece(file, begins, paragraph.strip(), True)
            paragraph = ""
