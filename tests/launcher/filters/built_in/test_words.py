"""The filter of words: whose lists it has, what they find and what they leave alone, and how fast."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.serve.traffic import PROMPTS
from demo.captions import prompts
from engine.errors import ArgumentError, ModerationBlockedError
from launcher.filters.built_in import words
from launcher.filters.built_in.word_list.entries import read_list
from launcher.filters.gate import Gate
from launcher.filters.loading import load
from launcher.filters.protocol import Prompt
from launcher.filters.spec import read_spec, read_specs
from tests.fresh_interpreter import modules_after

LISTS = sorted((Path(words.__file__).parent / "lists").glob("*.txt"))
LEAST_PROMPTS_A_SECOND = 1000  # of CPU time; one core of a server checks over 10,000: python -m bench.words

LONGEST_PROMPT = 16_384  # bytes: the front-end's limit
MOST_SECONDS = 3.0  # of CPU time; here 0.25


@pytest.fixture(scope="module")
def shipped() -> words.Words:
    return words.make(words.check_options("", {}), {})


@pytest.mark.parametrize(
    ("prompt", "category", "score"),
    [
        ("pornographic picture", "sexual", 1.0),
        ("a nude figure", "sexual", 0.5),
        ("a woman without any clothes", "sexual", 0.5),
        ("ein nacktes Modell", "sexual", 0.5),
        ("une femme nue", "sexual", 0.5),
        ("retrato desnudo", "sexual", 0.5),
        ("una donna nuda", "sexual", 0.5),
        ("nudez explícita", "sexual", 0.5),
        ("обнажённая натура", "sexual", 0.5),
        ("ヌード写真", "sexual", 0.5),
        ("裸体写真", "sexual", 0.5),
        ("裸體寫真", "sexual", 0.5),
        ("a sensual portrait", "sexual", 0.3),
        ("child pornography", "sexual/minors", 1.0),
        ("nude child", "sexual/minors", 1.0),
        ("nude, 17 years old", "sexual/minors", 1.0),
        ("sensual portrait, aged 15", "sexual/minors", 1.0),
        ("Kinder, nackt", "sexual/minors", 1.0),
        ("裸体,15岁", "sexual/minors", 1.0),
        ("全裸の小学生", "sexual/minors", 1.0),
        ("голый ребёнок", "sexual/minors", 1.0),
        ("a decapitated body", "violence/graphic", 1.0),
        ("blood and gore", "violence/graphic", 0.5),
        ("n.u.d.e", "sexual", 0.5),
        ("p0rn", "sexual", 1.0),
    ],
)
def test_the_lists_find(shipped: words.Words, prompt: str, category: str, score: float) -> None:
    (scores,) = shipped.check_prompts([Prompt(prompt)])
    assert scores.get(category) == score


def test_what_is_suggestive_alone_is_not_of_minors(shipped: words.Words) -> None:
    asked = [Prompt("chica de pelo negro, sexy"), Prompt("a sensual dance, C minor"), Prompt("sexy, 18 years old")]
    assert shipped.check_prompts(asked) == [{"sexual": 0.3}] * 3


@pytest.mark.parametrize(
    "prompt",
    [
        "the town sign of Scunthorpe, Essex", "Sussex, Middlesex and Wessex on an old map", "E S S E X",
        "S U S S E X", "a cocktail on a bar", "a peacock in the cockpit", "assassin in a classic grass field",
        "Penistone station", "a naked mole rat, macro", "naked-eye comet", "a naked cake with figs",
        "nude lipstick and nude heels", "a Gore-Tex jacket", "Al Gore on a stage", "yellow rape fields in May",
        "oilseed rape", "cime di rape", "G R A P E S", "B A S E M E N T", "T H E R A P Y", "sperm whale",
        "Sextant and Saxophone", "a same-sex wedding", "children playing football", "a 12-year-old girl with a kite",
        "baby blue pyjamas", "teenage mutant ninja turtles", "a child reading, ages 6 and up", "Kinder im Park",
        "des enfants sur la plage", "niños jugando", "дети играют", "sexta-feira à noite", "un nudo celta de plata",
        "góry zimą", "Ankara'ya göre", "fromage râpé", "chat à poil long", "Napoli di notte", "seguro médico",
        "Essen auf dem Tisch", "viola da gamba", "violin on a chair", "Nina's portrait", "カロリーの低いヌードル",
        "ユニセックスの服", "サセックスの海岸", "子供が公園で遊ぶ", "個性的な帽子", "白色情人节礼物", "路口交通灯",
        "出口交易会", "异性爱", "15岁的男孩在踢球", "裸露的岩石", "爱情色彩", "角色情感",
        "f/1.8, 50mm, 1girl, 8k, (masterpiece:1.2)", "3D render, t-shirt, rock'n'roll, x-ray, A-10, mp4", "!!!", "",
        "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z", "1 2 3 4 5 6 7 8 9 0", "<lora:detail:0.8>",
        "juste en dessous, des enfants jouent", "抵抗诱惑的孩子", "個性的な帽子の子供", "女性感到快乐",
        "成人向けの絵画教室の子供", "an orgy of colours, children painting", "un verre au-dessous, bébé",
        "a kind minor character in C minor", "the Rape of the Sabine Women by Giambologna", "Titian's Rape of Europa",
        "Judith Beheading Holofernes, after Caravaggio", "The Beheading of St John the Baptist, altarpiece",
        "Nude Descending a Staircase, cubist", "sex on the beach cocktail, orange slice", "a genital herpes leaflet",
        "pubic bone, X-ray", "undressed stone wall", "nackte Katze, Sphynx", "la maja desnuda de Goya",
        "rape e patate al forno", "голый король, сказка", "голый провод", "女性器具の店", "乳房检查宣传海报",
        "Botticelli's Birth of Venus with cats", "Michelangelo's David, marble", "spotted dick with custard",
        "blue tits at a feeder", "coq au vin", "breastfeeding mother, watercolour", "Lake Titicaca", "cum laude",
        "Clitheroe castle", "muscles of the arm, anatomy plate", "Khajuraho temple at sunrise", "bloody mary",
        *PROMPTS, "; ".join(PROMPTS), "\n".join(PROMPTS).upper(),
    ],
)  # fmt: skip
def test_the_lists_leave_alone(shipped: words.Words, prompt: str) -> None:
    (scores,) = shipped.check_prompts([Prompt(prompt)])
    assert scores == {}


def test_the_lists_leave_the_demos_prompts_alone(shipped: words.Words) -> None:
    asked = [Prompt(prompt.text()) for prompt in prompts(seed=0, count=300, kept_out=True)]
    assert set(map(len, shipped.check_prompts(asked))) == {0}


def test_every_list_has_the_same_categories_and_none_twice_the_same_entry() -> None:
    for file in LISTS:
        entries = list(read_list(file.stem, file.read_text()))
        categories = {(entry.category, entry.needs) for entry in entries if entry.category}
        assert categories == {
            ("sexual", None),
            ("sexual/minors", None),
            ("sexual/minors", "sexual"),
            ("violence/graphic", None),
        }
        kept = [(entry.text, entry.needs) for entry in entries]
        assert len(kept) == len(set(kept)), (file.stem, {text for text in kept if kept.count(text) > 1})


def test_a_negative_prompt_counts_only_where_the_operator_says_so(shipped: words.Words) -> None:
    prompt = Prompt("a lake", negative="p0rn, blurry")
    assert shipped.check_prompts([prompt, Prompt("a nude", negative="porn")]) == [{}, {"sexual": 0.5}]
    strict = words.make("", {"negative": "yes", "languages": "en"})
    assert strict.check_prompts([prompt, Prompt("a lake", "blurry")]) == [{"sexual": 1.0}, {}]
    both = Prompt("a nude", negative="porn, gore")
    assert strict.check_prompts([both]) == [{"sexual": 1.0, "violence/graphic": 0.5}]


def test_languages_choose_among_the_shipped_lists() -> None:
    assert [file.stem for file in LISTS] == ["de", "en", "es", "fr", "it", "ja", "pt", "ru", "zh"]
    two = words.make("", {"languages": "fr/de"})
    asked = [Prompt("une femme nue"), Prompt("nackt"), Prompt("desnuda"), Prompt("nude")]
    assert [bool(scores) for scores in two.check_prompts(asked)] == [True, True, False, False]


def test_a_file_or_a_folder_stands_for_the_shipped_lists(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("[birds]\nwalrus, 0wl")
    (tmp_path / "two.txt").write_text("lynx", encoding="utf-8-sig")
    (tmp_path / "three.md").write_text("fox")
    asked = [Prompt("walrus"), Prompt("lynx"), Prompt("fox"), Prompt("porn")]
    for value, options, expected in (
        (tmp_path / "one.txt", {}, [{"birds": 1.0}, {}, {}, {}]),
        (tmp_path, {}, [{"birds": 1.0}, {"listed": 1.0}, {}, {}]),
        (tmp_path, {"languages": "en"}, [{"birds": 1.0}, {"listed": 1.0}, {}, {"sexual": 1.0}]),
    ):
        path = words.check_options(str(value), options)
        assert words.make(path, options).check_prompts(asked) == expected


def test_the_list_in_the_documentation_is_one(tmp_path: Path) -> None:
    lines = (Path(__file__).parents[4] / "docs" / "filters.md").read_text().splitlines()
    start = lines.index("    # Entries stand between commas or lines.")
    (tmp_path / "own.txt").write_text("\n".join(lines[start : lines.index("", start)]))
    own = words.make(words.check_options(str(tmp_path), {}), {})
    asked = [Prompt("cannonball"), Prompt("a cannonball tree"), Prompt("sw0rds, 6 years old"), Prompt("a child")]
    expected: list[dict[str, float]] = [{"violence": 1.0}, {}, {"violence": 0.5, "violence/minors": 1.0}, {}]
    assert own.check_prompts(asked) == expected


def test_a_threshold_for_a_category_that_no_list_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("[birds]\nwalrus\n[fish 0.3]\ntuna\n[except]\ntuna can")
    own = f"words:{tmp_path}/own.txt"
    assert load(read_spec(f"{own},block=fish:0.3")).categories == ("birds", "fish")
    for spec, told in (
        ("words,block=sexua:0.9", r"no category 'sexua', but sexual, .*; did you mean sexual\?"),
        (f"{own},low-log=fsh:0.2", r"no category 'fsh', but birds, fish; did you mean fish\?"),
    ):
        with pytest.raises(ValueError, match=told):
            load(read_spec(spec))


def test_a_path_is_that_of_where_the_option_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my words.txt").write_text("lynx")
    monkeypatch.chdir(tmp_path)
    spec = read_spec("words:my words.txt,negative=yes,block=listed:0.5")
    assert (spec.value, spec.options) == (str(tmp_path / "my words.txt"), {"negative": "yes"})


@pytest.mark.parametrize(
    ("value", "options", "problem"),
    [
        (
            "",
            {"languages": "en/dd"},
            "languages= must be some of de/en/es/fr/it/ja/pt/ru/zh, with / between them, got 'en/dd'",
        ),
        ("", {"languages": ""}, "languages= must be some of de/en"),
        ("", {"negative": "maybe"}, "negative= must be yes or no, got 'maybe'"),
        ("none.txt", {}, "none.txt is not there, or no file"),
        ("/dev/zero", {}, "/dev/zero is not there, or no file"),
        ("empty", {}, "empty has none"),
        ("comments.txt", {}, "comments.txt has none"),
        ("latin.txt", {}, "latin.txt, line 2: a list must be UTF-8, and this line is not"),
        ("wrong.txt", {}, "wrong.txt, line 1: a category is [name]"),
        ("large.txt", {}, "its lists must be at most 16 MiB, and with"),
        ("many.txt", {}, "its lists must have at most 100 entries, and"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(
    value: str, options: Mapping[str, str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "comments.txt").write_text("# nothing\n\n[a]\n")
    (tmp_path / "latin.txt").write_bytes("lynx\nbär".encode("latin-1"))
    (tmp_path / "wrong.txt").write_text("[")
    if value == "large.txt":
        with (tmp_path / value).open("wb") as file:
            file.truncate(words.MOST_BYTES + 1)
    (tmp_path / "many.txt").write_text("{1-101} cats")
    monkeypatch.setattr(words, "MOST_ENTRIES", 100)
    with pytest.raises(ArgumentError) as caught:
        words.check_options(value, options)
    assert caught.value.parameter == "filters"
    assert caught.value.message.startswith("filter words: ")
    assert problem in caught.value.message


def test_an_unknown_option_is_answered_by_the_nearest() -> None:
    with pytest.raises(ArgumentError, match=r"has no option language=.*; did you mean languages\?"):
        read_spec("words,language=en")


def test_checking_the_options_loads_none_of_what_searches() -> None:
    (loaded,) = modules_after("from launcher.filters.built_in import words; words.check_options('', {})")
    assert not {module for module in loaded if module.startswith("launcher.filters.built_in.word_list.match")}
    assert not {"torch", "numpy"} & loaded


def test_it_is_fast(shipped: words.Words) -> None:
    asked = [Prompt(f"{prompt}, 50mm f/1.8, number {number}") for number, prompt in enumerate(PROMPTS * 4)]
    times = []
    for _ in range(5):
        start = time.process_time()
        shipped.check_prompts(asked)
        times.append(time.process_time() - start)
    assert len(asked) / min(times) > LEAST_PROMPTS_A_SECOND


@pytest.mark.parametrize(
    "piece", ["+++p*r*n{0}+++ ", "a!{0}", "a" + "!" * 16_000 + "a", "+ ", "+", "n u d e ", "a*", "a b  ", "1 ", "a|"]
)
def test_no_prompt_takes_long(shipped: words.Words, piece: str) -> None:
    pieces = map(piece.format, range(-(-LONGEST_PROMPT // len(piece.format(0)))))
    text = "".join(pieces)[:LONGEST_PROMPT] + " a b c"
    start = time.process_time()
    shipped.check_prompts([Prompt(text)])
    assert time.process_time() - start < MOST_SECONDS


def test_it_blocks_from_a_half_unless_told_otherwise() -> None:
    async def blocked() -> list[str | None]:
        gate = Gate(read_specs(["words,low-block=sexual:0.9"]), fail_open=False)
        await gate.start()
        try:
            return [await _blocked(gate, *asked) for asked in asks]
        finally:
            gate.close()

    asks = [("a nude", "auto"), ("a nude", "low"), ("p0rn", "low"), ("a sensual portrait", "auto"), ("a cat", "auto")]
    assert asyncio.run(blocked()) == ["sexual", None, "sexual", None, None]


async def _blocked(gate: Gate, text: str, moderation: str) -> str | None:
    try:
        await gate.check_prompt(Prompt(text), moderation=moderation)
    except ModerationBlockedError as error:
        return error.category
    return None
