"""Does the model draw what prompts ask for? Pictures of the demo's held-out prompts, judged from their pixels alone.

    python -m bench.adherence [--model demo] [--prompts 500] [--fail-under 0.6] [--sheet FILE.png] [--json FILE]
    python -m bench.adherence --table [--prompts 100] [--sheet FILE.png] [--json FILE]
    python -m bench.adherence --table cache [--model demo-raw] [--prompts 500] [--ways WAY …] [--sheet FILE.png] …
    python -m bench.adherence --task inpaint|img2img [--prompts 200] [--strength 1] [--sheet FILE.png] [--json FILE]

Prompts that training never saw, each with a seed of its own, at the sizes of training in turn unless `--width` and
`--height` are given; the first N are the same whatever `--prompts` is. `demo/judge.py` says which of the things that a
prompt states are so in its picture. Shares of right pictures come with 95 % intervals, for every attribute over the
prompts that state it, and by size and by kind of prompt for pictures in which all is right; every wrong one comes with
what it takes to draw it again. Ends with 1 if all is right in a smaller share of the pictures than `--fail-under`,
which can be of single attributes too: `--fail-under 0.3 background=0.9`.

`--table` draws the same pictures in other ways: one choice of steps, guidance, dtype, quantisation or attention backend
is changed at a time, the others staying as the options say; lost and gained are pictures that were right as given and
are no longer, and the other way round. What does not run here is left out, with the reason.

`--table cache` draws them with steps saved in several ways, each part of the prompts by all ways in turn: how many of
the transformer's blocks were run, how much faster that was, and how like the pictures are to those with nothing saved.
Beside it what the same decisions would save of 28 blocks and 52 steps (of Turbo, 8), and what that would take on an
H200, reckoned from a step that was measured there.

`--task inpaint` has one of two objects that the renderer drew repainted, `--task img2img` the colour of one changed:
`bench/adherence/edits.py` says what is right. A shape is if it can be told; how many are clean is told beside it.

`--sheet` is a contact sheet of the first pictures, with `--table` a row for each choice under the renderer's pictures
of the same prompts; `--wrong-sheet` is one of the first wrong pictures. Wrong ones have a red frame.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from bench.adherence import cache_table, tasks
from bench.adherence.contact_sheet import Tile, contact_sheet
from bench.adherence.drawing import Drawn, Engine, Way, draw_ways
from bench.adherence.options import BAR, PROMPTS, TABLE_PROMPTS, parse
from bench.adherence.rates import (
    ALL,
    CONFIDENCE,
    Case,
    Judged,
    Rate,
    describe,
    held_out_cases,
    rates_by,
    rates_by_attribute,
    results_of,
)
from bench.measure.arguments import end_with
from bench.measure.output import append_json, print_table
from demo.judge import ATTRIBUTES
from demo.pictures import draw as render
from engine.config.engine_config import ATTENTIONS
from engine.errors import ArgumentError, Krea2Error

CHOICES: dict[str, tuple[Any, ...]] = {
    "steps": (2, 4, 6, 8, 12, 16),
    "guidance": (0.0, 1.0, 2.0, 3.5, 5.0),
    "dtype": ("float32", "bfloat16"),
    "quantization": ("fp8", "int8"),
    "attention": tuple(backend for backend in ATTENTIONS if backend != "auto"),
}
SHEET_PICTURES, SHEET_COLUMNS, TABLE_COLUMNS = 36, 6, 8
SHOWN_WRONG = 20


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments, (__doc__ or "").split("\n")[0])
    size = None if options.width is None else (options.width, options.height)
    engine = Engine(options.model, options.tp, options.device, options.dtype, options.quantization, options.attention)
    way = Way("as given", engine, options.steps, options.guidance)
    run, count = (_table, TABLE_PROMPTS) if options.table else (_gate, PROMPTS)
    try:
        if options.task is not None:
            return _task(engine, options)
        if options.table == "cache":
            return _step_caching(engine, held_out_cases(options.prompts or PROMPTS, size), options)
        return run(way, held_out_cases(options.prompts or count, size), options)
    except Krea2Error as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code


# ---- the gate


def _gate(way: Way, cases: Sequence[Case], options: argparse.Namespace) -> int:
    ((_, drawn),) = draw_ways(way.engine, [way], cases)
    judged = [one.judged for one in drawn]
    bars = dict(options.fail_under or [(ALL, BAR)])
    rates = rates_by_attribute(judged)
    passes = all(name in rates and rates[name].share >= bar for name, bar in bars.items())
    print_rates(judged)
    print_wrong(judged, way)
    _record(way, judged, options.json, fail_under=bars, passes=passes)
    wrong = [one for one in drawn if not one.judged.right]
    for file, shown in ((options.sheet, drawn), (options.wrong_sheet, wrong)):
        _save([_tile(one, one.judged.case.prompt.text()) for one in shown[:SHEET_PICTURES]], SHEET_COLUMNS, file)
    for name, bar in bars.items():
        print(_comparison(name, rates.get(name), bar))
    return 0 if passes else 1


def _comparison(name: str, rate: Rate | None, bar: float) -> str:
    if rate is None:
        return f"{name} is stated by no prompt: FAILED"
    comparison = f"at least {bar:.1%}: passed" if rate.share >= bar else f"less than {bar:.1%}: FAILED"
    return f"{name} is right in {rate.right} of {rate.count} pictures, {comparison}"


def print_rates(judged: Sequence[Judged]) -> None:
    """By attribute, by size and by kind of prompt."""
    tables = {
        "attribute": rates_by_attribute(judged),
        "all, by size": rates_by(judged, lambda case: case.size),
        "all, by kind": rates_by(judged, lambda case: case.kind),
    }
    for header, rates in tables.items():
        print_table((header, *_RATE_HEADER), [(name, *_rate_cells(rate)) for name, rate in rates.items()])
        print()


def print_wrong(judged: Sequence[Judged], way: Way) -> None:
    """The first `SHOWN_WRONG` of them, and how to draw them again."""
    wrong = [one for one in judged if not one.right]
    if not wrong:
        return
    print(f"{len(wrong)} wrong, which `{_command(way)}` draws again:")
    for one in wrong[:SHOWN_WRONG]:
        case = one.case
        print(
            f'"{case.prompt.text()}" {case.size} seed {case.seed}: {", ".join(one.wrong)}; seen: {describe(one.seen)}'
        )
    if len(wrong) > SHOWN_WRONG:
        print(f"and {len(wrong) - SHOWN_WRONG} more, which the line of --json has")
    print()


def _command(way: Way) -> str:
    settings = {**asdict(way.engine), "steps": way.steps, "guidance": way.guidance}
    given = {name: str(value) for name, value in settings.items() if value not in (None, "auto")}
    options = shlex.join(word for name, value in given.items() for word in (f"--{name}", value))
    return f"krea2 generate PROMPT --width W --height H --seed S {options}"


# ---- the table


def _table(given: Way, cases: Sequence[Case], options: argparse.Namespace) -> int:
    results: dict[str, list[Drawn]] = {}
    reasons: dict[str, str] = {}
    for engine, group in groupby(ways_to_compare(given), key=lambda way: way.engine):
        ways = list(group)
        try:
            for way, drawn in draw_ways(engine, ways, cases):
                results[way.name] = drawn
                _record(way, [one.judged for one in drawn], options.json)
        except ArgumentError as error:
            if not results:  # the options themselves cannot be
                raise
            reasons |= {way.name: error.message for way in ways if way.name not in results}
    print_ways({name: [one.judged for one in drawn] for name, drawn in results.items()})
    for name, reason in reasons.items():
        print(f"{name}: left out, {reason}")
    columns = cases[:TABLE_COLUMNS]
    tiles = [Tile(_rendered(case), case.prompt.text()) for case in columns]
    tiles += [_tile(one, name) for name, drawn in results.items() for one in drawn[: len(columns)]]
    _save(tiles, len(columns), options.sheet)
    return 0


def ways_to_compare(given: Way) -> list[Way]:
    """`given`, and every way in which one of `CHOICES` differs from it; those of one engine are next to each other."""
    changed = [given.changed(choice, value) for choice, values in CHOICES.items() for value in values]
    return [given, *(way for way in changed if replace(way, name=given.name) != given)]


def print_ways(results: Mapping[str, Sequence[Judged]]) -> None:
    """A line a way. lost: right in the first way and wrong in this, of the same prompts and seeds; gained: the other
    way round."""
    first = next(iter(results.values()))
    stated = [attribute for attribute in ATTRIBUTES if any(attribute in one.verdict for one in first)]
    rows = []
    for name, judged in results.items():
        rates = rates_by_attribute(judged)
        pairs = [(before.right, after.right) for before, after in zip(first, judged, strict=True)]
        changes = (str(pairs.count((True, False))), str(pairs.count((False, True))))
        rows.append(
            (name, *_rate_cells(rates[ALL]), *changes, *(f"{rates[attribute].share:.1%}" for attribute in stated))
        )
    print_table(("way", *_RATE_HEADER, "lost", "gained", *stated), rows)


# ---- pictures from pictures


def _task(engine: Engine, options: argparse.Namespace) -> int:
    status, first, wrong = tasks.run(engine, options)
    for file, tiles in ((options.sheet, first), (options.wrong_sheet, wrong)):
        _save(tiles, tasks.SHEET_COLUMNS, file)
    return status


# ---- step caching


def _step_caching(engine: Engine, cases: Sequence[Case], options: argparse.Namespace) -> int:
    _save(cache_table.run(engine, cases, options), cache_table.COLUMNS, options.sheet)
    return 0


# ---- all


_RATE_HEADER = ("right", "of", "share", f"{CONFIDENCE:.0%} interval")


def _rate_cells(rate: Rate) -> tuple[str, ...]:
    return str(rate.right), str(rate.count), f"{rate.share:.1%}", f"{rate.low:.1%} … {rate.high:.1%}"


def _record(way: Way, judged: Sequence[Judged], file: Path | None, **more: Any) -> None:
    """To the file alone: hundreds of wrong pictures are too many to read."""
    if file is not None:
        settings = {"way": way.name, **asdict(way.engine), "steps": way.steps, "guidance": way.guidance}
        append_json(file, "adherence", {**settings, **results_of(judged), **more})


def _tile(drawn: Drawn, caption: str) -> Tile:
    wrong = drawn.judged.wrong
    return Tile(drawn.picture, caption, f"wrong: {', '.join(wrong)}" if wrong else "")


def _rendered(case: Case) -> Image.Image:
    return render(case.prompt, case.width, case.height, random.Random(case.seed))


def _save(tiles: Sequence[Tile], columns: int, file: Path | None) -> None:
    """Nothing where there is no file or no tile."""
    if file is not None and tiles:
        contact_sheet(tiles, columns).save(file)


if __name__ == "__main__":
    end_with(main)
