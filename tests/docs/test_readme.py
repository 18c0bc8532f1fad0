"""The README is short, its figures are those of docs/benchmarks.md, and the index lists every document."""

from __future__ import annotations

import re

from tests.docs.documents import ROOT

README = (ROOT / "README.md").read_text()


def test_it_is_read_in_one_sitting() -> None:
    assert len(README.encode()) <= 8192


def test_its_figures_are_those_of_the_benchmarks() -> None:
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| `([^`]+)` \|$", README, re.MULTILINE)
    assert len(rows) >= 3
    benchmarks = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())
    for measured, command in rows:
        assert command.removeprefix(".venv/bin/pytest ") in benchmarks
        for figure in re.findall(r"[\d.]+(?:e-\d+|×| s)?", measured):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}", benchmarks), f"{figure} of {command}"


def test_the_index_lists_every_document() -> None:
    listed = set(re.findall(r"^- \[([\w-]+\.md)\]", (ROOT / "docs" / "README.md").read_text(), re.MULTILINE))
    assert {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed
