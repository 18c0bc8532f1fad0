"""The prompts that the demo models know: coloured shapes, with sizes, places, relations and numbers.

    a large red circle at the left on a blue background       one object, size and place optional
    a red circle above a green star on a white background     two objects and where the first is
    three yellow hearts on a black background                 some of a kind

One tenth of all prompts, picked by a hash of their text, is kept out of training: `held_out`.
"""

import hashlib
import random
import re
from dataclasses import dataclass

COLOURS = (
    "red",
    "green",
    "blue",
    "yellow",
    "orange",
    "purple",
    "pink",
    "cyan",
    "white",
    "black",
    "brown",
    "gray",
)
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
SIZES = ("small", "large")
PLACES = ("left", "right", "top", "bottom")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {"two": 2, "three": 3}


@dataclass(frozen=True)
class Kind:
    """A colour and a shape."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Prompt:
    """What a prompt asks for. An empty string, or no second kind: it says nothing about that.

    count: how many objects of the first kind, 1 to 3. size, place: of a single object. relation: where the first
    object is, seen from the second, if there is one.
    """

    background: str
    first: Kind
    count: int = 1
    size: str = ""
    place: str = ""
    relation: str = ""
    second: Kind | None = None

    @property
    def objects(self) -> tuple[Kind, ...]:
        """Every object of the picture, in the order of the prompt."""
        return (self.first,) * self.count + ((self.second,) if self.second else ())

    def text(self) -> str:
        on = f"on {_article(self.background)} background"
        if self.count > 1:
            number = next(word for word, count in NUMBERS.items() if count == self.count)
            return f"{number} {self.first.colour} {_plural(self.first.shape)} {on}"
        first = f"{self.first.colour} {self.first.shape}"
        if self.second is not None:
            second = f"{self.second.colour} {self.second.shape}"
            return f"{_article(first)} {self.relation} {_article(second)} {on}"
        sized = f"{self.size} {first}" if self.size else first
        return f"{_article(sized)} {f'at the {self.place} ' if self.place else ''}{on}"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _any(words: tuple[str, ...]) -> str:
    return "|".join(words)


# Every word of a prompt: checkpoints carry them (`prompt_words` in model_index.json), so that an engine can tell its
# users what they cannot draw.
WORDS = frozenset(
    word
    for words in (
        *(COLOURS, SIZES, PLACES, RELATIONS, tuple(NUMBERS), SHAPES, tuple(_plural(shape) for shape in SHAPES)),
        ("a", "an", "at", "the", "on", "background"),
    )
    for phrase in words
    for word in phrase.split()
)

# The whole grammar: what `Prompt.text` writes, in any case, with or without a full stop.
PATTERN = (
    rf"(?:an? (?:(?P<size>{_any(SIZES)}) )?(?P<colour>{_any(COLOURS)}) (?P<shape>{_any(SHAPES)})"
    rf"(?: at the (?P<place>{_any(PLACES)}))?"
    rf"|an? (?P<colour_1>{_any(COLOURS)}) (?P<shape_1>{_any(SHAPES)}) (?P<relation>{_any(RELATIONS)})"
    rf" an? (?P<colour_2>{_any(COLOURS)}) (?P<shape_2>{_any(SHAPES)})"
    rf"|(?P<number>{_any(tuple(NUMBERS))}) (?P<colours>{_any(COLOURS)}) (?P<shapes>{_any(SHAPES)})(?:e?s))"
    rf" on an? (?P<background>{_any(COLOURS)}) background\.?"
)


def parse(text: str) -> Prompt | None:
    """The prompt that says this; None if it is none of the grammar's."""
    found = re.fullmatch(PATTERN, text.strip().lower())
    if found is None:
        return None
    if found["number"]:
        return Prompt(found["background"], Kind(found["colours"], found["shapes"]), NUMBERS[found["number"]])
    if found["relation"]:
        first, second = Kind(found["colour_1"], found["shape_1"]), Kind(found["colour_2"], found["shape_2"])
        return Prompt(found["background"], first, relation=found["relation"], second=second)
    first = Kind(found["colour"], found["shape"])
    return Prompt(found["background"], first, size=found["size"] or "", place=found["place"] or "")


def random_prompt(source: random.Random) -> Prompt:
    """Any prompt of the grammar: four in ten of one object, four of two kinds, two of some of a kind. Colours that
    meet in a picture differ."""
    background, colour, other = source.sample(COLOURS, 3)
    first = Kind(colour, source.choice(SHAPES))
    lot = source.random()
    if lot < 0.4:
        size, place = source.choice(("", *SIZES)), source.choice(("", *PLACES))
        return Prompt(background, first, size=size, place=place)
    if lot < 0.8:
        second = Kind(other, source.choice(SHAPES))
        return Prompt(background, first, relation=source.choice(RELATIONS), second=second)
    return Prompt(background, first, count=source.choice(tuple(NUMBERS.values())))


def held_out(prompt: Prompt) -> bool:
    """Whether training never sees this prompt."""
    return hashlib.sha256(prompt.text().encode()).digest()[0] % 10 == 0


def prompts(seed: int, count: int, *, kept_out: bool) -> list[Prompt]:
    """Random prompts, all kept out of training or all of it. Those kept out are all different."""
    source = random.Random(seed)
    chosen: dict[Prompt, None] = {}
    repeated: list[Prompt] = []
    while len(chosen if kept_out else repeated) < count:
        prompt = random_prompt(source)
        if held_out(prompt) != kept_out:
            continue
        chosen[prompt] = None
        repeated.append(prompt)
    return list(chosen) if kept_out else repeated
