"""What is found in a text: exactly the listed words where nothing is disguised, and every one in the disguises that are
known."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.filters.built_in.word_list.entries import read_list
from launcher.filters.built_in.word_list.matching import WordMatcher

# Every letter that has a disguise below, some twice in a row.
LISTED = ("walrus", "hedgehog", "jackdaw", "fox", "puffin", "quokka", "zebra", "vicuna", "mammoth", "lynx", "booby")
PHRASES = ("blue whale", "arctic tern chick", "wolf")
LISTS = f"{','.join((*LISTED, *PHRASES))}, росомаха, ひつじ, 斑马, jack*, meer* cat*"
MATCHER = WordMatcher(read_list("x", LISTS))

# By hand, and not from the table that is tested: what people write for a letter, and for one beside letters.
ALIKE = {
    "a": "аαᴀ𝐚ａⓐÀ", "b": "Ьｂ𝕓ʙВ", "c": "сｃ𝒸ᴄç", "d": "ԁｄ𝓭ᴅđ", "e": "еεｅ𝖊ᴇË", "f": "ｆ𝑓ꜰ", "g": "ɡｇ𝐠ɢğ",
    "h": "һｈ𝔥ʜ", "i": "іιｉ𝐢ıÍ", "j": "јｊ𝕛", "k": "кκｋ𝓴К", "l": "ӏｌ𝗹ł", "m": "мｍ𝓂ᴍ", "n": "пηｎ𝕟ɴñΝ𝚴",
    "o": "оοｏ𝟎øÖ", "p": "рρｐ𝚙ᴘ", "q": "ԛｑ𝐪", "r": "гｒ𝓻ʀ", "s": "ѕｓ𝘴ꜱš", "t": "тτｔ𝘁ᴛ", "u": "υｕ𝐮ᴜü", "v": "νѵｖ𝓋",
    "w": "ԝｗ𝔀ш", "x": "хχｘ𝘅", "y": "уｙ𝔂үý", "z": "ｚ𝓏ᴢž",
}  # fmt: skip
LEET = {
    "a": "4@",
    "b": "8",
    "c": "¢",
    "e": "3€",
    "g": "9",
    "i": "1!|",
    "l": "1|",
    "o": "0",
    "s": "5$",
    "t": "7+",
    "z": "2",
}
INVISIBLE = ("", "", "", "\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u0301", "\u0336", "\ufe0f")
BETWEEN = (" ", ".", "-", "_", "*", "  ", " . ", "/", "😀", ", ", "\u00a0", "\n", "·")
PLAIN = (*LISTED, "blue", "whale", "whales", "arctic", "tern", "chick", "foxes", "wolf", "jackal", "jac", "boby")
BEFORE = ("", "photo of ", "(", "im Bild: ", "12 ")
AFTER = ("", " by a lake", ", film grain", ")", ".", ":1.3) at dawn")


@st.composite
def disguises(draw: st.DrawFn) -> tuple[str, str]:
    """A listed word, and how somebody writes it."""
    word = draw(st.sampled_from(LISTED))
    kept = draw(st.integers(0, len(word) - 1))  # this letter stays one: 533 is a number
    letters: list[str] = []
    for at, letter in enumerate(word):
        form = draw(
            st.sampled_from(letter + letter.upper() + ALIKE[letter] + ("" if at == kept else LEET.get(letter, "")))
        )
        letters.append(form + draw(st.sampled_from(INVISIBLE)))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(word) - 1))
        letters[at : at + 1] = [letters[at]] * draw(st.integers(3, 5))
    return word, draw(st.sampled_from(("", *BETWEEN))).join(letters)


@settings(max_examples=300, deadline=None)
@given(disguises(), st.sampled_from(BEFORE), st.sampled_from(AFTER))
def test_every_disguise_of_a_listed_word_is_found(disguise: tuple[str, str], before: str, after: str) -> None:
    word, written = disguise
    assert word in _found(f"{before}{written}{after}")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLAIN), st.sampled_from((" ", ", ", " (", ": ", "; "))), max_size=8))
def test_what_is_not_disguised_is_found_exactly(words: list[tuple[str, str]]) -> None:
    text = "".join(map("".join, words))
    expected = {phrase for phrase in (*LISTED, *PHRASES) if re.search(rf"\b{phrase}\b".replace(" ", r"\W+"), text)}
    assert _found(text) == expected | ({"jack*"} if re.search(r"\bjack", text) else set())


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("f*x", "fox"),
        ("m*mm*th!", "mammoth"),
        ("wa1rus-f0x", "fox"),
        ("w a l r u s   h u n t", "walrus"),
        ("a w a l r u s h u n t", "walrus"),
        ("f 0 x", "fox"),
        ("a f o x", "fox"),
        ("(f o x:1.3)", "fox"),
        ("j a c k d a w 2", "jackdaw"),
        ("zeb ra z.e.b.r.a", "zebra"),
        ("wa.lr.us", "walrus"),
        ("waIrus", "walrus"),
        ("ΖΕΒRΑ", "zebra"),
        ("🆉🅴🅑🆁🅰", "zebra"),
        ("🇫🇴🇽", "fox"),
        ("bluewhale", "blue whale"),
        ("b1ue-whale", "blue whale"),
        ("blue, wha1e", "blue whale"),
        ("BLUE_WHALE", "blue whale"),
        ("b l u e w h a l e", "blue whale"),
        ("arct1c t3rn ch!ck", "arctic tern chick"),
        ("jackals", "jack*"),
        ("jackd@w", "jackdaw"),
        ("jjjackals", "jack*"),
        ("j4ck-w4lrus", "walrus"),
        ("j4ckals!", "jack*"),
        ("meerlike cats", "meer* cat*"),
        ("m33rlike c4ts", "meer* cat*"),
        ("росомаха", "росомаха"),
        ("РОСОМАХА", "росомаха"),
        ("poсomaxa", "росомаха"),
        ("р о с о м а х а", "росомаха"),
        ("p0c0маха", "росомаха"),
        ("大きなひつじの絵", "ひつじ"),
        ("ひ つ じ", "ひつじ"),
        ("ひ.つ.じ", "ひつじ"),
        ("ﾋﾂｼﾞ ひつし\u3099", "ひつじ"),
        ("两只斑马在草原", "斑马"),
        ("斑*马", "斑马"),
        ("画f0x画", "fox"),
    ],
)
def test_these_are_found(text: str, word: str) -> None:
    assert word in _found(text)


@pytest.mark.parametrize(
    "text",
    [
        "walruses", "foxes", "a lynxes' den", "refox", "boby", "boobyy", "foox", "f o x y", "S E R F O X E N", "z e b",
        "533 70 4.3 1/8 8k", "blue sky, whale", "whale blue", "jac", "kill joy", "斑 黑马", "白斑,马群", "白斑、马",
        "ひつし", "meer a cat", "", " ", "!!!", "a b c d e f g", "\u200b",
    ],
)  # fmt: skip
def test_these_are_not_listed(text: str) -> None:
    assert not _found(text)


def test_a_score_is_the_highest_of_its_category() -> None:
    matcher = WordMatcher(read_list("x", "[a 0.5]\nfox, lynx\n[a]\nlynx, owl\n[b 0.25]\nlynx"))
    assert matcher.scores("a fox") == {"a": 0.5}
    assert matcher.scores("a fox, a lynx") == {"a": 1.0, "b": 0.25}
    assert matcher.scores("a hen") == {}


def test_some_entries_need_one_of_another_category_which_does_not_itself_need_one() -> None:
    matcher = WordMatcher(read_list("x", "[a 0.5]\nfox\n[b with a]\nhen\n[c with b]\nowl"))
    assert matcher.scores("a hen and an owl") == {}
    assert matcher.scores("a fox") == {"a": 0.5}
    assert matcher.scores("a hen, an owl, a f0x") == {"a": 0.5, "b": 1.0}


def test_an_exception_takes_out_what_lies_within_it_there_alone() -> None:
    matcher = WordMatcher(read_list("x", "fox, 斑马, 马\n[except]\nfox glove{|s}, 斑马线, föx, grey fox"))
    for text in ("fox gloves", "foxgloves", "Fox-Glove", "F O X G L O V E", "一条斑马线", "FÖX", "fo\u0308x"):
        assert matcher.scores(text) == {}, text
    for text in ("fox glove and fox", "a fox, glove", "斑马线斑马", "fȯx", "f0x", "grey fox fox"):
        found = {} if text == "a fox, glove" else {"listed": 1.0}
        assert matcher.scores(text) == found, text


def test_numbers_and_formulas_are_no_words() -> None:
    matcher = WordMatcher(read_list("x", "sos, bosh, sax"))
    for text in ("| 505 | 5.0.5 |", "5 0 5, 1 0 1 1", "5*x**2 + 3"):
        assert matcher.scores(text) == {}, text
    assert matcher.scores("5os, s.0.s") == {"listed": 1.0}


def test_a_digit_before_a_listed_number_is_another_number() -> None:
    matcher = WordMatcher(read_list("x", "{1-9}岁, {1-9} years"))
    assert matcher.scores("5岁的猫 5 years") == {"listed": 1.0}
    assert matcher.scores("15岁的猫, 15 years") == {}


def test_digits_at_the_ends_of_a_word_leave_it_the_word_that_it_is() -> None:
    matcher = WordMatcher(read_list("x", "[a]\nsosban, fox\n[b]\nold foxi*\n[c]\n{1-17} years"))
    for text in ("fox1", "1fox", "f0x99", "2024fox7", "sosban3"):  # of which 1 may be an i, too
        assert matcher.scores(text) == {"a": 1.0}, text
    assert matcher.scores("old foxi1") == {"b": 1.0}
    assert matcher.scores("9years") == {"c": 1.0}
    for text in ("foxes1", "outfox1", "19years", "mp3, h264, 35mm, 4k"):
        assert matcher.scores(text) == {}, text


def _found(text: str) -> set[str]:
    return {entry.text for entry in MATCHER.find(text)}
