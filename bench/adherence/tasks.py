"""`python -m bench.adherence --task inpaint|img2img`: draws pictures from others, and counts which are as asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from PIL import Image
from tqdm import tqdm

from bench.adherence.contact_sheet import Tile
from bench.adherence.drawing import DEADLINE_S, IN_FLIGHT, Draws, Engine
from bench.adherence.edits import CLEAN, Edit, JudgedEdit, edits, judge
from bench.adherence.rates import ALL, Rate, describe
from bench.measure.output import append_json, print_table
from launcher import launch

PROMPTS = 200
BARS = {"inpaint": 0.9, "img2img": 0.8}
SHEET_EDITS, SHEET_COLUMNS = 12, 6
_SHOWN_WRONG = 20
_HEADER = ("right", "of", "share", "95% interval")


@dataclass(frozen=True)
class DrawnEdit:
    """A picture, RGB, and what the judge said of it."""

    judged: JudgedEdit
    picture: Image.Image


def run(engine: Engine, options: argparse.Namespace) -> tuple[int, list[Tile], list[Tile]]:
    """Draw, judge and print. Returns the exit code, and tiles for sheets of the first pictures and the first wrong
    ones. Raises what `launch` and `Client.generate` do."""
    size = None if options.width is None else (options.width, options.height)
    asked = edits(options.task, options.prompts or PROMPTS, size)
    settings = {name: getattr(options, name) for name in ("strength", "strength_steps", "steps", "guidance")}
    with launch(**asdict(engine), image_input=True, warm_up=False) as client:
        drawn = draw_edits(client, asked, settings, options.task)
        alone = [] if options.task == "inpaint" else draw_edits(client, asked, settings, "without", sources=False)
    judged = [one.judged for one in drawn]
    rates = rates_of(judged)
    print_rates(rates)
    if alone:
        print_alone(judged, [one.judged for one in alone])
    _print_wrong(judged)
    bar = dict(options.fail_under or [(ALL, BARS[options.task])])[ALL]
    passes = rates[ALL].share >= bar
    _record(engine, settings, options, judged, [one.judged for one in alone], fail_under=bar, passes=passes)
    comparison = f"at least {bar:.1%}: passed" if passes else f"less than {bar:.1%}: FAILED"
    print(f"{options.task}: all is right in {rates[ALL].right} of {rates[ALL].count} pictures, {comparison}")
    wrong = [one for one in drawn if not one.judged.right]
    return 0 if passes else 1, _tiles(drawn), _tiles(wrong)


def draw_edits(
    client: Draws, asked: Sequence[Edit], settings: dict[str, Any], name: str, *, sources: bool = True
) -> list[DrawnEdit]:
    """In the order of the edits, some of them in flight at once. sources: False draws the prompts alone, for
    comparison. Raises what `Client.generate` does."""

    def draw(edit: Edit) -> Image.Image:
        case = edit.case
        given: Any = {"steps": settings["steps"], "guidance": settings["guidance"]}
        if sources:
            given = {**settings, "image": edit.source(), "mask": edit.mask()}
        given |= {"width": case.width, "height": case.height}
        result = client.generate(case.prompt.text(), seed=case.seed, timeout_s=DEADLINE_S, **given)
        return result.images[0].convert("RGB")

    drawn = []
    pool = ThreadPoolExecutor(IN_FLIGHT)
    try:
        pictures = tqdm(pool.map(draw, asked), desc=name, total=len(asked), unit="picture", leave=False, disable=None)
        for edit, picture in zip(asked, pictures, strict=True):
            drawn.append(DrawnEdit(judge(edit, picture), picture))
    finally:
        pool.shutdown(cancel_futures=True)
    return drawn


def rates_of(judged: Sequence[JudgedEdit]) -> dict[str, Rate]:
    """`ALL`, and every attribute over the prompts that have it; `CLEAN` last."""
    names = dict.fromkeys(chain.from_iterable(one.verdict for one in judged))
    order = [*(name for name in names if name != CLEAN), *(name for name in names if name == CLEAN)]
    outcomes = {ALL: [one.right for one in judged]}
    outcomes |= {name: [one.verdict[name] for one in judged if name in one.verdict] for name in order}
    return {name: Rate.of(each) for name, each in outcomes.items() if each}


def print_rates(rates: dict[str, Rate]) -> None:
    print_table(("attribute", *_HEADER), [(name, *_cells(rate)) for name, rate in rates.items()])
    print()


def print_alone(judged: Sequence[JudgedEdit], alone: Sequence[JudgedEdit]) -> None:
    """How often an object is what and where it is to be, and how often without the picture, where the prompt says its
    place or size, which settle where it is, and where it says neither."""
    rows = []
    for name, fits in (("says place or size", _says_place), ("says neither", lambda one: not _says_place(one))):
        for way, each in (("the picture", judged), ("the prompt alone", alone)):
            outcomes = [one.verdict["new"] for one in each if fits(one)]
            if outcomes:
                rows.append((f"{name}, from {way}", *_cells(Rate.of(outcomes))))
    print_table(("where the prompt …", *_HEADER), rows)
    print()


def _says_place(one: JudgedEdit) -> bool:
    return bool(one.edit.case.prompt.place or one.edit.case.prompt.size)


def _cells(rate: Rate) -> tuple[str, ...]:
    return str(rate.right), str(rate.count), f"{rate.share:.1%}", f"{rate.low:.1%} … {rate.high:.1%}"


def _print_wrong(judged: Sequence[JudgedEdit]) -> None:
    wrong = [one for one in judged if not one.right]
    for one in wrong[:_SHOWN_WRONG]:
        case, before = one.edit.case, one.edit.before.text()
        print(f'"{before}" as "{case.prompt.text()}" {case.size} seed {case.seed}: {_fault(one)}')
    if len(wrong) > _SHOWN_WRONG:
        print(f"and {len(wrong) - _SHOWN_WRONG} more, which the line of --json has")
    if wrong:
        print()


def _fault(one: JudgedEdit) -> str:
    return f"{', '.join(one.wrong)}; seen: {describe(one.seen)}"


def _record(
    engine: Engine,
    settings: dict[str, Any],
    options: argparse.Namespace,
    judged: Sequence[JudgedEdit],
    alone: Sequence[JudgedEdit],
    **more: Any,
) -> None:
    if options.json is None:
        return
    rates, without = ({name: asdict(rate) for name, rate in rates_of(each).items()} for each in (judged, alone))
    results = {"prompts": len(judged), "rates": rates, "rates_of_prompts_alone": without}
    wrong = [
        {
            "before": one.edit.before.text(),
            "prompt": one.edit.case.prompt.text(),
            "size": one.edit.case.size,
            "seed": one.edit.case.seed,
            "fault": _fault(one),
        }
        for one in judged
        if not one.right
    ]
    line = {**asdict(engine), **settings, **results, **more, "wrong": wrong}
    append_json(options.json, f"adherence_{options.task}", line)


def _tiles(drawn: Sequence[DrawnEdit]) -> list[Tile]:
    """The source, the mask where there is one, and the picture, of each."""
    tiles = []
    for one in drawn[:SHEET_EDITS]:
        edit = one.judged.edit
        mask = edit.mask()
        tiles.append(Tile(edit.source(), edit.before.text()))
        if mask is not None:
            tiles.append(Tile(mask, "mask"))
        fault = f"wrong: {', '.join(one.judged.wrong)}" if one.judged.wrong else ""
        tiles.append(Tile(one.picture, edit.case.prompt.text(), fault))
    return tiles
