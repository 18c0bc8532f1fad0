"""`python -m bench.adherence --table cache`: what each way to save steps saves, and what it does to the pictures."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from PIL import Image

from bench.adherence.cache_rounds import Pair, Tally, draw_rounds
from bench.adherence.contact_sheet import Tile
from bench.adherence.drawing import Engine
from bench.adherence.rates import Case
from bench.adherence.step_caching.reckoned import BLOCKS, GPU, Measured, measured_h200
from bench.adherence.step_caching.ways import Model, ways_named
from bench.measure.output import append_json
from launcher import launch

SHOWN = 6  # pictures of a row of the sheet, which ends with the worst one beside what it is without
COLUMNS = SHOWN + 2


def run(engine: Engine, cases: Sequence[Case], options: argparse.Namespace) -> list[Tile]:
    """Draw, judge and print. Returns the tiles of a contact sheet of `COLUMNS`. Raises what `launch` and
    `Client.generate` do, `CheckpointError`, and `ArgumentError` for a way that is not known."""
    model = Model.of(engine.model)
    ways = ways_named(model.ways, options.ways)
    with launch(**asdict(engine), warm_up=False) as client:
        tallies = draw_rounds(client, model, ways, cases, SHOWN)
    measured = measured_h200()
    rows = [figures(tally, tallies[0], model, measured) for tally in tallies]
    for row in rows:
        if options.json is not None:
            append_json(options.json, "step_caching", {**asdict(engine), **row})
    print("\n".join(markdown(rows, model, measured)))
    return tiles(tallies)


def figures(tally: Tally, first: Tally, model: Model, measured: Measured | None) -> dict[str, Any]:
    """Say all of a way, for a line of JSON; None for an infinite PSNR, of pictures that are the same."""
    real = model.real_schedule(tally.way)
    of = model.schedule(first.way).block_evaluations
    real_of, real_mean = model.real_schedule(first.way).block_evaluations, fmean(tally.real_evaluations)
    lost, gained = tally.changed(first)
    worst = tally.worst
    return {
        "way": tally.way.name,
        "parameters": tally.way.parameters,
        "prompts": len(tally.judged),
        "blocks": model.blocks,
        "block_evaluations": fmean(tally.evaluations),
        "block_evaluations_range": [min(tally.evaluations), max(tally.evaluations)],
        "of": of,
        "times_fewer": of / fmean(tally.evaluations),
        "seconds": tally.seconds,
        "times_as_fast": tally.times_as_fast(first),
        "right": sum(one.right for one in tally.judged),
        "lost": lost,
        "gained": gained,
        "psnr_median": _finite(median(tally.psnr)),
        "psnr_worst": _finite(min(tally.psnr)),
        "ssim_mean": fmean(tally.ssim),
        "ssim_worst": min(tally.ssim),
        "worst": None if worst is None else {"prompt": _prompt(worst), "seed": worst.judged.case.seed},
        "real_steps": real.steps,
        "real_block_evaluations": real_mean,
        "real_of": real_of,
        "real_times_fewer": real_of / real_mean,
        "modelled_s": None if measured is None else measured.image_s(real_mean),
    }


def markdown(rows: Sequence[dict[str, Any]], model: Model, measured: Measured | None) -> list[str]:
    """Write the lines of the table, as docs/speed.md has it."""
    first = rows[0]
    real = f"at {BLOCKS} blocks, {first['real_steps']} steps: of {first['real_of']:,}"
    header = (
        "way", f"blocks run, of {first['of']}", "fewer", "faster", f"right of {first['prompts']}", "lost", "gained",
        "PSNR: median, worst", "SSIM: mean, worst", real, "fewer", f"on an {GPU}, modelled",
    )  # fmt: skip
    lines = [_line(header), "|---" * len(header) + "|"]
    lines += [_line(_cells(row)) for row in rows]
    if measured is not None:
        reckoned = f"{measured.other_s:.2f} s + blocks run ÷ {BLOCKS} · {measured.forward_s * 1e3:.1f} ms"
        lines += ["", f"Modelled: {reckoned}, as measured at {measured.commit} at 1024² in bfloat16."]
    worst = [(row["way"], row["worst"]) for row in rows[1:] if row["worst"] is not None]
    lines += [f'Worst of {name}: "{case["prompt"]}", seed {case["seed"]}' for name, case in worst]
    return lines


def tiles(tallies: Sequence[Tally]) -> list[Tile]:
    """Lay out a row for each way: the first pictures, and the worst one after what it is if nothing is saved."""
    empty = Tile(Image.new("RGB", (1, 1), (255, 255, 255)), "")
    made = []
    for tally in tallies:
        pairs = [(pair, tally.way.name) for pair in tally.shown]
        if tally is tallies[0]:
            pairs = [(pair, _prompt(pair)) for pair in tally.shown]
        row = [_tile(pair, caption) for pair, caption in pairs]
        worst = tally.worst
        if tally is not tallies[0] and worst is not None:
            row += [Tile(worst.whole, _prompt(worst)), _tile(worst, f"the worst: {tally.way.name}")]
        made += row + [empty] * (COLUMNS - len(row))
    return made


def _prompt(pair: Pair) -> str:
    return pair.judged.case.prompt.text()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    modelled = "" if row["modelled_s"] is None else f"{row['modelled_s']:.2f} s"
    return (
        row["way"],
        f"{row['block_evaluations']:.1f}".removesuffix(".0"),
        f"{row['times_fewer']:.2f}×",
        f"{row['times_as_fast']:.2f}×",
        str(row["right"]),
        str(len(row["lost"])),
        str(len(row["gained"])),
        f"{_decibels(row['psnr_median'])}, {_decibels(row['psnr_worst'])}",
        f"{row['ssim_mean']:.3f}, {row['ssim_worst']:.3f}",
        f"{row['real_block_evaluations']:,.0f}",
        f"{row['real_times_fewer']:.2f}×",
        modelled,
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _decibels(value: float | None) -> str:
    return "the same" if value is None else f"{value:.1f} dB"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _tile(pair: Pair, caption: str) -> Tile:
    wrong = pair.judged.wrong
    likeness = f" ({pair.psnr:.1f} dB)" if math.isfinite(pair.psnr) else ""
    return Tile(pair.picture, f"{caption}{likeness}", f"wrong: {', '.join(wrong)}" if wrong else "")
