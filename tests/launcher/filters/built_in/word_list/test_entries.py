"""Lists of words: what their lines mean, and what is said of a line that means nothing."""

from __future__ import annotations

import pytest

from engine.errors import ArgumentError
from launcher.filters.built_in.word_list.entries import Entry, read_list


def test_lines_are_entries_of_the_category_above_them() -> None:
    text = """\ufeff# a comment
        first, second  # another

        [a/b 0.5]
        third*, 猫
        [c with a/b]
        fourth fifth
        [except]
        first of all
    """
    assert list(read_list("x", text)) == [
        Entry("first", "listed"),
        Entry("second", "listed"),
        Entry("third*", "a/b", 0.5),
        Entry("猫", "a/b", 0.5),
        Entry("fourth fifth", "c", 1.0, needs="a/b"),
        Entry("first of all", None),
    ]


def test_braces_are_each_of_their_choices_and_numbers() -> None:
    texts = [entry.text for entry in read_list("x", "{the|} cat{|s}\n{9-11} lives\nplain")]
    assert texts == ["the cat", "the cats", "cat", "cats", "9 lives", "10 lives", "11 lives", "plain"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("one\n[two", "line 2: a category is [name], [name 0.5] (above 0, at most 1) or [name with other], got '[two'"),
        ("[Two]", "line 1: a category is"),
        ("[two 1.5]", "line 1: a category is"),
        ("[two 0]", "line 1: a category is"),
        ("[except 0.5]", "exceptions begin with [except] alone, got '[except 0.5]'"),
        ("cat{s", "every { needs its }, and there are none within others, got 'cat{s'"),
        ("cat{{s}}", "every { needs its }"),
        ("{9-1}", "a range of numbers goes from the lower to the higher one, got '9-1'"),
        ("{1-9999}{1-9999}", "an entry may stand for at most 10000, got '{1-9999}{1-9999}'"),
        ("one, !!", "an entry has letters, got '!!'"),
        ("c*t", "* stands at the end of a word, after at least three letters, got 'c*t'"),
        ("ca*", "* stands at the end of a word"),
        ("*", "an entry has letters"),
        ("x" * 100 + "{", f"got '{'x' * 60}…'"),
    ],
)
def test_a_line_that_means_nothing_is_named(text: str, problem: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        list(read_list("my.txt", text))
    assert caught.value.parameter == "filters"
    assert caught.value.message.startswith("filter words: my.txt, line ")
    assert problem in caught.value.message
