"""How many prompts a second the filter of words checks, with the lists that come with it.

    python -m bench.words [--seconds N] [--languages en/de] [--json F]

Each row is another kind of prompts: as people write them, with numbers and camera settings, in Russian and in Chinese,
with a listed word in each of them, disguised; one of 16 KiB; and the slowest known, 16 KiB made to be slow. One process
and one core; a rate is that of the fastest of several rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.measure.arguments import duration, end_with, json_file
from bench.measure.output import note, print_table, publish
from bench.serve.traffic import PROMPTS
from engine.errors import ArgumentError
from launcher.filters.built_in import words
from launcher.filters.protocol import Prompt

LONGEST = 16_384  # bytes, the front-end's limit
SETTINGS = ("50mm f/1.8", "8k, (masterpiece:1.2)", "ISO 100, 1/250 s", "it's well-lit, 3/4 view", "1girl, t-shirt")
RUSSIAN = ("лиса на снегу, масло, холст", "маяк в шторм, вид с моря, длинная выдержка", "портрет старого рыбака")
CHINESE = ("雪地里的狐狸,油画", "暴风雨中的灯塔,从海上看,长曝光", "老渔夫的肖像,自然光,胶片颗粒")
DISGUISED = ("n.u.d.e", "p0rn", "n u d e", "nuuude", "𝓷𝓾𝓭𝓮", "nu\u200bde")


@dataclass(frozen=True)
class Result:
    """prompts of a round have so many characters together. found: prompts with a listed word."""

    kind: str
    prompts: int
    characters: int
    found: int
    prompts_a_second: float
    microseconds: float  # a prompt


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.words", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=duration, default=2.0, help="for each kind of prompts")
    parser.add_argument("--languages", help="of the lists, with / between them; else all")
    parser.add_argument("--json", type=json_file, help="add the results to this file")
    options = parser.parse_args(arguments)
    own = {"languages": options.languages} if options.languages else {}
    try:
        checker = words.make(words.check_options("", own), own)
    except ArgumentError as error:
        note(f"error: {error.message}")
        return error.exit_code
    results = [_measure(checker, kind, texts, options.seconds) for kind, texts in _kinds().items()]
    header = ("prompts", "characters", "with a word", "prompts/s", "µs a prompt")
    rows = [
        (
            result.kind,
            f"{result.characters / result.prompts:.0f}",
            f"{result.found} of {result.prompts}",
            f"{result.prompts_a_second:,.0f}",
            f"{result.microseconds:.1f}",
        )
        for result in results
    ]
    print_table(header, rows)
    for result in results:
        publish("words", asdict(result), options.json)
    return 0


def _kinds() -> dict[str, list[str]]:
    plain = [f"{prompt}, {other}" for prompt in PROMPTS for other in PROMPTS if other != prompt]
    slow = " ".join(f"+++p*r*n{number}+++" for number in range(LONGEST))
    return {
        "plain": plain,
        "with settings": [f"{prompt}, {SETTINGS[number % len(SETTINGS)]}" for number, prompt in enumerate(plain)],
        "russian": [f"{prompt}, {other}" for prompt in RUSSIAN for other in RUSSIAN],
        "chinese": [f"{prompt},{other}" for prompt in CHINESE for other in CHINESE],
        "disguised": [f"{prompt}, {DISGUISED[number % len(DISGUISED)]}" for number, prompt in enumerate(plain)],
        "16 KiB": [", ".join(plain * 10)[:LONGEST]],
        "16 KiB, slowest": [slow[:LONGEST]],
    }


def _measure(checker: words.Words, kind: str, texts: list[str], seconds: float) -> Result:
    prompts = [Prompt(text) for text in texts]
    found = sum(map(bool, checker.check_prompts(prompts)))
    end, fastest = time.perf_counter() + seconds, float("inf")
    while fastest == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        checker.check_prompts(prompts)
        fastest = min(fastest, time.perf_counter() - start)
    each = fastest / len(prompts)
    return Result(kind, len(prompts), sum(map(len, texts)), found, 1 / each, each * 1e6)


if __name__ == "__main__":
    end_with(main)
