"""The filters that docs/filters.md shows do what it says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from launcher.filters.built_in import python
from launcher.filters.protocol import Picture, Prompt
from launcher.filters.spec import read_spec
from tests.docs.documents import ROOT, pieces

DOCUMENT = ROOT / "docs" / "filters.md"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put the module of the document where it can be imported, and return its name."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "my_filters.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_filters"
    sys.modules.pop("my_filters", None)


def of_colour(*colour: int) -> Picture:
    rgb = np.broadcast_to(np.array(colour, np.uint8), (24, 96, 3)).tobytes()
    return Picture(96, 24, rgb, "image", "a prompt")


def test_the_filters_of_the_document_find_and_mark(shown: str, tmp_path: Path) -> None:
    names = tmp_path / "people.txt"
    names.write_text("Jane Roe\n\nJohn Doe\n")
    people = python.make(f"{shown}:People", {"file": str(names)})
    prompts = [Prompt("a portrait of jane roe"), Prompt("a cat"), Prompt("a man", "John Doe")]
    assert people.check_prompts(prompts) == [{"person": 1.0}, {}, {"person": 1.0}]
    gore = python.make(f"{shown}:Gore", {})
    assert gore.check_images([of_colour(140, 10, 10), of_colour(20, 40, 200)]) == [{"gore": 1.0}, {"gore": 0.0}]
    plain = of_colour(20, 40, 200)
    (marked,) = python.make(f"{shown}:Label", {"text": "made up"}).mark_images([plain])
    assert len(marked) == len(plain.rgb)
    changed = np.frombuffer(marked, np.uint8) != np.frombuffer(plain.rgb, np.uint8)
    assert 0.02 < changed.mean() < 0.5


def test_the_filters_by_url_and_by_class_that_documents_give_can_be_read() -> None:
    given = [
        text
        for piece in pieces()
        for code in piece.code
        for text in re.findall(r"--filter ((?:moderation|chat|python):[^\s\\]+)", code)
    ]
    assert len(given) >= 5
    for text in given:
        read_spec(text)
